// Administration through openai-node: projects, keys, models, invites, shared checkpoints, usage, the log.
import assert from 'node:assert/strict';
import { ADMIN_KEY, API_KEY, MODEL, all, client, connect, examples, finish, refusal, supervised, upload } from './client.mjs';

const { organization } = connect('none', { adminAPIKey: ADMIN_KEY }).admin;
const { projects } = organization;
const ids = async (items) => (await all(items)).map(({ id }) => id);
const messages = [{ role: 'user', content: 'Hi' }];

const project = await projects.create({ name: 'node' });
assert.equal((await projects.retrieve(project.id)).name, 'node');
assert.equal((await projects.update(project.id, { name: 'node renamed' })).name, 'node renamed');
const account = await projects.serviceAccounts.create(project.id, { name: 'bot' });
const bot = connect(account.api_key.value, { maxRetries: 0 });
assert.ok((await ids(bot.models.list())).includes(MODEL));
assert.deepEqual(await ids(projects.apiKeys.list(project.id)), [account.api_key.id]);
await assert.rejects(bot.files.retrieve((await upload('ours.jsonl', examples(2))).id), refusal(404));

await projects.modelPermissions.update(project.id, { mode: 'allow_list', model_ids: ['another'] });
assert.deepEqual(await ids(bot.models.list()), []);
assert.ok((await projects.modelPermissions.delete(project.id)).deleted);

const job = await finish(await client.fineTuning.jobs.create({
  model: MODEL, training_file: (await upload('a.jsonl', examples(12))).id, method: supervised({ n_epochs: 1, batch_size: 12 }),
}));
const model = job.fine_tuned_model;
const chat = () => bot.chat.completions.create({ model, messages, max_tokens: 2 });
await assert.rejects(chat(), refusal(404, { code: 'model_not_found' }));
const { permissions } = connect(ADMIN_KEY, { adminAPIKey: ADMIN_KEY }).fineTuning.checkpoints;
const [granted] = await all(permissions.create(model, { project_ids: [project.id] }));
assert.equal((await chat()).model, model);
assert.deepEqual(await ids(permissions.list(model)), [granted.id]);
assert.ok((await permissions.delete(granted.id, { fine_tuned_model_checkpoint: model })).deleted);
await assert.rejects(chat(), refusal(404));

const key = await organization.adminAPIKeys.create({ name: 'ci' });
assert.equal((await organization.adminAPIKeys.retrieve(key.id)).value, undefined);
assert.ok((await ids(organization.adminAPIKeys.list())).includes(key.id));
assert.ok((await organization.adminAPIKeys.delete(key.id)).deleted);
const invite = await organization.invites.create({ email: 'node@example.com', role: 'reader' });
assert.equal((await organization.invites.retrieve(invite.id)).status, 'pending');
assert.ok((await organization.invites.delete(invite.id)).deleted);
assert.ok(Array.isArray((await organization.users.list()).data));

const start_time = Math.floor(Date.now() / 1000) - 3600;
for (const page of [await organization.usage.completions({ start_time }), await organization.usage.costs({ start_time })]) {
  assert.deepEqual([page.object, page.data[0].object], ['page', 'bucket']);
}
const created = await all(organization.auditLogs.list({ project_ids: [project.id], event_types: ['project.created'] }));
assert.deepEqual(created.map((entry) => entry['project.created'].id), [project.id]);

assert.equal((await projects.archive(project.id)).status, 'archived');
await assert.rejects(all(bot.models.list()), refusal(401, { code: 'project_archived' }));
assert.ok((await ids(projects.list({ include_archived: true }))).includes(project.id));
const uninvited = connect('none', { adminAPIKey: API_KEY }).admin.organization;
await assert.rejects(all(uninvited.projects.list()), refusal(403, { code: 'insufficient_permissions' }));
console.log('all checks passed');
