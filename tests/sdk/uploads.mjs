// Files in parts through openai-node: parts at once, a checksum, a wrong one, a cancelled upload.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { client, examples, refusal } from './client.mjs';

const data = Buffer.from(examples(300).map((row) => `${JSON.stringify(row)}\n`).join(''));
const md5 = createHash('md5').update(data).digest('hex');
const create = (bytes) => client.uploads.create({ bytes, filename: 'big.jsonl', mime_type: 'text/jsonl', purpose: 'fine-tune' });
const add = (upload, piece) => client.uploads.parts.create(upload.id, { data: new File([piece], 'part') });

const upload = await create(data.length);
const cuts = [0, 5_000, 5_001, data.length];
const parts = await Promise.all(cuts.slice(1).map((end, i) => add(upload, data.subarray(cuts[i], end))));
const part_ids = parts.map(({ id }) => id);
await assert.rejects(client.uploads.complete(upload.id, { part_ids, md5: '0'.repeat(32) }), refusal(400, { param: 'md5' }));
const done = await client.uploads.complete(upload.id, { part_ids, md5 });
assert.deepEqual([done.status, done.file.bytes], ['completed', data.length]);
const back = Buffer.from(await (await client.files.content(done.file.id)).arrayBuffer());
assert.equal(createHash('md5').update(back).digest('hex'), md5);

const unwanted = await create(3);
await add(unwanted, '{}\n');
assert.equal((await client.uploads.cancel(unwanted.id)).status, 'cancelled');
await assert.rejects(add(unwanted, '{}\n'), refusal(400, { code: 'invalid_upload_state' }));
console.log('all checks passed');
