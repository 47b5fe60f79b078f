// Batches through openai-node: every request answered under its name, a bad file, a cancelled batch.
import assert from 'node:assert/strict';
import { MODEL, all, client, until, upload } from './client.mjs';

const chat = (custom_id, body = {}) => ({
  custom_id, method: 'POST', url: '/v1/chat/completions', body: { model: MODEL, messages: [{ role: 'user', content: 'Hi' }], max_tokens: 4, ...body },
});
const create = async (requests) => client.batches.create({
  input_file_id: (await upload('requests.jsonl', requests, 'batch')).id, endpoint: '/v1/chat/completions', completion_window: '24h',
});
const over = (batch) => until(() => client.batches.retrieve(batch.id), 'completed', 'failed', 'expired', 'cancelled');
const lines = async (file) => (await (await client.files.content(file)).text()).trim().split('\n').map((line) => JSON.parse(line));

const done = await over(await create([chat('a'), chat('b'), chat('bad', { n: 0 })]));
assert.equal(done.status, 'completed');
assert.deepEqual(done.request_counts, { total: 3, completed: 2, failed: 1 });
assert.deepEqual((await lines(done.output_file_id)).map(({ custom_id }) => custom_id), ['a', 'b']);
const [bad] = await lines(done.error_file_id);
assert.deepEqual([bad.custom_id, bad.response.status_code, bad.response.body.error.param], ['bad', 400, 'n']);

const failed = await over(await create([chat('a'), chat('a')]));
assert.deepEqual([failed.status, failed.errors.data[0].code], ['failed', 'duplicate_custom_id']);

const long = await create(Array.from({ length: 500 }, (_, i) => chat(`${i}`, { max_tokens: 120 })));
await until(() => client.batches.retrieve(long.id), 'in_progress');
assert.equal((await client.batches.cancel(long.id)).status, 'cancelling');
assert.equal((await over(long)).status, 'cancelled');
assert.ok((await all(client.batches.list({ limit: 1 }))).some(({ id }) => id === done.id));
console.log('all checks passed');
