"""Batches through openai-python, in both forms; and a crash in the middle of one."""

import json
import signal
import unittest

import openai

from service import MODEL, Embedded, OneService, Production, examples, finish, wait_until

CHAT = "/v1/chat/completions"
ENDS = ("completed", "failed", "expired", "cancelled")


def chat(custom_id, text="Hi", model=MODEL, **options):
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 4, **options}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def create(client, requests, endpoint=CHAT, **options):
    content = "".join(json.dumps(request) + "\n" for request in requests).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **options)


def over(client, batch, limit_s=120):
    def ended():
        found = client.batches.retrieve(batch.id)
        return found if found.status in ENDS else None

    return wait_until(f"{batch.id} ends", ended, limit_s)


def lines(client, file_id):
    return [json.loads(line) for line in client.files.content(file_id).text.split("\n") if line]


class Batches(OneService):
    """Mixed into one class per form."""

    def test_every_request_is_answered_under_its_own_name(self):
        made = create(self.client, [chat(f"say {i}", f"{i}", seed=i) for i in range(8)] + [chat("bad", n=0)],
                      metadata={"team": "a"})
        self.assertEqual((made.status, made.object, made.metadata), ("validating", "batch", {"team": "a"}))
        batch = over(self.client, made)
        self.assertEqual((batch.status, batch.model), ("completed", MODEL), self.service.logs())
        counts = batch.request_counts
        self.assertEqual((counts.total, counts.completed, counts.failed), (9, 8, 1))
        answers = lines(self.client, batch.output_file_id)
        self.assertEqual([line["custom_id"] for line in answers], [f"say {i}" for i in range(8)])
        self.assertEqual(batch.usage.output_tokens, sum(a["response"]["body"]["usage"]["completion_tokens"] for a in answers))
        # The same answer as the live route gives.
        live = self.client.chat.completions.create(**chat("", "3", seed=3)["body"])
        self.assertEqual(answers[3]["response"]["body"]["choices"][0]["message"]["content"], live.choices[0].message.content)
        [bad] = lines(self.client, batch.error_file_id)
        self.assertEqual((bad["custom_id"], bad["response"]["status_code"], bad["error"]), ("bad", 400, None))
        self.assertEqual(bad["response"]["body"]["error"]["param"], "n")
        file = self.client.files.retrieve(batch.output_file_id)
        self.assertEqual((file.purpose, file.bytes > 0), ("batch_output", True))
        listed = [batch.id for batch in self.client.batches.list(limit=1)]
        self.assertIn(made.id, listed)

    def test_completions_and_tuned_models_are_asked_too(self):
        request = {"custom_id": "a", "method": "POST", "url": "/v1/completions",
                   "body": {"model": MODEL, "prompt": ["Once", "Twice"], "max_tokens": 3}}
        batch = over(self.client, create(self.client, [request], endpoint="/v1/completions"))
        [line] = lines(self.client, batch.output_file_id)
        self.assertEqual(len(line["response"]["body"]["choices"]), 2)
        job = self.client.fine_tuning.jobs.create(model=MODEL, training_file=self.upload(examples(12)), seed=7)
        tuned = finish(self.client, job.id).fine_tuned_model
        batch = over(self.client, create(self.client, [chat("a", model=tuned)]))
        self.assertEqual((batch.model, batch.request_counts.completed), (tuned, 1))

    def test_a_bad_file_fails_the_batch_and_says_where(self):
        batch = over(self.client, create(self.client, [chat("a"), chat("a"), chat("b", model="other")]))
        self.assertEqual(batch.status, "failed")
        self.assertEqual([(e.line, e.code) for e in batch.errors.data], [(2, "duplicate_custom_id"), (3, "mismatched_model")])
        self.assertIsNone(batch.output_file_id)

    def test_a_cancelled_batch_keeps_what_was_answered(self):
        made = create(self.client, [chat(str(i), max_tokens=120) for i in range(2000)])
        wait_until("something is answered", lambda: self.client.batches.retrieve(made.id).request_counts.completed)
        self.assertEqual(self.client.batches.cancel(made.id).status, "cancelling")
        batch = over(self.client, made)
        self.assertEqual(batch.status, "cancelled")
        names = {line["custom_id"] for line in lines(self.client, batch.output_file_id)}
        self.assertEqual(len(names), batch.request_counts.completed)
        self.assertLess(len(names), 2000)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.batches.cancel(made.id)
        self.assertEqual(caught.exception.code, "invalid_batch_state")

    def test_a_live_answer_does_not_wait_for_a_batch(self):
        made = create(self.client, [chat(str(i), max_tokens=200) for i in range(400)])
        wait_until("the batch runs", lambda: self.client.batches.retrieve(made.id).status == "in_progress")
        for _ in range(3):
            self.client.chat.completions.create(**chat("", "Hello")["body"], timeout=20)
        self.assertEqual(self.client.batches.retrieve(made.id).status, "in_progress")
        self.client.batches.cancel(made.id)
        over(self.client, made)

    def test_moderations_are_refused_with_what_to_do_instead(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.moderations.create(input="x")
        self.assertEqual(caught.exception.code, "unsupported_endpoint")

    def crash_in_the_middle(self, kill_and_restart):
        """Twice; then every request has its outcome, once."""
        made = create(self.client, [chat(f"{i}", max_tokens=16) for i in range(300)])
        done = 0
        for _ in range(2):
            so_far = lambda: self.client.batches.retrieve(made.id).request_counts.completed  # noqa: E731
            done = wait_until("more is answered", lambda: so_far() > done and so_far())
            kill_and_restart()
            self.assertGreaterEqual(so_far(), done)
        batch = over(self.client, made, limit_s=240)
        self.assertEqual(batch.status, "completed", self.service.logs())
        names = [line["custom_id"] for line in lines(self.client, batch.output_file_id)]
        self.assertEqual(names, [f"{i}" for i in range(300)])
        self.assertEqual(batch.request_counts.completed, 300)
        self.assertIsNone(batch.error_file_id)


class BatchesEmbedded(Batches, unittest.TestCase):
    make = staticmethod(Embedded)

    def test_a_crash_in_the_middle_loses_and_doubles_nothing(self):
        def kill_and_restart():
            self.service.stop("up", signal.SIGKILL)
            self.service.start()

        self.crash_in_the_middle(kill_and_restart)


class BatchesProduction(Batches, unittest.TestCase):
    make = staticmethod(Production)

    def test_a_crash_of_an_api_loses_and_doubles_nothing(self):
        def kill_and_restart():
            self.service.stop("api", signal.SIGKILL)
            self.service.start_api()
            self.service.wait_until_ready()

        self.crash_in_the_middle(kill_and_restart)


if __name__ == "__main__":
    unittest.main()
