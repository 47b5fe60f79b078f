"""What our OpenAPI document knows of: its operations, the kinds of ids that they take, and what a tenant has of each kind. An operation with a
field that nobody said anything about here is an error, so that no id goes without an attack."""

import json
import random
import string
from typing import NamedTuple

from attack import MODEL, MULTIPART, ROOT, examples, form, quoted, wait_until
from test_adapters import archive, tensors, weights

DOCUMENT = json.loads((ROOT / "openapi/openapi.json").read_text())
ALPHABET = string.ascii_letters + string.digits
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
HOOK = {"name": "hook", "url": "https://hook.example/x", "event_types": ["fine_tuning.job.succeeded"]}


def drawn(n=20):
    return "".join(random.choices(ALPHABET, k=n))


def random_like(id):
    """An id of the same form that nobody has."""
    stem = next(i for i in range(len(id) - 1, -1, -1) if not id[i].isalnum()) + 1
    return id[:stem] + drawn(len(id) - stem)


# --- operations and where ids stand in them


class Operation(NamedTuple):
    id: str
    method: str
    path: str
    is_administrators: bool
    parameters: list
    body: dict

    @property
    def ids(self):
        """The names of the ids in the path."""
        return [p["name"] for p in self.parameters if p["in"] == "path"]


def all_operations():
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield Operation(operation["operationId"], method.upper(), path, {"AdminApiKey": []} in operation.get("security", []),
                            operation.get("parameters", []), operation.get("requestBody", {}).get("content", {}))


def operations():
    """(method, path, operation, names of the ids in the path) of every route of a project."""
    for operation in all_operations():
        if not operation.is_administrators:
            yield operation.method, operation.path, {"parameters": operation.parameters}, operation.ids


class Place(NamedTuple):
    """Where an id stands: `where` is `path`, `query`, `header` or `body`, `kind` what it names."""
    operation: Operation
    where: str
    name: str
    kind: str

    def __str__(self):
        return f"{self.operation.method} {self.operation.path} {self.name}"


# Ids in paths are of the kind that their name says, but for these.
IN_PATH = {"fine_tuned_model_checkpoint": "model", ("delete-project-user", "user_id"): "member", ("retrieve-project-user", "user_id"): "member",
           ("modify-project-user", "user_id"): "member"}
USAGE = {"project_ids": "project_id", "user_ids": "user_id", "api_key_ids": "spender", "models": "model"}
IN_QUERY = {
    "listBatches": {"after": "batch_id"},
    "listChatCompletions": {"after": "completion_id", "model": "model"},
    "getChatCompletionMessages": {"after": "message"},
    "listFiles": {"after": "file_id"},
    "listPaginatedFineTuningJobs": {"after": "fine_tuning_job_id"},
    "listFineTuningJobCheckpoints": {"after": "checkpoint"},
    "listFineTuningEvents": {"after": "event"},
    "streamFineTuningJob": {"after": "event", "Last-Event-ID": "event"},
    "listInputItems": {"after": "item"},
    "listWebhookEndpoints": {"after": "webhook_endpoint_id"},
    "listFineTuningCheckpointPermissions": {"after": "permission_id", "project_id": "project_id"},
    "admin-api-keys-list": {"after": "key_id"},
    "list-audit-logs": {"after": "audit_log", "before": "audit_log", "project_ids[]": "project_id", "actor_ids[]": "actor",
                        "actor_emails[]": "actor_email", "resource_ids[]": "resource"},
    "list-invites": {"after": "invite_id"},
    "list-projects": {"after": "project_id"},
    "list-project-api-keys": {"after": "api_key_id"},
    "list-project-rate-limits": {"after": "rate_limit_id"},
    "list-project-service-accounts": {"after": "service_account_id"},
    "list-project-users": {"after": "member"},
    "list-users": {"after": "user_id", "emails": "email", "emails[]": "email"},
    "usage-completions": USAGE, "usage-embeddings": USAGE, "usage-moderations": USAGE,
    "usage-costs": {"project_ids": "project_id", "api_key_ids": "spender"},
}
IN_BODY = {
    "createBatch": {"input_file_id": "batch_file"},
    "createChatCompletion": {"model": "model"},
    "createCompletion": {"model": "model"},
    "createEmbedding": {"model": "model"},
    "createResponse": {"model": "model", "previous_response_id": "response_id"},
    "Getinputtokencounts": {"model": "model", "previous_response_id": "response_id"},
    "createFineTuningJob": {"model": "model", "training_file": "file_id", "validation_file": "file_id", "x_training.adapter.continue_from": "model"},
    "validateFile": {"model": "model", "validation_file": "file_id", "x_training.adapter.continue_from": "model"},
    "completeUpload": {"part_ids.[]": "part_id"},
    "createAdapter": {"base_model": "model"},
    "createModelAlias": {"model": "model"},
    "createFineTuningCheckpointPermission": {"project_ids.[]": "project_id"},
    "inviteUser": {"projects.[].id": "project_id"},
    "create-project-user": {"user_id": "user_id", "email": "email"},
    "update-project-model-permissions": {"model_ids.[]": "model"},
}
# What names nobody's object, in any query, and in any body with all that stands below it. An alias, a project and an invitation are named by
# whoever makes them: `test_s33_names_that_others_have_are_free` is about those.
NO_ID_IN_QUERY = {
    "limit", "order", "purpose", "metadata", "stream", "include_archived", "owner_project_access", "start_time", "end_time", "bucket_width", "group_by",
    "page", "batch", "x_dry_run", "format", "type", "event_types[]", "effective_at[gt]", "effective_at[gte]", "effective_at[lt]", "effective_at[lte]"}
