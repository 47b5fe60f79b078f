"""Training by preference: method `dpo` as OpenAI's clients order it, and the other losses, over pairs and over judged answers, in both
forms."""

import json
import math
import unittest

import openai

from service import MODEL, Embedded, OneService, Production, examples, finish


def pairs(n):
    """Questions with a better and a worse answer, as JSONL bytes."""
    answer = lambda content: [{"role": "assistant", "content": content}]  # noqa: E731
    rows = ({
        "input": {"messages": [{"role": "user", "content": f"Is {i} odd?"}], "tools": [], "parallel_tool_calls": True},
        "preferred_output": answer("Yes, it is." if i % 2 else "No, it is even."),
        "non_preferred_output": answer("No." if i % 2 else "Yes!"),
    } for i in range(n))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def judged(n, label=lambda i: i % 3 != 1):
    """The same questions with one answer that was called good or bad."""
    rows = ({
        "messages": [{"role": "user", "content": f"Is {i} odd?"},
                     {"role": "assistant", "content": "Yes, it is." if (i % 2 == 1) == label(i) else "No, it is even."}],
        "label": label(i),
    } for i in range(n))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


class Preference(OneService):
    """Mixed into one class per form."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.pairs = cls.upload(pairs(12))

    def order(self, training_file=None, model=MODEL, n_epochs=4, validation_file=None, **hyperparameters):
        hyperparameters = {"n_epochs": n_epochs, "batch_size": 4, "learning_rate_multiplier": 10, **hyperparameters}
        options = {"validation_file": validation_file} if validation_file else {}
        return self.lenient.fine_tuning.jobs.create(
            model=model, training_file=training_file or self.pairs, seed=7,
            method={"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}, **options)

    def train(self, *args, **kwargs):
        job = finish(self.lenient, self.order(*args, **kwargs).id)
        self.assertEqual(job.status, "succeeded", f"{job.error}\n{self.service.logs()}")
        return job

    def results(self, job):
        """train_loss and train_accuracy of every step."""
        csv = self.client.files.content(job.result_files[0]).read().decode().splitlines()
        return [[float(value) for value in line.split(",")[1:3]] for line in csv[1:]]

    def test_the_better_answers_win(self):
        job = self.train(beta=0.3, validation_file=self.upload(pairs(3)))
        self.assertIsNone(job.hyperparameters)
        asked = job.method.dpo.hyperparameters
        self.assertEqual((job.method.type, asked.beta, asked.n_epochs, asked.batch_size), ("dpo", 0.3, 4, 4))
        self.assertEqual(asked.x_loss_type, "sigmoid")
        steps = self.results(job)
        self.assertEqual(len(steps), 12)
        # Before the first step both answers are as likely as they were.
        self.assertAlmostEqual(steps[0][0], math.log(2), places=5)
        self.assertLess(steps[-1][0], 0.6)
        self.assertEqual(steps[-1][1], 1.0)
        newest = self.client.fine_tuning.jobs.checkpoints.list(job.id).data[0]
        self.assertEqual(newest.metrics.full_valid_mean_token_accuracy, 1.0)
        self.assertGreater(job.trained_tokens, 0)
        answer = self.client.chat.completions.create(
            model=job.fine_tuned_model, messages=[{"role": "user", "content": "Is 3 odd?"}], max_tokens=8)
        self.assertGreater(answer.usage.completion_tokens, 0)

    def test_training_goes_on_from_a_tuned_model_which_is_then_the_reference(self):
        supervised = finish(self.client, self.client.fine_tuning.jobs.create(
            model=MODEL, training_file=self.upload(examples(12)), seed=7).id)
        job = self.train(model=supervised.fine_tuned_model)
        self.assertAlmostEqual(self.results(job)[0][0], math.log(2), places=5)

    def test_other_losses_train(self):
        began = {"ipo": 25.0, "orpo": None, "simpo": None, "hinge": 1.0, "apo_zero": 1.0, "aot": math.log(2), "aot_unpaired": math.log(2)}
        for name, first in began.items():
            with self.subTest(name):
                job = self.train(n_epochs=2, x_loss_type=name)
                self.assertEqual(job.method.dpo.hyperparameters.x_loss_type, name)
                steps = self.results(job)
                if first is not None:
                    self.assertAlmostEqual(steps[0][0], first, places=4)
                self.assertLess(steps[-1][0], steps[0][0])

    def test_what_cannot_be_compared_is_refused(self):
        job = finish(self.lenient, self.order(training_file=self.upload(examples(12))).id)
        self.assertEqual((job.status, job.error.code, job.error.param), ("failed", "invalid_training_file", "training_file"))
        self.assertIn("fine-tune-chat", job.error.message)
        for options, param in [({"x_loss_type": "discopop"}, "x_loss_type"), ({"x_loss_type": "kto", "batch_size": 1}, "batch_size")]:
            with self.subTest(param), self.assertRaises(openai.BadRequestError) as caught:
                self.order(**options)
            self.assertEqual(caught.exception.param, f"method.dpo.hyperparameters.{param}")

    def test_answers_that_were_judged_alone_are_learned_from(self):
        # The others' rate carries all answers at once to where the sigmoid is flat, in one step.
        job = self.train(training_file=self.upload(judged(12)), validation_file=self.upload(judged(3)), x_loss_type="kto", beta=0.3,
                         x_undesirable_weight=2, learning_rate_multiplier=1)
        asked = job.method.dpo.hyperparameters
        self.assertEqual((asked.x_loss_type, asked.x_desirable_weight, asked.x_undesirable_weight), ("kto", 1, 2))
        steps = self.results(job)
        # Before the first step each answer is as likely as it was: half of its weight, four or so of them bad.
        self.assertIn(round(4 * steps[0][0], 5), {2.0, 2.5, 3.0, 3.5, 4.0})
        self.assertLess(steps[-1][0], steps[0][0])
        self.assertGreaterEqual(steps[-1][1], 0.75)
        newest = self.client.fine_tuning.jobs.checkpoints.list(job.id).data[0]
        self.assertGreater(newest.metrics.full_valid_mean_token_accuracy, 0.6)
        events = self.client.fine_tuning.jobs.list_events(job.id, limit=100).data
        self.assertFalse([event.message for event in events if event.level == "warn"])
        answer = self.client.chat.completions.create(
            model=job.fine_tuned_model, messages=[{"role": "user", "content": "Is 3 odd?"}], max_tokens=8)
        self.assertGreater(answer.usage.completion_tokens, 0)

    def test_what_was_not_judged_or_all_alike_is_said(self):
        for file, why in [
            (self.pairs, "in the fine-tune-preference format, which needs method 'dpo' and an x_loss_type other than 'kto'"),
            (self.upload(examples(12)), "Example 1 is missing key 'label'"),
            (self.upload(judged(12).replace(b"true", b'"yes"')), "neither true nor false"),
        ]:
            with self.subTest(why):
                job = finish(self.lenient, self.order(training_file=file, x_loss_type="kto").id)
                self.assertEqual((job.status, job.error.param), ("failed", "training_file"))
                self.assertIn(why, job.error.message)
        job = finish(self.lenient, self.order(training_file=self.upload(judged(12))).id)
        self.assertIn("in the fine-tune-unpaired-preference format, which needs method 'dpo' and x_loss_type 'kto'", job.error.message)
        job = self.train(training_file=self.upload(judged(12, lambda i: True)), x_loss_type="kto", n_epochs=1)
        events = self.client.fine_tuning.jobs.list_events(job.id, limit=100).data
        warned = [event.message for event in events if event.level == "warn"]
        self.assertIn("have the label true", "".join(warned))


class EmbeddedPreference(Preference, unittest.TestCase):
    make = staticmethod(Embedded)


class ProductionPreference(Preference, unittest.TestCase):
    make = staticmethod(Production)


if __name__ == "__main__":
    unittest.main()
