"""Code that names models of elsewhere, unchanged, in both forms."""

import unittest

import openai

from service import MODEL, Embedded, OneService, Production, examples

ELSEWHERE = "gpt-4o-mini-2024-07-18"


class ModelAliases(OneService):
    """Mixed into one class per form."""

    def test_a_model_of_elsewhere_is_one_of_here(self):
        self.assertIn(ELSEWHERE, self.service.luthier("alias", "add", ELSEWHERE, MODEL, *self.service.place))
        self.assertEqual(self.service.luthier("alias", "list", *self.service.place), f"{ELSEWHERE}\t{MODEL}")
        chat = self.client.chat.completions.create(
            model=ELSEWHERE, messages=[{"role": "user", "content": "Hi"}], max_tokens=2)
        self.assertEqual(chat.model, MODEL)
        text = self.client.completions.create(model=ELSEWHERE, prompt="Once", max_tokens=2)
        self.assertEqual(text.model, MODEL)
        job = self.client.fine_tuning.jobs.create(model=ELSEWHERE, training_file=self.upload(examples(12)))
        self.assertEqual(job.model, MODEL)
        self.client.fine_tuning.jobs.cancel(job.id)
        self.assertIn(ELSEWHERE, [model.id for model in self.client.models.list()])
        self.service.luthier("alias", "remove", ELSEWHERE, *self.service.place)
        with self.assertRaises(openai.NotFoundError):
            self.client.completions.create(model=ELSEWHERE, prompt="Once", max_tokens=2)


class EmbeddedModelAliases(ModelAliases, unittest.TestCase):
    make = staticmethod(Embedded)


class ProductionModelAliases(ModelAliases, unittest.TestCase):
    make = staticmethod(Production)


if __name__ == "__main__":
    unittest.main()