NO_ID_IN_BODY = {
    "completion_window", "currency", "data", "encoding_format", "endpoint", "event_type", "event_types", "expires_after", "file", "filename", "hyperparameters",
    "include", "input", "instructions", "integrations", "interval", "logit_bias", "md5", "messages", "metadata", "method", "mime_type", "modalities", "mode", "name",
    "output_expires_after", "projects.[].role", "prompt", "purpose", "response_format", "role", "scopes", "stop", "stream_options", "suffix", "text",
    "tool_choice", "tools", "truncation", "url", "user", "x_training.data", "x_training.memory", "x_training.precision",
    *(f"x_training.adapter.{name}" for name in ("alpha_pattern", "bias", "init", "modules_to_save", "rank_pattern", "target_modules", "type"))}
NAMES = {("createModelAlias", "id"), ("inviteUser", "email")}


def fields(schema, path=(), within=()):
    """The paths of all values of a body in which an id could stand: texts that are no words of a list, and what may be anything."""
    if "$ref" in schema:
        if schema["$ref"] in within:
            return
        within += (schema["$ref"],)
        schema = DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    parts = [part for words in ("oneOf", "anyOf", "allOf") for part in schema.get(words, [])]
    for part in parts:
        yield from fields(part, path, within)
    for name, part in schema.get("properties", {}).items():
        yield from fields(part, (*path, name), within)
    if "items" in schema:
        yield from fields(schema["items"], (*path, "[]"), within)
    is_anything = not parts and not schema.keys() & {"type", "properties", "items", "enum"}
    if (schema.get("type") == "string" and "enum" not in schema) or is_anything or isinstance(schema.get("additionalProperties"), dict):
        yield ".".join(path)


def kind_in_path(operation, name):
    return IN_PATH.get((operation.id, name)) or IN_PATH.get(name, name)


def places():
    """Every place of every operation in which an id stands. Raises: nobody said what stands there."""
    for operation in all_operations():
        for parameter in operation.parameters:
            where, name = parameter["in"], parameter["name"]
            if where == "path":
                yield Place(operation, where, name, kind_in_path(operation, name))
            elif name in IN_QUERY.get(operation.id, {}):
                yield Place(operation, where, name, IN_QUERY[operation.id][name])
            elif name not in NO_ID_IN_QUERY:
                raise AssertionError(f"{operation.id}: does {name} of the {where} name an object? IN_QUERY or NO_ID_IN_QUERY must say so")
        for content in operation.body.values():
            for name in sorted(set(fields(content["schema"]))):
                if name in IN_BODY.get(operation.id, {}):
                    yield Place(operation, "body", name, IN_BODY[operation.id][name])
                elif (operation.id, name) not in NAMES and not any(f"{name}.".startswith(f"{free}.") for free in NO_ID_IN_BODY):
                    raise AssertionError(f"{operation.id}: does {name} of the body name an object? IN_BODY or NO_ID_IN_BODY must say so")


# --- what a tenant has


