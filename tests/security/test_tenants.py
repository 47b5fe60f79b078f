"""What others own is as absent as what never was (API1). The matrix is made of our own OpenAPI document: a new route with an id in its
path is attacked without a word here, and one whose id is of a new kind fails until `Kind` knows it."""

import json
import random
import string
import time

from attack import MODEL, MULTIPART, ROOT, Wire, examples, form, head, in_both_forms, quickest, quoted

DOCUMENT = json.loads((ROOT / "openapi/openapi.json").read_text())
ALPHABET = string.ascii_letters + string.digits


def operations():
    """(method, path, operation, names of the ids in the path) of every route of a project; those of an organisation open to admin keys
    alone (S08), and api/tests/administration asks them for what is another organisation's."""
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            if {"AdminApiKey": []} in operation.get("security", []):
                continue
            ids = [p["name"] for p in operation.get("parameters", []) if p["in"] == "path"]
            yield method.upper(), path, operation, ids


def random_like(id):
    """An id of the same form that nobody has."""
    stem = next(i for i in range(len(id) - 1, -1, -1) if not id[i].isalnum()) + 1
    return id[:stem] + "".join(random.choices(ALPHABET, k=len(id) - stem))


def made(path, body):
    """Makes an object, and gives its id."""
    def make(tenant):
        reply = tenant.target.send("POST", path, body(tenant) if callable(body) else body, key=tenant.key)
        assert reply.status == 200, reply
        return reply.json()["id"]

    return make


def batch(tenant):
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {**QUESTION, "max_tokens": 1}}
    file = tenant.client.files.create(file=("batch.jsonl", json.dumps(line).encode()), purpose="batch")
    return {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}


def dry_run(tenant):
    return made(f"/v1/x/files/{tenant.file}/validate", {"model": MODEL})(tenant)


def alias(_tenant):
    return {"id": "old-" + "".join(random.choices(ALPHABET, k=20)), "model": MODEL}


QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
# By the name of the parameter: how a tenant comes by one of its own, and whether it can be deleted.
KINDS = {
    "file_id": (lambda tenant: tenant.upload(), True),
    "fine_tuning_job_id": (lambda tenant: tenant.job.id, False),
    "model": (lambda tenant: tenant.model, False),
    "upload_id": (made("/v1/uploads", {"bytes": 3, "filename": "a.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}), False),
    "completion_id": (made("/v1/chat/completions", {**QUESTION, "max_tokens": 1, "store": True}), True),
    "batch_id": (made("/v1/batches", batch), False),
    "webhook_endpoint_id": (made("/v1/webhook_endpoints", {
        "name": "hook", "url": "https://hook.example/x", "event_types": ["fine_tuning.job.succeeded"]}), True),
    "dry_run_id": (dry_run, False),
    "alias": (made("/v1/x/model_aliases", alias), True),
    "response_id": (made("/v1/responses", {"model": MODEL, "input": "Hi", "max_output_tokens": 16}), True),
}
# What a route wants in its body, so that it gets as far as the id.
BODIES = {
    "addUploadPart": (form([("data", "part", b"{}\n")]), {"Content-Type": MULTIPART}),
    "validateFile": ({"model": MODEL}, {}),
    "completeUpload": ({"part_ids": ["part_none"]}, {}),
    "updateChatCompletion": ({"metadata": {"stolen": "yes"}}, {}),
    "updateWebhookEndpoint": ({"name": "stolen"}, {}),
    "rotateWebhookSecret": ({}, {}),
    "testWebhookEndpoint": ({"event_type": "fine_tuning.job.succeeded"}, {}),
}


def masked(reply, id):
    """What a reply says, without the id that was asked for."""
    text = reply.body.decode()
    for spelled in (json.dumps(id)[1:-1], quoted(id)):
        text = text.replace(spelled, "ID").replace(spelled[:64] + "…", "ID")
    headers = {name.lower() for name in reply.headers}
    return reply.status, text, headers


@in_both_forms
class Tenants:
    def test_s33_s34_s38_s39_s43_every_route_with_an_id_for_every_stranger(self):
        owned, gone = {}, {}
        for _, _, _, ids in operations():
            for name in ids:
                make, is_deletable = KINDS[name]
                if name not in owned:
                    owned[name] = {"another project's": make(self.b), "another organisation's": make(self.c)}
                    gone[name] = self.deleted(name, make) if is_deletable else {}
        n_attacks = 0
        for method, path, operation, ids in operations():
            for name in ids[:1]:
                strangers = {**owned[name], **gone[name]}
                never = random_like(owned[name]["another project's"])
                absent = self.ask(method, path, operation, name, never)
                self.assertEqual(absent.status, 404, f"{method} {path}: {absent}")
                for whose, id in strangers.items():
                    with self.subTest(f"{method} {path}, {whose}"):
                        self.assertEqual(masked(self.ask(method, path, operation, name, id), id), masked(absent, never))
                        n_attacks += 1
        self.assertGreater(n_attacks, 20)
        # What the attacks were aimed at is as it was.
        for (whose, tenant) in (("another project's", self.b), ("another organisation's", self.c)):
            for name, ids in owned.items():
                read = next((path for method, path, _, params in operations() if method == "GET" and params == [name]), None)
                if read and name != "model":
                    reply = self.send("GET", read.replace("{%s}" % name, quoted(ids[whose])), key=tenant.key)
                    self.assertEqual(reply.status, 200, f"{whose} {name}: {reply}")
                    self.assertNotIn("stolen", reply.body.decode())
            self.assertEqual(tenant.client.files.content(tenant.file).read(), examples(12))
            self.assertEqual(tenant.client.fine_tuning.jobs.retrieve(tenant.job.id).status, "succeeded")
            self.assertEqual(tenant.client.models.retrieve(tenant.model).id, tenant.model)

    def deleted(self, name, make):
        """One that A had, through the route that deletes it."""
        path = next(path for method, path, _, ids in operations() if method == "DELETE" and ids == [name])
        id = make(self.a)
        reply = self.send("DELETE", path.replace("{%s}" % name, quoted(id)))
        self.assertEqual(reply.status, 200, reply)
        return {"deleted": id}

    def ask(self, method, path, operation, name, id):
        body, headers = BODIES.get(operation["operationId"], (None, {}))
        return self.send(method, path.replace("{%s}" % name, quoted(id)), body, headers=headers)

    def test_s35_a_job_on_the_file_of_another(self):
        for param in ("training_file", "validation_file"):
            def ask(id):
                return self.send("POST", "/v1/fine_tuning/jobs", {"model": MODEL, "training_file": self.a.file, param: id})

            never = random_like(self.b.file)
            absent = self.refused(ask(never), param=param)
            for tenant in (self.b, self.c):
                self.assertEqual(masked(ask(tenant.file), tenant.file), masked(absent, never))

    def test_s36_a_job_that_goes_on_from_the_model_of_another(self):
        def ask(name, **more):
            return self.send("POST", "/v1/fine_tuning/jobs", {"model": name, "training_file": self.a.file, **more})

        def go_on(name):
            return ask(MODEL, x_training={"adapter": {"continue_from": name}})

        never = random_like(self.b.model)
        for way in (ask, go_on):
            absent = self.refused(way(never), (400, 404))
            for tenant in (self.b, self.c):
                self.assertEqual(masked(way(tenant.model), tenant.model), masked(absent, never))

    def test_s37_an_answer_of_the_model_or_checkpoint_of_another(self):
        names = [tenant.model for tenant in (self.b, self.c)]
        names += [checkpoint.fine_tuned_model_checkpoint for checkpoint in self.b.checkpoints]
        self.assertGreater(len(names), 2)
        never = random_like(self.b.model)
        for path, question in (("chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}), ("completions", {"prompt": "Hi"})):
            def ask(name):
                return self.send("POST", f"/v1/{path}", {"model": name, **question})

            absent = self.refused(ask(never), 404, code="model_not_found")
            for name in names:
                self.assertEqual(masked(ask(name), name), masked(absent, never))

    def test_s40_a_cursor_of_another(self):
        cursors = {"file": self.b.file, "job": self.b.job.id, "checkpoint": self.b.checkpoints[0].id,
                   "event": self.b.client.fine_tuning.jobs.list_events(self.b.job.id).data[0].id}
        own = self.a.job.id
        n_lists = 0
        for method, path, operation, ids in operations():
            if "after" not in [p["name"] for p in operation.get("parameters", [])]:
                continue
            if ids and ids != ["fine_tuning_job_id"]:
                continue
            path = path.replace("{fine_tuning_job_id}", own)
            n_lists += 1
            for kind, cursor in cursors.items():
                with self.subTest(f"{path} after {kind}"):
                    never = random_like(cursor)
                    absent = self.send(method, f"{path}?after={quoted(never)}")
                    self.assertEqual(absent.status, 404)
                    self.assertEqual(masked(self.send(method, f"{path}?after={quoted(cursor)}"), cursor), masked(absent, never))
        self.assertGreaterEqual(n_lists, 4)

    def test_s41_lists_filtered_as_another_would(self):
        # What the attacker has is in its lists, so an empty list is no answer.
        self.assertEqual(self.a.client.fine_tuning.jobs.retrieve(self.a.job_id).id, self.a.job_id)
        foreign = {x for tenant in (self.b, self.c) for x in (tenant.file, tenant.job.id, tenant.model, *tenant.job.result_files)}
        queries = ["", f"project_id={self.b.project}", f"metadata[of]={self.b.project}", f"purpose=fine-tune&project={self.b.project}",
                   "metadata=null"]
        for method, path, operation, ids in operations():
            if method != "GET" or ids or "/v1/" not in path:
                continue
            for query in queries:
                with self.subTest(path=path, query=query):
                    reply = self.send(method, f"{path}?{query}")
                    self.assertIn(reply.status, (200, 400))
                    text = reply.body.decode()
                    self.assertFalse([x for x in foreign if x in text])
        listed = self.send("GET", f"/v1/fine_tuning/jobs?metadata[of]={self.a.project}").json()["data"]
        self.assertEqual([job["id"] for job in listed], [self.a.job_id])

    def test_s44_the_idempotency_key_of_another(self):
        def create(tenant, key):
            body = {"model": MODEL, "training_file": tenant.file}
            return self.send("POST", "/v1/fine_tuning/jobs", body, key=tenant.key, headers={"Idempotency-Key": key})

        key = "".join(random.choices(ALPHABET, k=20))
        theirs, mine = create(self.b, key), create(self.a, key)
        self.assertEqual((theirs.status, mine.status), (200, 200))
        self.assertNotEqual(theirs.json()["id"], mine.json()["id"])
        self.assertIsNone(mine.headers["idempotent-replayed"])
        self.assertEqual(create(self.b, key).json()["id"], theirs.json()["id"])
        for tenant, reply in ((self.a, mine), (self.b, theirs)):
            self.send("POST", f"/v1/fine_tuning/jobs/{reply.json()['id']}/cancel", key=tenant.key)

    def test_s45_ids_are_too_random_to_guess(self):
        ids = {x for tenant in (self.a, self.b, self.c) for x in (tenant.file, tenant.job.id, *(c.id for c in tenant.checkpoints))}
        for id in ids:
            drawn = id[max(id.rfind("-"), id.rfind("_")) + 1:]
            self.assertGreaterEqual(len(drawn), 21, f"{id} has less than 120 bits")
        with Wire(self.target) as wire:
            for _ in range(500):
                wire.send(head("GET", f"/v1/files/{random_like(self.b.file)}", key=self.a.key))
                self.assertEqual(wire.reply().judge().status, 404)

    def test_s46_anothers_id_takes_as_long_as_an_unknown_one(self):
        foreign, never = self.b.file, random_like(self.b.file)
        times = {foreign: [], never: []}
        with Wire(self.target) as wire:
            for _ in range(400):
                for id, taken in times.items():
                    request = head("GET", f"/v1/files/{id}", key=self.a.key)
                    begun = time.perf_counter()
                    wire.send(request)
                    wire.reply()
                    taken.append(time.perf_counter() - begun)
        of_foreign, of_never = map(quickest, times.values())
        self.assertLess(abs(of_foreign - of_never), 0.2 * of_never)

    def test_s120_nothing_is_there_after_its_deletion(self):
        id = self.a.upload()
        self.assertEqual(self.send("DELETE", f"/v1/files/{id}").status, 200)
        for method, path in (("GET", id), ("GET", f"{id}/content"), ("DELETE", id)):
            self.refused(self.send(method, f"/v1/files/{path}"), 404)
        self.refused(self.send("POST", "/v1/fine_tuning/jobs", {"model": MODEL, "training_file": id}), param="training_file")
        listed = self.send("GET", "/v1/files").json()["data"]
        self.assertNotIn(id, [file["id"] for file in listed])
