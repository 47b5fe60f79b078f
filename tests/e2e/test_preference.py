"""Training by preference: method `dpo` as OpenAI's clients order it, and the other losses over pairs, in both forms."""

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
        began = {"ipo": 25.0, "orpo": None, "simpo": None, "hinge": 1.0, "apo_zero": 1.0}
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
        with self.assertRaises(openai.BadRequestError) as caught:
            self.order(x_loss_type="kto")
        self.assertEqual(caught.exception.param, "method.dpo.hyperparameters.x_loss_type")


class EmbeddedPreference(Preference, unittest.TestCase):
    make = staticmethod(Embedded)


class ProductionPreference(Preference, unittest.TestCase):
    make = staticmethod(Production)


if __name__ == "__main__":
    unittest.main()