class World:
    """What a tenant has, one of each kind, made when it is first asked for."""

    def __init__(self, tenant):
        self.tenant, self.target, self.ids = tenant, tenant.target, {}

    def __getitem__(self, kind):
        if kind not in self.ids:
            self.ids[kind] = self.new(kind)
        return self.ids[kind]

    def new(self, kind):
        return MAKERS[kind](self)

    def send(self, method, path, body=None, **options):
        """What the tenant is answered."""
        reply = self.target.send(method, f"/v1/{path}", body, key=self.tenant.key, **options)
        assert reply.status == 200, f"{method} {path}: {reply}"
        return reply.json()

    def administer(self, method, path, body=None):
        reply = self.target.send(method, f"/v1/{path}", body, key=self.tenant.administrator)
        assert reply.status == 200, f"{method} {path}: {reply}"
        return reply.json()

    def of_project(self, path, body):
        return self.administer("POST", f"organization/projects/{self.tenant.project}/{path}", body)["id"]

    def luthier(self, *order):
        return self.target.luthier(*order, "--organization", self.tenant.organization)

    def key(self, name):
        """The id and the secret of a new key of the project that is nobody's."""
        project, = self.target.rows(f"select name from projects where id = '{self.tenant.project}'")[0]
        secret = self.luthier("key", "create", "--project", project, "--name", name)
        return self.target.rows(f"select id from api_keys where name = '{name}'")[0][0], secret


def adapter(world):
    bundle = archive(weights(tensors(value=random.uniform(0.001, 0.02))))
    body = form([("base_model", None, MODEL), ("file", "adapter.zip", bundle)])
    return world.send("POST", "x/adapters", body, headers={"Content-Type": MULTIPART})["id"]


def batch_file(world):
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {**QUESTION, "max_tokens": 1}}
    return world.tenant.client.files.create(file=("batch.jsonl", json.dumps(line).encode()), purpose="batch").id


def ended(world, path):
    """Waits until what is behind the path has ended, so that it stays as it is."""
    wait_until(f"{path} ends", lambda: world.send("GET", path)["status"] not in ("validating", "in_progress", "finalizing"))


