// Webhooks through openai-node: endpoints, a test event, a job that is told of, signatures, a new secret.
import assert from 'node:assert/strict';
import http from 'node:http';
import { MODEL, all, client, examples, refusal, sleep, supervised, upload } from './client.mjs';

const { webhooks } = client;
const received = [];
const receiver = http.createServer(async (request, response) => {
  let body = '';
  for await (const piece of request) body += piece;
  received.push({ body, headers: request.headers });
  response.end();
}).listen(0, '127.0.0.1');
await new Promise((resolve) => receiver.once('listening', resolve));
const next = async () => {
  for (let i = 0; i < 600 && !received.length; i++) await sleep(50);
  return received.shift();
};

const url = `http://127.0.0.1:${receiver.address().port}/hook`;
const made = await webhooks.create({ name: 'node', url, event_types: ['fine_tuning.job.cancelled'] });
assert.equal((await webhooks.retrieve(made.id)).signing_secret, undefined);
assert.equal((await webhooks.update(made.id, { name: 'other' })).name, 'other');
assert.deepEqual((await all(webhooks.list({ limit: 1 }))).map(({ id }) => id), [made.id]);
assert.ok((await webhooks.eventTypes.list()).data.includes('batch.completed'));
await assert.rejects(webhooks.create({ name: 'x', url: 'https://localhost/', event_types: ['batch.failed'] }), refusal(400, { param: 'url' }));

const job = await client.fineTuning.jobs.create({
  model: MODEL, training_file: (await upload('a.jsonl', examples(12))).id, method: supervised({ n_epochs: 50, batch_size: 1 }),
});
await client.fineTuning.jobs.cancel(job.id);
const { body, headers } = await next();
const event = await webhooks.unwrap(body, headers, made.signing_secret);
assert.deepEqual([event.type, event.data.id], ['fine_tuning.job.cancelled', job.id]);
await assert.rejects(webhooks.unwrap(`${body} `, headers, made.signing_secret), /signature/);

const rotated = await webhooks.rotateSecret(made.id);
const tested = await webhooks.test(made.id, { event_type: 'batch.completed' });
assert.deepEqual([tested.success, tested.status_code], [true, 200]);
const test = await next();
assert.equal((await webhooks.unwrap(test.body, test.headers, rotated.signing_secret)).type, 'batch.completed');
await assert.rejects(webhooks.unwrap(test.body, test.headers, made.signing_secret), /signature/);
assert.ok((await webhooks.delete(made.id)).deleted);
receiver.close();
console.log('all checks passed');
