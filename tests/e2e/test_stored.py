"""Chat completions that are kept, through openai-python, in both forms."""

import unittest

import openai

from service import MODEL, Embedded, OneService, Production

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "you"}]},
]


class Stored(OneService):
    """Mixed into one class per form."""

    def answer(self, **options):
        return self.client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4, temperature=0, **options)

    def kept(self, **metadata):
        return self.answer(store=True, metadata=metadata)

    def test_a_completion_is_kept_changed_and_deleted(self):
        completions = self.client.chat.completions
        answer = self.answer(store=True, metadata={"k": "v"}, logprobs=True)
        read = completions.retrieve(answer.id)
        self.assertEqual(read.to_dict(), {**answer.to_dict(), "metadata": {"k": "v"}})
        self.assertEqual(completions.update(answer.id, metadata={"k": "w"}).metadata, {"k": "w"})
        self.assertEqual([one.id for one in completions.list(metadata={"k": "w"})], [answer.id])
        self.assertEqual(completions.list(metadata={"k": "v"}).data, [])
        self.assertTrue(completions.delete(answer.id).deleted)
        with self.assertRaises(openai.NotFoundError):
            completions.retrieve(answer.id)

    def test_messages_are_told_as_they_were_sent(self):
        answer = self.kept(of="messages")
        # The SDK's types know messages of assistants alone.
        messages = list(self.lenient.chat.completions.messages.list(answer.id, limit=1))
        self.assertEqual([message.role for message in messages], ["system", "user"])
        self.assertEqual(messages[0].content, "Be brief.")
        self.assertEqual("".join(part.text for part in messages[1].content_parts), "Hello, you")

    def test_a_streamed_completion_is_kept(self):
        chunks = list(self.answer(store=True, stream=True))
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        read = self.client.chat.completions.retrieve(chunks[0].id)
        self.assertEqual(read.choices[0].message.content, text)

    def test_lists_are_paged_and_what_was_not_to_be_kept_is_not_there(self):
        ids = [self.kept(of="pages", n=str(i)).id for i in range(3)]
        self.answer(metadata={"of": "pages"})
        self.answer(store=False, metadata={"of": "pages"})
        listed = self.client.chat.completions.list
        self.assertEqual([one.id for one in listed(metadata={"of": "pages"}, limit=2)], ids)
        newest_first = listed(metadata={"of": "pages"}, limit=2, order="desc")
        self.assertEqual([one.id for one in newest_first], ids[::-1])
        one = listed(model=MODEL, metadata={"of": "pages", "n": "1"}).data
        self.assertEqual([completion.id for completion in one], ids[1:2])


class EmbeddedStored(Stored, unittest.TestCase):
    make = staticmethod(Embedded)


class ProductionStored(Stored, unittest.TestCase):
    make = staticmethod(Production)


if __name__ == "__main__":
    unittest.main()