def batch(world):
    body = {"input_file_id": batch_file(world), "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    id = world.send("POST", "batches", body)["id"]
    ended(world, f"batches/{id}")
    return id


def dry_run(world):
    id = world.send("POST", f"x/files/{world['file_id']}/validate", {"model": MODEL})["id"]
    ended(world, f"x/dry_runs/{id}")
    return id


def upload(world):
    return world.send("POST", "uploads", {"bytes": 3, "filename": "a.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"})["id"]


def part(world):
    body = form([("data", "part", b"{}\n")])
    return world.send("POST", f"uploads/{world['upload_id']}/parts", body, headers={"Content-Type": MULTIPART})["id"]


def first(path):
    """Of a list, what is in it."""
    return lambda world: world.send("GET", path(world))["data"][0]["id"]


def user(world):
    return world.luthier("user", "add", f"{drawn().lower()}@people.example")


def email(world):
    return world.administer("GET", f"organization/users/{world['user_id']}")["email"]


def actor_email(world):
    """Of somebody who is in the audit log."""
    email = f"{drawn().lower()}@people.example"
    world.luthier("user", "add", email, "--role", "owner")
    key = world.luthier("admin-key", "create", "--user", email)
    body = {"email": f"{drawn().lower()}@people.example", "role": "reader"}
    assert world.target.send("POST", "/v1/organization/invites", body, key=key).status == 200
    return email


def entries(world):
    return world.administer("GET", "organization/audit_logs?limit=100")["data"]


def spender(world):
    """A key that used the tenant's model."""
    id, secret = world.key(f"spender {drawn()}")
    for path, body in (("chat/completions", {**QUESTION, "model": world["model"], "max_tokens": 1, "store": True}),
                       ("embeddings", {"model": world["model"], "input": "Hi"})):
        reply = world.target.send("POST", f"/v1/{path}", body, key=secret)
        assert reply.status == 200, reply
    return id


def permission(world):
    project = world.new("second_project")
    granted = world.administer("POST", f"fine_tuning/checkpoints/{quoted(world['model'])}/permissions", {"project_ids": [project]})
    return granted["data"][0]["id"]


MAKERS = {
    "file_id": lambda world: world.tenant.upload(examples(12)),
    "batch_file": batch_file,
    "fine_tuning_job_id": lambda world: world.tenant.job.id,
    "model": adapter,
    "checkpoint_model": lambda world: world.tenant.checkpoints[0].fine_tuned_model_checkpoint,
    "upload_id": upload,
    "part_id": part,
    "completion_id": lambda world: world.send("POST", "chat/completions", {**QUESTION, "max_tokens": 1, "store": True})["id"],
    "batch_id": batch,
    "webhook_endpoint_id": lambda world: world.send("POST", "webhook_endpoints", HOOK)["id"],
    "dry_run_id": dry_run,
    "alias": lambda world: world.send("POST", "x/model_aliases", {"id": f"old-{drawn()}", "model": MODEL})["id"],
    "response_id": lambda world: world.send("POST", "responses", {"model": MODEL, "input": "Hi", "max_output_tokens": 16})["id"],
    "event": first(lambda world: f"fine_tuning/jobs/{world['fine_tuning_job_id']}/events"),
    "checkpoint": first(lambda world: f"fine_tuning/jobs/{world['fine_tuning_job_id']}/checkpoints"),
    "message": first(lambda world: f"chat/completions/{world['completion_id']}/messages"),
    "item": first(lambda world: f"responses/{world['response_id']}/input_items"),
    "project_id": lambda world: world.tenant.project,
    "second_project": lambda world: world.administer("POST", "organization/projects", {"name": f"second {drawn()}"})["id"],
    "user_id": user,
    "email": email,
    "member": lambda world: world.of_project("users", {"user_id": world.new("user_id"), "role": "member"}),
    "service_account_id": lambda world: world.of_project("service_accounts", {"name": "bot"}),
    "api_key_id": lambda world: world.key(f"key {drawn()}")[0],
    "spender": spender,
    "key_id": lambda world: world.administer("POST", "organization/admin_api_keys", {"name": "more"})["id"],
    "invite_id": lambda world: world.administer("POST", "organization/invites", {"email": f"{drawn().lower()}@people.example", "role": "reader"})["id"],
    "rate_limit_id": lambda world: f"rl-{world['model']}",
    "permission_id": permission,
    "audit_log": lambda world: entries(world)[0]["id"],
    "resource": lambda world: world["service_account_id"],
    "actor": lambda world: next(entry["actor"] for entry in entries(world) if entry["actor"])["api_key"]["id"],
    "actor_email": actor_email,
}
# What each operation wants in its body, so that it gets as far as the id.
BODIES = {
    "createBatch": lambda world: {"input_file_id": world["batch_file"], "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    "createChatCompletion": lambda world: {**QUESTION, "max_tokens": 1},
    "updateChatCompletion": lambda world: {"metadata": {"stolen": "yes"}},
    "createCompletion": lambda world: {"model": MODEL, "prompt": "Hi", "max_tokens": 1},
    "createEmbedding": lambda world: {"model": MODEL, "input": "Hi"},
    "createResponse": lambda world: {"model": MODEL, "input": "Hi", "max_output_tokens": 16},
    "Getinputtokencounts": lambda world: {"model": MODEL, "input": "Hi"},
    "createFineTuningJob": lambda world: {"model": MODEL, "training_file": world["file_id"]},
    "validateFile": lambda world: {"model": MODEL},
    "addUploadPart": lambda world: [("data", "part", b"{}\n")],
    "completeUpload": lambda world: {"part_ids": [world["part_id"]]},
    "updateWebhookEndpoint": lambda world: {"name": "stolen"},
    "rotateWebhookSecret": lambda world: {},
    "testWebhookEndpoint": lambda world: {"event_type": "fine_tuning.job.succeeded"},
    "createAdapter": lambda world: [("base_model", None, MODEL), ("file", "adapter.zip", archive(weights(tensors())))],
    "createModelAlias": lambda world: {"id": f"old-{drawn()}", "model": MODEL},
    "createFineTuningCheckpointPermission": lambda world: {"project_ids": [world["second_project"]]},
    "inviteUser": lambda world: {
        "email": f"{drawn().lower()}@people.example", "role": "reader", "projects": [{"id": world["project_id"], "role": "member"}]},
    "admin-api-keys-create": lambda world: {"name": "stolen"},
    "create-project": lambda world: {"name": f"stolen {drawn()}"},
    "modify-project": lambda world: {"name": f"stolen {drawn()}"},
    "create-project-user": lambda world: {"user_id": world["user_id"], "role": "member"},
    "modify-project-user": lambda world: {"role": "owner"},
    "modify-user": lambda world: {"role": "owner"},
    "create-project-service-account": lambda world: {"name": "stolen"},
    "update-project-service-account": lambda world: {"name": "stolen"},
    "CreateanAPIkeyforaserviceaccount": lambda world: {"name": "stolen"},
    "update-project-model-permissions": lambda world: {"mode": "deny_list", "model_ids": ["stolen"]},
    "update-project-spend-limit": lambda world: {"threshold_amount": 4321, "currency": "USD", "interval": "month"},
    "update-project-rate-limits": lambda world: {"max_requests_per_1_minute": 4321},
}
