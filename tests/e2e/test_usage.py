"""Usage and costs through openai-python with an admin key, in both forms."""

import time
import unittest

import openai

from service import MODEL, Embedded, OneService, Production, examples, finish, wait_until

PRICES = {"LUTHIER_PRICES_MODELS": f"{MODEL} input=1 output=4 trained=10"}


class Usage(OneService):
    """Mixed into one class per form."""

    def test_what_was_taken_and_what_it_costs(self):
        admin_key = self.service.luthier("admin-key", "create", *self.service.place)
        admin = self.service.client("unused", admin_api_key=admin_key)
        usage = admin.admin.organization.usage
        start = int(time.time()) - 3_600
        since = self.taken(usage, start)
        said = self.client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=4).usage
        stream = self.lenient.completions.create(model=MODEL, prompt="Once", max_tokens=4, temperature=0, stream=True)
        self.assertGreater(len(list(stream)), 0)
        now = wait_until("both are stored", lambda: self.stored(usage, start, since[0] + 2))
        self.assertGreater(now[1], since[1] + said.prompt_tokens)
        self.assertGreater(now[2], since[2] + said.completion_tokens)
        job = self.client.fine_tuning.jobs.create(model=MODEL, training_file=self.upload(examples(12)))
        trained = finish(self.client, job.id).trained_tokens
        costs = usage.costs(start_time=start, group_by=["line_item"])
        items = {result.line_item: result for bucket in costs.data for result in bucket.results}
        training = items[f"{MODEL}, training"]
        self.assertEqual((training.quantity, training.amount.currency), (trained, "usd"))
        self.assertAlmostEqual(training.amount.value, trained * 10 / 1e6)
        self.assertIn(f"{MODEL}, output", items)

    def test_a_project_spends_what_it_may(self):
        admin_key = self.service.luthier("admin-key", "create", *self.service.place)
        projects = self.service.client("unused", admin_api_key=admin_key).admin.organization.projects
        project = projects.create(name="frugal")
        bot = self.service.client(projects.service_accounts.create(project.id, name="bot").api_key.value)

        def limit(cents):
            return projects.spend_limit.update(project.id, currency="USD", interval="month", threshold_amount=cents)

        def chat():
            return bot.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=4)

        def refused(ask):
            with self.assertRaises(openai.RateLimitError) as refusal:
                ask()
            error = refusal.exception
            self.assertEqual((error.type, error.code), ("insufficient_quota", "insufficient_quota"))
            # The SDK was told that trying again is of no use.
            self.assertEqual(error.request.headers["x-stainless-retry-count"], "0")

        with self.assertRaises(openai.NotFoundError):
            projects.spend_limit.retrieve(project.id)
        self.assertEqual(limit(0).enforcement.status, "enforcing")
        file = bot.files.create(file=("train.jsonl", examples(12)), purpose="fine-tune")

        def train():
            method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 50}}}
            return bot.fine_tuning.jobs.create(model=MODEL, training_file=file.id, method=method)

        refused(chat)
        refused(train)
        self.assertEqual([job.id for job in bot.fine_tuning.jobs.list()], [])
        # Enough for an answer, and not for fifty epochs.
        self.assertEqual(limit(1).enforcement.status, "inactive")
        self.assertTrue(chat().id)
        job = train()
        wait_until("the job fails", lambda: bot.fine_tuning.jobs.retrieve(job.id).status == "failed")
        self.assertEqual(bot.fine_tuning.jobs.retrieve(job.id).error.code, "insufficient_quota")
        self.assertTrue(projects.spend_limit.delete(project.id).deleted)
        job = train()
        wait_until("the job waits or runs", lambda: bot.fine_tuning.jobs.retrieve(job.id).status in ("queued", "running"))
        bot.fine_tuning.jobs.cancel(job.id)

    def taken(self, usage, start):
        page = usage.completions(start_time=start, group_by=["model", "project_id"])
        results = [result for bucket in page.data for result in bucket.results if result.model == MODEL]
        return tuple(sum(getattr(result, name) for result in results)
                     for name in ("num_model_requests", "input_tokens", "output_tokens"))

    def stored(self, usage, start, n_requests):
        taken = self.taken(usage, start)
        return taken if taken[0] >= n_requests else None


class EmbeddedWithPrices(Embedded):
    env = PRICES


class ProductionWithPrices(Production):
    env = PRICES


class EmbeddedUsage(Usage, unittest.TestCase):
    make = EmbeddedWithPrices


class ProductionUsage(Usage, unittest.TestCase):
    make = ProductionWithPrices


if __name__ == "__main__":
    unittest.main()
