// The main job through openai-node: upload, job, events, checkpoints, result file, chat, stream, errors.
import assert from 'node:assert/strict';
import { MODEL, all, client, examples, finish, refusal, supervised, upload } from './client.mjs';

const file = await upload('node.jsonl', examples(12));
assert.equal(file.filename, 'node.jsonl');
assert.equal((await client.files.waitForProcessing(file.id)).status, 'processed');
assert.ok((await all(client.files.list({ limit: 1, purpose: 'fine-tune' }))).some(({ id }) => id === file.id));

const job = await finish(await client.fineTuning.jobs.create({
  model: MODEL, training_file: file.id, suffix: 'node', metadata: { by: 'node' }, method: supervised({ n_epochs: 2, batch_size: 4 }),
}));
assert.equal(job.status, 'succeeded', JSON.stringify(job.error));
assert.match(job.fine_tuned_model, new RegExp(`^ft:${MODEL}:[^:]+:node:\\w{8}$`));
assert.deepEqual((await all(client.fineTuning.jobs.list({ metadata: { by: 'node' } }))).map(({ id }) => id), [job.id]);

const events = await all(client.fineTuning.jobs.listEvents(job.id, { limit: 3 }));
assert.equal(events[0].message, 'The job has successfully completed');
assert.ok(events.length >= 10, `${events.length} events`);
const checkpoints = await all(client.fineTuning.jobs.checkpoints.list(job.id, { limit: 1 }));
assert.deepEqual(checkpoints.map(({ step_number }) => step_number), [6, 3]);
const csv = await (await client.files.content(job.result_files[0])).text();
assert.equal(csv.split('\n')[0], 'step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy');

const messages = [{ role: 'user', content: 'Say 3' }];
for (const model of [MODEL, ...checkpoints.map(({ fine_tuned_model_checkpoint: name }) => name)]) {
  const ask = { model, messages, max_tokens: 12, temperature: 0 };
  const whole = await client.chat.completions.create(ask);
  const chunks = await all(client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } }));
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? '').join(''), whole.choices[0].message.content);
  assert.deepEqual(chunks.at(-1).usage, whole.usage);
}

await assert.rejects(client.files.retrieve('file-nothing'), refusal(404, { type: 'invalid_request_error' }));
await assert.rejects(client.chat.completions.create({ model: 'nothing', messages }), refusal(404, { code: 'model_not_found' }));
await assert.rejects(client.fineTuning.jobs.cancel(job.id), refusal(400, { code: 'invalid_job_state' }));
assert.equal((await client.models.retrieve(job.fine_tuned_model)).id, job.fine_tuned_model);
assert.ok((await client.models.delete(job.fine_tuned_model)).deleted);
await assert.rejects(client.models.retrieve(job.fine_tuned_model), refusal(404, { code: 'model_not_found' }));
assert.ok((await client.files.delete(file.id)).deleted);
console.log('all checks passed');
