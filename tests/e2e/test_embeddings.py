"""Embeddings through openai-python, in both forms."""

import json
import unittest

import openai

from service import MODEL, Embedded, OneService, Production, examples, finish, wait_until
from tiny_model import HIDDEN, SPECIAL


def norm(vector):
    return sum(x * x for x in vector) ** 0.5


class Embeddings(OneService):
    """Mixed into one class per form."""

    def embed(self, input, **options):
        return self.lenient.embeddings.create(model=MODEL, input=input, **options)

    def test_texts_become_vectors_of_unit_length(self):
        # The SDK asks for base64 by itself and decodes it; its types speak of numbers alone.
        reply = self.embed(["Hello", "Hello", "Something else"])
        self.assertEqual(([d.index for d in reply.data], reply.model), ([0, 1, 2], MODEL))
        self.assertEqual((reply.usage.prompt_tokens, reply.usage.total_tokens), (5 + 5 + 14, 24))
        first, same, other = (d.embedding for d in reply.data)
        self.assertEqual(len(first), HIDDEN)
        self.assertAlmostEqual(norm(first), 1, places=5)
        self.assertEqual(first, same)
        self.assertLess(sum(a * b for a, b in zip(first, other)), 0.999)
        floats = self.client.embeddings.create(model=MODEL, input="Hello", encoding_format="float")
        self.assertEqual(floats.data[0].embedding, first)
        cut = self.embed("Hello", dimensions=10).data[0].embedding
        for a, b in zip(cut, first[:10], strict=True):
            self.assertAlmostEqual(a, b / norm(first[:10]), places=5)

    def test_tokens_are_embedded_as_their_text(self):
        # A token a byte, behind the control tokens.
        ids = [len(SPECIAL) + byte for byte in b"Hello"]
        self.assertEqual(self.embed([ids]).data[0].embedding, self.embed("Hello").data[0].embedding)
        self.assertEqual(self.embed(ids).usage.prompt_tokens, 5)

    def test_what_a_model_knows_nothing_of_has_no_direction(self):
        # The row of a control token is zero in the tiny model, and so are all states that follow from it alone.
        self.assertEqual(self.embed([0]).data[0].embedding, [0.0] * HIDDEN)

    def test_long_texts_are_read_in_pieces_beside_each_other(self):
        long = self.embed(["x" * 1000] * 4)
        self.assertEqual(long.usage.prompt_tokens, 4000)
        self.assertAlmostEqual(norm(long.data[3].embedding), 1, places=5)

    def test_a_tuned_model_has_its_own_vectors_and_batches_ask_for_them(self):
        job = self.client.fine_tuning.jobs.create(model=MODEL, training_file=self.upload(examples(12)), seed=7)
        tuned = finish(self.client, job.id).fine_tuned_model
        live = self.lenient.embeddings.create(model=tuned, input="Hello").data[0].embedding
        self.assertNotEqual(live, self.embed("Hello").data[0].embedding)
        request = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": tuned, "input": "Hello"}}
        file = self.client.files.create(file=("requests.jsonl", json.dumps(request).encode()), purpose="batch")
        made = self.client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
        batch = wait_until("the batch ends", lambda: (b := self.client.batches.retrieve(made.id)).completed_at and b)
        line = json.loads(self.client.files.content(batch.output_file_id).text)
        self.assertEqual(batch.usage.input_tokens, 5)
        for a, b in zip(line["response"]["body"]["data"][0]["embedding"], live, strict=True):
            self.assertAlmostEqual(a, b, places=6)

    def test_what_has_no_embedding_is_refused(self):
        for input, options, param in [
            ("", {}, "input"), (["a", ""], {}, "input[1]"), ("x" * 2000, {}, "input"), ([5, 1 << 20], {}, "input"),
            ("a", {"dimensions": HIDDEN + 1}, "dimensions"),
        ]:
            with self.assertRaises(openai.BadRequestError) as caught:
                self.embed(input, **options)
            self.assertEqual(caught.exception.param, param)


class EmbeddedEmbeddings(Embeddings, unittest.TestCase):
    make = staticmethod(Embedded)


class ProductionEmbeddings(Embeddings, unittest.TestCase):
    make = staticmethod(Production)


if __name__ == "__main__":
    unittest.main()
