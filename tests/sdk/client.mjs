// What the stories share. Environment: NODE_SDK (folder with node_modules), BASE_URL, API_KEY, ADMIN_KEY, MODEL,
// RECORD (a file to which every answer is added as a line of JSON: method, url, status, type, body).
import { appendFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

const require = createRequire(path.join(process.env.NODE_SDK, 'package.json'));
const { OpenAI, toFile } = require('openai');
export const { API_KEY, ADMIN_KEY, BASE_URL, MODEL, RECORD } = process.env;
export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function recorded(url, init) {
  const response = await fetch(url, init);
  const type = (response.headers.get('content-type') ?? '').split(';')[0];
  const answer = { method: init.method ?? 'GET', url: String(url), status: response.status, type };
  response.clone().text().then((body) => appendFileSync(RECORD, `${JSON.stringify({ ...answer, body })}\n`));
  return response;
}

export const connect = (apiKey, options = {}) => new OpenAI({ baseURL: BASE_URL, apiKey, fetch: recorded, ...options });
export const client = connect(API_KEY);

export const upload = async (name, rows, purpose = 'fine-tune') =>
  client.files.create({ file: await toFile(Buffer.from(rows.map((row) => JSON.stringify(row)).join('\n')), name), purpose });

export const examples = (n) => Array.from({ length: n }, (_, i) => ({
  messages: [{ role: 'user', content: `Say ${i}` }, { role: 'assistant', content: `${i}` }],
}));

export const supervised = (hyperparameters) => ({ type: 'supervised', supervised: { hyperparameters } });

/** The object that `get` gives once its status is one of these, within two minutes. */
export async function until(get, ...statuses) {
  for (const deadline = Date.now() + 120_000; ; await sleep(200)) {
    const found = await get();
    if (statuses.includes(found.status)) return found;
    if (Date.now() > deadline) throw new Error(`${found.id} is still ${found.status}, not one of ${statuses}`);
  }
}

export const finish = (job) => until(() => client.fineTuning.jobs.retrieve(job.id), 'succeeded', 'failed', 'cancelled');

/** All that a pager or a stream gives. */
export async function all(items) {
  const found = [];
  for await (const item of await items) found.push(item);
  return found;
}

/** For assert.rejects. */
export const refusal = (status, words = {}) => (error) =>
  error.status === status && Object.entries(words).every(([key, value]) => error[key] === value);
