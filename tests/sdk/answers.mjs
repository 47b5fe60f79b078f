// Everything that answers, through openai-node: tools, schemas, stored chats, completions, responses, embeddings, moderations.
import assert from 'node:assert/strict';
import { MODEL, all, client, refusal } from './client.mjs';

const { chat, completions, embeddings, responses } = client;
const messages = [{ role: 'user', content: 'Weather in Oslo?' }];
const parameters = {
  type: 'object', properties: { city: { type: 'string', maxLength: 8 } }, required: ['city'], additionalProperties: false,
};
const ask = { model: MODEL, messages, max_tokens: 400, seed: 1 };

const schema = { name: 'place', strict: true, schema: parameters };
const formed = await chat.completions.create({ ...ask, response_format: { type: 'json_schema', json_schema: schema } });
assert.deepEqual(Object.keys(JSON.parse(formed.choices[0].message.content)), ['city']);
const tools = [{ type: 'function', function: { name: 'get_weather', strict: true, parameters } }];
const forced = { ...ask, tools, tool_choice: 'required', parallel_tool_calls: false };
const [call] = (await chat.completions.create(forced)).choices[0].message.tool_calls;
const streamed = await chat.completions.stream(forced).finalChatCompletion();
assert.equal(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
const heard = [...messages, { role: 'assistant', tool_calls: [call] }, { role: 'tool', tool_call_id: call.id, content: 'rain' }];
assert.equal((await chat.completions.create({ ...ask, messages: heard, tools, max_tokens: 4 })).usage.completion_tokens, 4);

const kept = await chat.completions.create({ ...ask, max_tokens: 4, store: true, metadata: { by: 'node' } });
assert.equal((await chat.completions.retrieve(kept.id)).id, kept.id);
assert.deepEqual((await all(chat.completions.messages.list(kept.id))).map(({ content }) => content), ['Weather in Oslo?']);
assert.deepEqual((await chat.completions.update(kept.id, { metadata: { by: 'all' } })).metadata, { by: 'all' });
assert.deepEqual((await all(chat.completions.list({ metadata: { by: 'all' } }))).map(({ id }) => id), [kept.id]);
assert.ok((await chat.completions.delete(kept.id)).deleted);

const text = { model: MODEL, prompt: ['Once', 'Twice'], max_tokens: 6, temperature: 0 };
const gone = await completions.create(text);
const pieces = await all(completions.create({ ...text, stream: true }));
const joined = (index) => pieces.flatMap(({ choices }) => choices).filter((choice) => choice.index === index).map((c) => c.text).join('');
assert.deepEqual(gone.choices.map((choice) => choice.text), [joined(0), joined(1)]);

const hello = { model: MODEL, max_output_tokens: 16, temperature: 0 };
const first = await responses.create({ ...hello, input: 'Hello' });
assert.deepEqual([first.status, first.incomplete_details.reason], ['incomplete', 'max_output_tokens']);
const events = await all(responses.create({ ...hello, input: 'Hello', stream: true }));
assert.deepEqual([events[0].type, events.at(-1).type], ['response.created', 'response.incomplete']);
assert.equal(events.filter(({ type }) => type === 'response.output_text.delta').map(({ delta }) => delta).join(''), first.output_text);
const second = await responses.create({ ...hello, input: 'And?', previous_response_id: first.id });
const items = await all(responses.inputItems.list(second.id, { limit: 2, order: 'asc' }));
assert.deepEqual(items.map(({ role }) => role), ['user', 'assistant', 'user']);
assert.equal((await responses.inputTokens.count({ model: MODEL, input: 'Hello' })).input_tokens, first.usage.input_tokens);
await assert.rejects(responses.cancel(first.id), refusal(400));
await responses.delete(first.id);
await assert.rejects(responses.retrieve(first.id), refusal(404));
await assert.rejects(responses.create({ ...hello, input: 'Hello', background: true }), refusal(400, { param: 'background' }));

const numbers = await embeddings.create({ model: MODEL, input: ['a', 'b'], encoding_format: 'float' });
// By itself the SDK asks for base64 and decodes it.
const decoded = await embeddings.create({ model: MODEL, input: ['a', 'b'] });
decoded.data.forEach(({ embedding }, i) => embedding.forEach((x, k) => assert.ok(Math.abs(x - numbers.data[i].embedding[k]) < 1e-6)));
await assert.rejects(client.moderations.create({ input: 'x' }), refusal(400, { code: 'unsupported_endpoint' }));
console.log('all checks passed');
