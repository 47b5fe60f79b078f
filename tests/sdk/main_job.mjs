// The main job through openai-node: upload, job, events, chat, stream, errors.
// Environment: NODE_SDK (folder with node_modules), BASE_URL, API_KEY, MODEL, TUNED (a model tuned before).
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import path from 'node:path';

const require = createRequire(path.join(process.env.NODE_SDK, 'package.json'));
const { OpenAI, toFile } = require('openai');
const { MODEL, TUNED } = process.env;
const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY });

const rows = Array.from({ length: 12 }, (_, i) => JSON.stringify({
  messages: [{ role: 'user', content: `Say ${i}` }, { role: 'assistant', content: `${i}` }],
}));
const file = await client.files.create({ file: await toFile(Buffer.from(rows.join('\n')), 'node.jsonl'), purpose: 'fine-tune' });
assert.equal(file.filename, 'node.jsonl');

let job = await client.fineTuning.jobs.create({
  model: MODEL,
  training_file: file.id,
  suffix: 'node',
  method: { type: 'supervised', supervised: { hyperparameters: { n_epochs: 2, batch_size: 4 } } },
});
while (!['succeeded', 'failed', 'cancelled'].includes(job.status)) {
  await new Promise((resolve) => setTimeout(resolve, 300));
  job = await client.fineTuning.jobs.retrieve(job.id);
}
assert.equal(job.status, 'succeeded', JSON.stringify(job.error));

let events = 0;
for await (const event of client.fineTuning.jobs.listEvents(job.id, { limit: 3 })) events += event.object === 'fine_tuning.job.event';
assert.ok(events >= 10, `${events} events`);

const messages = [{ role: 'user', content: 'Say 3' }];
for (const model of [TUNED, job.fine_tuned_model]) {
  const whole = await client.chat.completions.create({ model, messages, max_tokens: 12, temperature: 0 });
  let text = '';
  const stream = await client.chat.completions.create({ model, messages, max_tokens: 12, temperature: 0, stream: true });
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? '';
  assert.equal(text, whole.choices[0].message.content);
}

await assert.rejects(client.files.retrieve('file-nothing'), (e) => e.status === 404 && e.type === 'invalid_request_error');
await assert.rejects(
  client.chat.completions.create({ model: 'nothing', messages }), (e) => e.status === 404 && e.code === 'model_not_found');
console.log('all checks passed');
