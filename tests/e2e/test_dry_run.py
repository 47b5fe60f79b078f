"""What a job would do, without one, in both forms."""

import json
import time
import unittest

import openai

from service import MODEL, Embedded, OneService, Production, examples, finish
from test_preference import pairs

# US dollars per million tokens.
TRAINED = 10
PRICES = {"LUTHIER_PRICES_MODELS": f"{MODEL} trained={TRAINED}"}


class DryRun(OneService):
    """Mixed into one class per form."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        key = cls.service.luthier("admin-key", "create", *cls.service.place)
        cls.admin = openai.OpenAI(base_url=cls.service.base_url, api_key="unused", admin_api_key=key)

    def dry_run(self, **order):
        return self.lenient.fine_tuning.jobs.create(model=MODEL, extra_query={"x_dry_run": "true"}, **order)

    def validate(self, file, **body):
        return self.client.post(f"/x/files/{file}/validate", cast_to=object, body={"model": MODEL, **body})

    def trained_tokens(self, **order):
        """Of a job, after its dry run has said so and made none."""
        client = self.lenient if order.get("method", {}).get("type") == "dpo" else self.client
        n_jobs = len(self.lenient.fine_tuning.jobs.list(limit=100).data)
        told = self.dry_run(**order)
        self.assertEqual((told.object, told.status, told.error), ("x.dry_run", "completed", None))
        self.assertEqual(len(self.lenient.fine_tuning.jobs.list(limit=100).data), n_jobs)
        job = finish(client, client.fine_tuning.jobs.create(model=MODEL, **order).id)
        self.assertEqual(job.status, "succeeded", f"{job.error}\n{self.service.logs()}")
        self.assertEqual(job.method.type, told.method.type)
        self.assertEqual(job.trained_tokens, told.trained_tokens)
        self.assertEqual(told.price["billed_tokens"], job.trained_tokens)
        return job, told

    def charged(self):
        """US dollars for trainings so far."""
        page = self.admin.admin.organization.usage.costs(start_time=int(time.time()) - 3_600, group_by=["line_item"])
        items = [result for bucket in page.data for result in bucket.results]
        return sum(item.amount.value for item in items if item.line_item == f"{MODEL}, training")

    def test_the_job_trains_on_as_many_tokens_as_its_dry_run_says(self):
        order = {"training_file": self.upload(examples(24)), "validation_file": self.upload(examples(10, 100)), "seed": 7}
        before = self.charged()
        job, told = self.trained_tokens(**order)
        self.assertEqual((told.price["per_million_tokens"], told.price["amount"]["currency"]), (TRAINED, "usd"))
        self.assertAlmostEqual(told.price["amount"]["value"], self.charged() - before, places=9)
        self.assertGreater(told.price["amount"]["value"], 0)
        again = self.dry_run(**order)
        self.assertTrue(1 <= again.estimated_seconds <= 600, again.estimated_seconds)
        self.assertEqual(job.hyperparameters, told.hyperparameters)
        steps = self.client.fine_tuning.jobs.checkpoints.list(job.id).data[0].step_number
        self.assertEqual(steps, told.total_steps)
        self.assertEqual((told.training["n_rows"], told.validation["n_rows"], told.leaked["n_rows"]), (24, 10, 0))

    def test_rows_that_are_split_and_cut_are_billed_as_they_are_trained(self):
        file = self.upload(examples(12))
        longest = self.validate(file)["training"]["longest"]
        for truncation in ("right", "split"):
            with self.subTest(truncation):
                x_training = {"data": {"max_length": longest - 4, "truncation": truncation}}
                method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}}
                _, told = self.trained_tokens(
                    training_file=file, method=method, extra_body={"x_training": x_training})
                self.assertGreater(told.training["truncation"]["share"], 0)

    def test_pairs_are_billed_with_both_answers(self):
        method = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 1, "batch_size": 4}}}
        self.trained_tokens(training_file=self.upload(pairs(12)), method=method)

    def test_a_file_is_told_what_is_wrong_with_it(self):
        rows = examples(12).splitlines()
        rows[4], rows[8] = b'{"messages": [oops', b'{"messages": [{"role": "robot", "content": "x"}]}'
        rows[10] = rows[0]
        content = b"\n".join(rows)
        told = self.validate(self.upload(content))
        self.assertEqual(told["error"]["code"], "invalid_training_file")
        self.assertIsNone(told["trained_tokens"])
        training = told["training"]
        self.assertEqual((training["n_rows"], training["n_bad_rows"]), (12, 2))
        bad = {row["line"]: row for row in training["bad_rows"]}
        self.assertEqual(set(bad), {5, 9})
        self.assertEqual(bad[9]["pointer"], "/messages/0/role")
        for line, row in bad.items():
            start = len(b"\n".join(rows[:line - 1])) + 1
            self.assertTrue(start <= row["byte_offset"] <= start + len(rows[line - 1]), row)
            self.assertTrue(row["reason"] and row["suggested_fix"], row)
        self.assertEqual(training["duplicates"]["rows"], [{"line": 11, "first_line": 1}])

    def test_what_leaks_and_what_is_learned(self):
        row = lambda i, answer: json.dumps({"messages": [  # noqa: E731
            {"role": "user", "content": f"Is {i} odd?"}, {"role": "assistant", "content": answer}]}) + "\n"
        train = "".join(row(i, "yes" if i % 2 else "no") for i in range(20)).encode()
        valid = (row(3, "yes") + row(100, "no")).encode()
        told = self.validate(self.upload(train), validation_file=self.upload(valid))
        self.assertEqual(told["leaked"], {"n_rows": 1, "rows": [{"line": 1, "first_line": 4}], "is_complete": True})
        answers = told["training"]["labels"]["answers"]
        self.assertEqual(answers, [{"text": "no", "n_rows": 10}, {"text": "yes", "n_rows": 10}])
        again = self.client.get(f"/x/dry_runs/{told['id']}", cast_to=object)
        # What is free of memory changes from moment to moment.
        for object_ in (again, told):
            self.assertGreater(object_["memory_plan"].pop("available_bytes"), 0)
        self.assertEqual(again, told)

    def test_a_worker_tells_the_memory_that_the_job_would_need(self):
        order = {"training_file": self.upload(examples(12))}

        def plan(**x_training):
            told = self.dry_run(**order, extra_body={"x_training": x_training})
            self.assertEqual((told.error, told.memory_plan_error), (None, None))
            self.assertEqual(told.estimated_memory_bytes, told.memory_plan["total_bytes"])
            return told.memory_plan

        first = plan()
        self.assertEqual((first["device"], first["gpu_declined"], first["fits"]), ("cpu", None, True))
        parts = [first[f"{part}_bytes"] for part in ("weights", "adapter", "activations")]
        self.assertEqual(sum(parts), first["total_bytes"])
        self.assertTrue(min(parts) > 0 and first["total_bytes"] < first["available_bytes"], first)
        self.assertEqual((first["gradient_checkpointing"], first["recomputed_layers"]), ("none", 0))
        wide = plan(adapter={"r": 32})
        self.assertEqual(wide["adapter_bytes"], 2 * first["adapter_bytes"])
        lean = plan(memory={"gradient_checkpointing": "full"}, precision={"base_weights": "nf4"})
        self.assertEqual(lean["gradient_checkpointing"], "full")
        self.assertLess(lean["activations_bytes"], first["activations_bytes"])
        self.assertLess(lean["weights_bytes"], first["weights_bytes"])
        # A rank that the model is too small for fails no dry run; the plan says so.
        told = self.dry_run(**order, extra_body={"x_training": {"adapter": {"r": 1024}}})
        self.assertEqual((told.status, told.memory_plan), ("completed", None))
        self.assertIn("1024", told.memory_plan_error)

    def test_what_no_job_takes_no_dry_run_takes(self):
        with self.assertRaises(openai.BadRequestError):
            self.dry_run(training_file="file-nope")
        with self.assertRaises(openai.NotFoundError):
            self.validate("file-nope")


class EmbeddedWithPrices(Embedded):
    env = PRICES


class ProductionWithPrices(Production):
    env = PRICES


class EmbeddedDryRun(DryRun, unittest.TestCase):
    make = EmbeddedWithPrices


class ProductionDryRun(DryRun, unittest.TestCase):
    make = ProductionWithPrices
