"""Responses through openai-python, in both forms: beside the chat that says the same, streamed, gone on with, read back."""

import json
import unittest

import openai
import pydantic

from service import MODEL, Embedded, OneService, Production

WEATHER = {"type": "function", "name": "get_weather", "description": "The weather of a day.", "strict": True,
           "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}},
                          "required": ["city"], "additionalProperties": False}}


class Day(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    city: str = pydantic.Field(max_length=12)
    degrees: int = pydantic.Field(ge=-60, le=60)


class Responses(OneService):
    """Mixed into one class per form."""

    def respond(self, input, **options):
        options = {"max_output_tokens": 16, "temperature": 0, **options}
        return self.client.responses.create(model=MODEL, input=input, **options)

    def chat(self, messages, **options):
        options = {"max_tokens": 16, "temperature": 0, **options}
        return self.client.chat.completions.create(model=MODEL, messages=messages, **options)

    def test_a_response_says_what_a_chat_says(self):
        response = self.respond("Hello", instructions="Be brief.", include=["message.output_text.logprobs"], top_logprobs=2)
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
        chat = self.chat(messages, logprobs=True, top_logprobs=2)
        self.assertEqual(response.output_text, chat.choices[0].message.content)
        self.assertEqual((response.status, response.incomplete_details.reason), ("incomplete", "max_output_tokens"))
        self.assertEqual(response.usage.input_tokens, chat.usage.prompt_tokens)
        self.assertEqual(response.usage.output_tokens, chat.usage.completion_tokens)
        told = [token.to_dict() for token in response.output[0].content[0].logprobs]
        self.assertEqual(told, [token.to_dict() for token in chat.choices[0].logprobs.content])
        counted = self.client.responses.input_tokens.count(model=MODEL, input="Hello", instructions="Be brief.")
        self.assertEqual(counted.input_tokens, chat.usage.prompt_tokens)

    def test_a_conversation_goes_on_without_being_sent_again(self):
        first = self.respond("Hello", instructions="Be brief.")
        second = self.respond([{"role": "user", "content": [{"type": "input_text", "text": "And?"}]}], previous_response_id=first.id)
        said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": first.output_text}]
        chat = self.chat([*said, {"role": "user", "content": "And?"}])
        self.assertEqual(second.output_text, chat.choices[0].message.content)
        self.assertEqual(second.usage.input_tokens, chat.usage.prompt_tokens)
        items = list(self.client.responses.input_items.list(second.id, limit=2, order="asc"))
        self.assertEqual([item.role for item in items], ["user", "assistant", "user"])
        self.assertEqual(items[1], first.output[0])
        # What was said before stands by itself.
        self.client.responses.delete(first.id)
        third = self.respond("Well?", previous_response_id=second.id)
        self.assertEqual(len(list(self.client.responses.input_items.list(third.id))), 5)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.respond("Well?", previous_response_id=first.id)
        self.assertEqual((caught.exception.code, caught.exception.param), ("previous_response_not_found", "previous_response_id"))

    def test_a_stream_adds_up_to_the_response(self):
        with self.client.responses.stream(model=MODEL, input="Hello", max_output_tokens=16, temperature=0) as stream:
            events = list(stream)
        kinds = [event.type for event in events]
        self.assertEqual([event.sequence_number for event in events], list(range(len(events))))
        self.assertEqual(kinds[:4], ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"])
        self.assertEqual(kinds[-4:], ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete"])
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        whole = self.respond("Hello")
        self.assertEqual(text, whole.output_text)
        last = events[-1].response
        self.assertEqual(last.output_text, text)
        self.assertEqual(self.client.responses.retrieve(last.id), last)

    def test_an_answer_parses_into_the_clients_own_type(self):
        options = {"model": MODEL, "input": "Weather in Oslo?", "text_format": Day, "extra_body": {"seed": 1}}
        response = self.client.responses.parse(**options)
        self.assertIsInstance(response.output_parsed, Day)
        with self.client.responses.stream(**options) as stream:
            self.assertEqual(stream.get_final_response().output_parsed, response.output_parsed)

    def test_a_function_is_called_and_its_answer_read(self):
        ask = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 200, "extra_body": {"seed": 1}}
        first = self.respond("Weather in Oslo?", **ask)
        call, = first.output
        self.assertEqual((first.status, call.type, call.name), ("completed", "function_call", "get_weather"))
        self.assertEqual(list(json.loads(call.arguments)), ["city"])
        streamed = list(self.respond("Weather in Oslo?", **ask, stream=True))
        pieces = [event.delta for event in streamed if event.type == "response.function_call_arguments.delta"]
        self.assertEqual("".join(pieces), call.arguments)
        self.assertEqual(streamed[-1].response.output[0].arguments, call.arguments)
        came = {"type": "function_call_output", "call_id": call.call_id, "output": "20 degrees"}
        kept = self.respond([came], previous_response_id=first.id, tools=[WEATHER])
        sent = self.respond([{"role": "user", "content": "Weather in Oslo?"}, *first.output, came], tools=[WEATHER])
        self.assertEqual(kept.output_text, sent.output_text)
        self.assertEqual(kept.usage.input_tokens, sent.usage.input_tokens)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.respond("Well?", previous_response_id=first.id)
        self.assertEqual(caught.exception.param, "input")

    def test_a_response_is_kept_unless_the_client_says_otherwise(self):
        kept = self.respond("Hello", metadata={"k": "v"})
        self.assertEqual(self.client.responses.retrieve(kept.id), kept)
        with self.assertRaises(openai.BadRequestError):
            self.client.responses.cancel(kept.id)
        self.client.responses.delete(kept.id)
        for gone in (kept.id, self.respond("Hello", store=False).id):
            with self.assertRaises(openai.NotFoundError):
                self.client.responses.retrieve(gone)

    def test_what_is_not_done_is_refused_by_name(self):
        image = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]
        for options, param in (
            ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
            ({"background": True}, "background"),
            ({"truncation": "auto"}, "truncation"),
            ({"input": image}, "input[0].content[0].type"),
            ({"text": {"format": {"type": "json_schema", "name": "x", "strict": True, "schema": {"not": {}}}}}, "text.format.schema"),
        ):
            with self.subTest(param), self.assertRaises(openai.BadRequestError) as caught:
                self.respond(**{"input": "Hello", **options})
            self.assertEqual(caught.exception.param, param)


class EmbeddedResponses(Responses, unittest.TestCase):
    make = staticmethod(Embedded)


class ProductionResponses(Responses, unittest.TestCase):
    make = staticmethod(Production)


if __name__ == "__main__":
    unittest.main()
