// Jobs that end otherwise or learn otherwise, through openai-node: paused, resumed, cancelled, failed; by preference; from a tuned model.
import assert from 'node:assert/strict';
import { MODEL, client, examples, finish, refusal, supervised, until, upload } from './client.mjs';

const { jobs } = client.fineTuning;
const status = (job, ...statuses) => until(() => jobs.retrieve(job.id), ...statuses);

const file = await upload('long.jsonl', examples(200));
const long = await jobs.create({ model: MODEL, training_file: file.id, method: supervised({ n_epochs: 50, batch_size: 1 }) });
await status(long, 'running');
await jobs.pause(long.id);
await status(long, 'paused');
await assert.rejects(jobs.pause(long.id), refusal(400, { code: 'invalid_job_state' }));
await jobs.resume(long.id);
await status(long, 'running');
await jobs.cancel(long.id);
assert.equal((await finish(long)).status, 'cancelled');
await assert.rejects(jobs.cancel(long.id), refusal(400, { code: 'invalid_job_state' }));

const bad = await finish(await jobs.create({ model: MODEL, training_file: (await upload('bad.jsonl', Array(12).fill({}))).id }));
assert.deepEqual([bad.status, bad.error.code, bad.error.param], ['failed', 'invalid_training_file', 'training_file']);
await assert.rejects(jobs.create({ model: MODEL, training_file: 'file-nothing' }), refusal(400, { param: 'training_file' }));

const tuned = await finish(await jobs.create({
  model: MODEL, training_file: (await upload('first.jsonl', examples(12))).id, method: supervised({ n_epochs: 1 }),
}));
const answer = (content) => [{ role: 'assistant', content }];
const pairs = Array.from({ length: 12 }, (_, i) => ({
  input: { messages: [{ role: 'user', content: `Is ${i} odd?` }] },
  preferred_output: answer(i % 2 ? 'Yes.' : 'No.'), non_preferred_output: answer(i % 2 ? 'No.' : 'Yes.'),
}));
const ordered = await jobs.create({
  model: tuned.fine_tuned_model, training_file: (await upload('pairs.jsonl', pairs)).id,
  method: { type: 'dpo', dpo: { hyperparameters: { beta: 0.3, n_epochs: 1, batch_size: 4 } } },
});
assert.equal(ordered.hyperparameters, null);
const preferred = await finish(ordered);
assert.equal(preferred.status, 'succeeded', JSON.stringify(preferred.error));
assert.deepEqual([preferred.model, preferred.method.dpo.hyperparameters.beta], [tuned.fine_tuned_model, 0.3]);
console.log('all checks passed');
