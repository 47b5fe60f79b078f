"""The older completions, which go on with texts, through openai-python, in both forms."""

import unittest

import openai

from service import MODEL, Embedded, OneService, Production, examples, finish


class Completions(OneService):
    """Mixed into one class per form."""

    def complete(self, prompt, **options):
        options = {"max_tokens": 8, "temperature": 0, **options}
        return self.client.completions.create(model=MODEL, prompt=prompt, **options)

    def test_texts_and_tokens_are_gone_on_with(self):
        one = self.complete("Once upon")
        self.assertTrue(one.id.startswith("cmpl-"), one.id)
        self.assertEqual((one.object, one.model), ("text_completion", MODEL))
        self.assertEqual(one.usage.completion_tokens, 8)
        self.assertIn(one.choices[0].finish_reason, ("stop", "length"))
        texts = ["Once upon", "a time", "there was"]
        many = self.complete(texts, n=2, seed=3, temperature=1)
        self.assertEqual([choice.index for choice in many.choices], list(range(6)))
        # Each prompt's own answers, wherever it stands.
        again = self.complete(texts[1], n=2, seed=3, temperature=1)
        self.assertEqual([choice.text for choice in many.choices[2:4]], [choice.text for choice in again.choices])
        self.assertEqual(self.complete([texts[0]]).choices[0].text, one.choices[0].text)
        default = self.client.completions.create(model=MODEL, prompt=[[5, 6, 7], [8]])
        self.assertEqual([choice.index for choice in default.choices], [0, 1])
        self.assertLessEqual(default.usage.completion_tokens, 32)

    def test_an_answer_shows_what_was_asked_for(self):
        plain = self.complete("Once upon").choices[0].text
        self.assertEqual(self.complete("Once upon", echo=True).choices[0].text, "Once upon" + plain)
        told = self.complete("Once upon", logprobs=3).choices[0]
        self.assertEqual("".join(told.logprobs.tokens), told.text)
        self.assertEqual(told.logprobs.text_offset[0], 0)
        self.assertEqual(len(told.logprobs.text_offset), len(told.logprobs.tokens))
        for logprob, top in zip(told.logprobs.token_logprobs, told.logprobs.top_logprobs, strict=True):
            self.assertEqual(len(top), 3)
            self.assertAlmostEqual(max(top.values()), logprob, places=5)

    def test_the_best_of_several_is_shown(self):
        options = {"temperature": 1.5, "seed": 5, "logprobs": 0}
        drawn = self.complete("Once upon", n=6, **options).choices
        mean = lambda choice: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)  # noqa: E731
        best = sorted(drawn, key=mean, reverse=True)[:2]
        shown = self.complete("Once upon", n=2, best_of=6, **options)
        self.assertEqual([choice.text for choice in shown.choices], [choice.text for choice in best])
        self.assertEqual([choice.index for choice in shown.choices], [0, 1])

    def test_a_stream_says_what_a_whole_answer_says(self):
        texts = ["Once upon", "a time"]
        whole = self.complete(texts, logprobs=1)
        streamed, offsets, usage = ["", ""], [[], []], None
        ask = {"prompt": texts, "logprobs": 1, "max_tokens": 8, "temperature": 0, "stream_options": {"include_usage": True}}
        for chunk in self.lenient.completions.create(model=MODEL, stream=True, **ask):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                streamed[choice.index] += choice.text
                if choice.logprobs:
                    offsets[choice.index] += choice.logprobs.text_offset
        self.assertEqual(streamed, [choice.text for choice in whole.choices])
        self.assertEqual(offsets, [choice.logprobs.text_offset for choice in whole.choices])
        self.assertEqual(usage.total_tokens, whole.usage.total_tokens)

    def test_a_tuned_model_completes(self):
        file = self.upload(examples(12))
        job = finish(self.client, self.client.fine_tuning.jobs.create(model=MODEL, training_file=file, seed=7).id)
        answer = self.client.completions.create(model=job.fine_tuned_model, prompt="What", max_tokens=4)
        self.assertEqual(answer.model, job.fine_tuned_model)

    def test_what_cannot_be_completed_is_refused(self):
        for options, param in [
            ({"suffix": "the end"}, "suffix"),
            ({"echo": True, "logprobs": 1}, "logprobs"),
            ({"best_of": 3, "stream": True}, "best_of"),
        ]:
            with self.assertRaises(openai.BadRequestError) as caught:
                self.complete("Once", **options)
            self.assertEqual(caught.exception.param, param)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete([1_000_000])
        self.assertEqual(caught.exception.param, "prompt")
        with self.assertRaises(openai.NotFoundError):
            self.client.completions.create(model="absent", prompt="Once")


class EmbeddedCompletions(Completions, unittest.TestCase):
    make = staticmethod(Embedded)


class ProductionCompletions(Completions, unittest.TestCase):
    make = staticmethod(Production)


if __name__ == "__main__":
    unittest.main()
