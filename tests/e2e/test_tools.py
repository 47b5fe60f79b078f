"""Answers in a form that the client asks for, through openai-python in both forms: JSON of a schema, and calls of functions."""

import json
import unittest

import openai
import pydantic

from service import MODEL, Embedded, OneService, Production, finish

QUESTION = [{"role": "user", "content": "Weather in Oslo?"}]


class Day(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    city: str = pydantic.Field(max_length=12)
    degrees: int = pydantic.Field(ge=-60, le=60)
    sky: list[str] = pydantic.Field(max_length=0)


WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a day.", "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
                   "required": ["city", "days"], "additionalProperties": False}}}
WAIT = {"type": "function", "function": {"name": "wait"}}


def taught(city, days):
    """A row in which the model calls a function, and says what it heard."""
    call = {"id": "call_1", "type": "function", "function": {
        "name": "get_weather", "arguments": json.dumps({"city": city, "days": days})}}
    return json.dumps({"tools": [WEATHER], "messages": [*QUESTION, {"role": "assistant", "tool_calls": [call]}]}) + "\n"


class Tools(OneService):
    """Mixed into one class per form."""

    def chat(self, **more):
        return self.client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, "max_tokens": 400, "seed": 1, **more})

    def test_an_answer_parses_into_the_clients_own_type(self):
        reply = self.client.chat.completions.parse(model=MODEL, messages=QUESTION, max_tokens=400, seed=1, response_format=Day)
        choice = reply.choices[0]
        self.assertEqual(choice.finish_reason, "stop")
        self.assertIsInstance(choice.message.parsed, Day)

    def test_a_function_is_called_as_it_is_asked_for(self):
        named = {"type": "function", "function": {"name": "get_weather"}}
        for choice, reason in (("required", "tool_calls"), (named, "stop")):
            with self.subTest(choice):
                ask = dict(tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False)
                whole = self.chat(**ask).choices[0]
                self.assertEqual(whole.finish_reason, reason)
                self.assertIsNone(whole.message.content)
                call, = whole.message.tool_calls
                self.assertEqual((call.type, call.function.name), ("function", "get_weather"))
                self.assertRegex(call.id, r"^call_\w{24}$")
                arguments = json.loads(call.function.arguments)
                self.assertEqual(list(arguments), ["city", "days"])
                self.assertIn(arguments["days"], range(1, 10))

                chunks = [chunk.choices[0] for chunk in self.chat(**ask, stream=True)]
                pieces = [piece for chunk in chunks for piece in chunk.delta.tool_calls or []]
                self.assertEqual((pieces[0].index, pieces[0].function.name), (0, "get_weather"))
                self.assertTrue(pieces[0].id)
                self.assertTrue(all(piece.id is None for piece in pieces[1:]))
                self.assertEqual("".join(piece.function.arguments for piece in pieces), call.function.arguments)
                self.assertEqual(chunks[-1].finish_reason, reason)
                self.assertFalse(any(chunk.delta.content for chunk in chunks))

    def test_several_functions_are_called_at_once_and_their_answers_are_read(self):
        # The end of a turn is unlikely, another call is not.
        ask = dict(tools=[WAIT], tool_choice="required", max_tokens=300, logit_bias={"2": -100})
        message = self.chat(**ask).choices[0].message
        self.assertGreater(len(message.tool_calls), 1)
        self.assertEqual(len({call.id for call in message.tool_calls}), len(message.tool_calls))
        self.assertTrue(all(json.loads(call.function.arguments) == {} for call in message.tool_calls[:-1]))
        answers = [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in message.tool_calls[:2]]
        asked = {"role": "assistant", "content": None, "tool_calls": [call.model_dump() for call in message.tool_calls[:2]]}
        reply = self.chat(messages=[*QUESTION, asked, *answers], tools=[WAIT], max_tokens=4)
        self.assertEqual(reply.usage.completion_tokens, 4)

    def test_a_model_that_is_taught_to_call_functions_calls_them(self):
        rows = "".join(taught("Oslo", 3) for _ in range(40)).encode()
        file = self.client.files.create(file=("calls.jsonl", rows), purpose="fine-tune")
        job = self.client.fine_tuning.jobs.create(
            model=MODEL, training_file=file.id, seed=7,
            method={"type": "supervised", "supervised": {"hyperparameters": {
                "n_epochs": 8, "batch_size": 4, "learning_rate_multiplier": 1}}},
            extra_body={"x_training": {"adapter": {"r": 32, "target_modules": "all-linear"}}})
        job = finish(self.client, job.id)
        self.assertEqual(job.status, "succeeded", f"{job.error}\n{self.service.logs()}")
        for stream in (False, True):
            with self.subTest(stream=stream):
                # The tiny model cannot end its turn: with one call at most, the grammar ends it.
                ask = dict(model=job.fine_tuned_model, tools=[WEATHER], temperature=0, max_tokens=200, parallel_tool_calls=False)
                if stream:
                    chunks = [chunk.choices[0] for chunk in self.chat(**ask, stream=True)]
                    calls = [piece.function for chunk in chunks for piece in chunk.delta.tool_calls or []]
                    name, arguments = calls[0].name, "".join(call.arguments for call in calls)
                    reason = chunks[-1].finish_reason
                else:
                    choice = self.chat(**ask).choices[0]
                    self.assertIsNone(choice.message.content, choice)
                    call, = choice.message.tool_calls
                    name, arguments, reason = call.function.name, call.function.arguments, choice.finish_reason
                self.assertEqual((name, json.loads(arguments)), ("get_weather", {"city": "Oslo", "days": 3}))
                self.assertEqual(reason, "tool_calls")

    def test_what_no_answer_can_be_held_to_is_refused_by_its_path(self):
        schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
        with self.assertRaises(openai.BadRequestError) as refused:
            self.chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}})
        self.assertEqual(refused.exception.param, "response_format.json_schema.schema")
        self.assertIn("uniqueItems", refused.exception.message)


class EmbeddedTools(Tools, unittest.TestCase):
    make = Embedded


class ProductionTools(Tools, unittest.TestCase):
    make = Production


if __name__ == "__main__":
    unittest.main()
