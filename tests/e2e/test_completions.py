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

    def score(self, prompt, model=MODEL, **options):
        """Of the prompt's first token there is null, which OpenAI answers and the SDK's types do not know."""
        options = {"max_tokens": 0, "temperature": 0, "echo": True, "logprobs": 1, **options}
        return self.lenient.completions.create(model=model, prompt=prompt, **options)

    def test_a_prompt_is_scored_without_an_answer(self):
        answer = self.score("Once upon a time", logprobs=5)
        [choice], usage = answer.choices, answer.usage
        self.assertEqual((choice.text, choice.finish_reason), ("Once upon a time", "length"))
        self.assertEqual((usage.completion_tokens, usage.total_tokens), (0, usage.prompt_tokens))
        told = choice.logprobs
        self.assertEqual([choice.text[at:at + 1] for at in told.text_offset], told.tokens)
        self.assertEqual((told.token_logprobs[0], told.top_logprobs[0]), (None, None))
        for token, logprob, top in zip(told.tokens[1:], told.token_logprobs[1:], told.top_logprobs[1:], strict=True):
            # Half characters are spelled alike.
            self.assertTrue(1 <= len(top) <= 6, top)
            self.assertAlmostEqual(top[token], logprob, places=5)
        # A token a byte, from 3 on: what is drawn only because it has to be has the log-probability that it has in a prompt.
        drawn = self.complete("Once upon a ti", logprobs=0, max_tokens=1, logit_bias={str(3 + ord("m")): 100}).choices[0]
        self.assertEqual((drawn.text, drawn.logprobs.token_logprobs), ("m", told.token_logprobs[-2:-1]))
        empty = self.score("").choices[0]
        self.assertEqual((empty.text, empty.logprobs.tokens, empty.finish_reason), ("", [], "length"))
        self.assertEqual(self.complete("Once", max_tokens=0).choices[0].text, "")

    def test_texts_are_scored_as_evaluation_harnesses_do(self):
        """As lm-evaluation-harness asks and reads: each prompt is a context and a continuation, in tokens, and one token is drawn."""
        texts = [("Two and two", " is four"), ("Once upon", " a time"), ("A", "B")]
        ids = lambda text: [3 + byte for byte in text.encode()]  # noqa: E731
        asked = [ids(context + continuation) for context, continuation in texts]
        for end in ({}, {"logit_bias": {"2": 100}}):
            choices = self.score(asked, max_tokens=1, seed=1234, **end).choices
            for choice, prompt, (context, continuation) in zip(choices, asked, texts, strict=True):
                told = choice.logprobs
                self.assertEqual(len(told.token_logprobs), len(prompt) + 1)
                self.assertEqual(choice.finish_reason, "stop" if end else "length")
                alone = self.score(context + continuation).choices[0].logprobs.token_logprobs
                self.assertEqual(told.token_logprobs[len(context):-1], alone[len(context):])
                self.assertEqual(told.text_offset, list(range(len(prompt) + 1)))
            self.assertNotEqual(choices[0].logprobs.token_logprobs[1:3], choices[1].logprobs.token_logprobs[1:3])

    def test_several_answers_begin_with_the_scored_prompt(self):
        options = {"n": 2, "seed": 3, "temperature": 1, "max_tokens": 4}
        scored = self.score("Once upon a time", **options)
        plain = self.complete("Once upon a time", logprobs=1, **options)
        for choice, answer in zip(scored.choices, plain.choices, strict=True):
            told = choice.logprobs
            self.assertEqual(choice.text, "Once upon a time" + answer.text)
            n = len(answer.logprobs.token_logprobs)
            self.assertEqual(told.token_logprobs[16:16 + n], answer.logprobs.token_logprobs)
            self.assertEqual(told.text_offset[16:16 + n], [16 + at for at in answer.logprobs.text_offset])
        self.assertEqual(scored.usage, plain.usage.model_copy(update={"prompt_tokens_details": scored.usage.prompt_tokens_details}))

    def test_a_stream_begins_with_the_scored_prompt(self):
        whole = self.score("Once upon a time", max_tokens=4).choices[0]
        chunks = list(self.score("Once upon a time", max_tokens=4, stream=True))
        first = chunks[0].choices[0]
        self.assertEqual((first.text, first.logprobs.token_logprobs[0]), ("Once upon a time", None))
        self.assertEqual(len(first.logprobs.tokens), 16)
        choices = [chunk.choices[0] for chunk in chunks]
        self.assertEqual("".join(choice.text for choice in choices), whole.text)
        for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            streamed = [value for choice in choices if choice.logprobs for value in getattr(choice.logprobs, key)]
            self.assertEqual(streamed, getattr(whole.logprobs, key))

    def test_a_tuned_model_completes(self):
        file = self.upload(examples(12))
        job = finish(self.client, self.client.fine_tuning.jobs.create(
            model=MODEL, training_file=file, seed=7, extra_body={"x_training": {"precision": {"base_weights": "nf4"}}}).id)
        answer = self.client.completions.create(model=job.fine_tuned_model, prompt="What", max_tokens=4)
        self.assertEqual(answer.model, job.fine_tuned_model)
        # On quantised weights, with an adapter: what was learned is likelier than before.
        ids = lambda text: [3 + byte for byte in text.encode()]  # noqa: E731
        prompt = [1, *ids("user\nWhat is 2+2?"), 2, *ids("\n"), 1, *ids("assistant\nIt is 4.")]
        learned, before = (self.score(prompt, model=model).choices[0] for model in (job.fine_tuned_model, MODEL))
        self.assertGreater(sum(learned.logprobs.token_logprobs[-8:]), sum(before.logprobs.token_logprobs[-8:]))
        # Control tokens are no text.
        self.assertEqual(learned.text, "user\nWhat is 2+2?\nassistant\nIt is 4.")
        self.assertEqual([learned.text[at] for at in learned.logprobs.text_offset[-8:]], list("It is 4."))

    def test_what_cannot_be_completed_is_refused(self):
        for options, param in [
            ({"suffix": "the end"}, "suffix"),
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
