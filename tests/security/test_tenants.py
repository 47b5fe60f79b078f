"""What others own is as absent as what never was (API1). The matrix is made of our own OpenAPI document: every id of every operation, in the
path, the query, a header or the body × {another project's, another organisation's, deleted, never there}, as a project or, where the operation
is theirs, as an administrator. `worlds` says what stands where, and refuses a document with an id that it does not know."""

import json
import time

from attack import MODEL, MULTIPART, Wire, examples, form, head, in_both_forms, quickest, quoted, wait_until
from worlds import BODIES, World, all_operations, drawn, kind_in_path, operations, places, random_like

# Kinds that an administrator may name whosever project of the organisation they are of.
OF_ORGANIZATIONS = {
    "project_id", "user_id", "key_id", "invite_id", "audit_log", "email", "actor", "actor_email", "resource", "model", "checkpoint_model", "spender"}
# What A's are where they are not made.
OWN = {"rate_limit_id": f"rl-{MODEL}"}
CURSORS = {"after", "before", "Last-Event-ID"}
# Nothing is asked of these, so their answers to one's own id and to none are the same; a policy takes any name.
SAME_FOR_ALL = {"usage-moderations", "update-project-model-permissions"}
VOLATILE = {"last_used_at", "available_bytes"}


def steady(value):
    """What does not change by itself."""
    if isinstance(value, list):
        return [steady(item) for item in value]
    if isinstance(value, dict):
        return {key: steady(item) for key, item in value.items() if key not in VOLATILE}
    return value

# What was deleted still has its place in its owner's list: who deletes files page by page comes to the next one.
STILL_A_PLACE = {"listFiles"}


def case(place):
    """The number of the case that the place is judged by."""
    operation, kind = place.operation, place.kind
    if place.name in CURSORS:
        return 40
    if operation.is_administrators or kind == "webhook_endpoint_id":
        return 43
    if operation.id in ("createFineTuningJob", "validateFile") and place.where == "body":
        return 35 if kind == "file_id" else 36
    if kind == "model":
        return 38 if place.where == "path" else 37
    return {"upload_id": 39, "part_id": 39, "fine_tuning_job_id": 34}.get(kind, 33)


def put(body, path, value):
    """Sets a field of a body, of parts or JSON."""
    if isinstance(body, list):
        return [(name, filename, value if name == path else content) for name, filename, content in body]
    *above, last = path.split(".")
    at = body
    for name, below in zip(above, [*above[1:], last]):
        empty = [None] if below == "[]" else {}
        if name == "[]":
            at[0] = at[0] or empty
            at = at[0]
        else:
            at = at.setdefault(name, empty)
    at[0 if last == "[]" else last] = value
    return body


def masked(reply, *ids):
    """What a reply says, without the ids that were asked for."""
    text = reply.body.decode()
    for id in ids:
        for spelled in (json.dumps(id)[1:-1], quoted(id)):
            text = text.replace(spelled, "ID").replace(spelled[:64] + "…", "ID")
    headers = {name.lower() for name in reply.headers}
    return reply.status, text, headers


class Matrix:
    """A's attacks on what is not its own."""

    def __init__(self, target):
        self.target = target
        self.a, self.b, self.c = World(target.a), World(target.b), World(target.c)
        self.gone = {}
        self.deletions = {kind_in_path(o, o.ids[-1]): o for o in all_operations() if o.method == "DELETE" and o.ids and o.path.endswith("}")}
        self.deletions["batch_file"] = self.deletions["file_id"]
        # So that there is something to hide from usage and the log.
        for world in (self.c, self.b, self.a):
            for kind in ("spender", "service_account_id"):
                world[kind]

    def own(self, kind):
        return OWN.get(kind) or self.a[kind]

    def deleted(self, kind):
        """One that A had, taken away through the route that deletes it; nothing where there is none."""
        if kind in self.deletions and kind not in self.gone:
            operation, id = self.deletions[kind], self.a.new(kind)
            reply = self.send(operation, self.url(operation, {operation.ids[-1]: id}))
            assert reply.status == 200, reply
            self.gone[kind] = id
        return {"deleted": self.gone[kind]} if kind in self.gone else {}

    def strangers(self, place):
        """By whose it is: the id, and who else may own what stands below it in the path."""
        kind, is_administrators = place.kind, place.operation.is_administrators
        found = {"another organisation's": (self.c[kind], self.c)}
        if not (is_administrators and kind in OF_ORGANIZATIONS):
            found["another project's"] = self.b[kind], self.b
        if kind == "model":
            found["another organisation's checkpoint"] = self.c["checkpoint_model"], self.c
        if kind == "model" and not is_administrators:
            found["another project's checkpoint"] = self.b["checkpoint_model"], self.b
            found["another project's alias"] = self.b["alias"], self.b
        if place.name in CURSORS and place.operation.id in STILL_A_PLACE:
            return found
        return found | {whose: (id, self.a) for whose, id in self.deleted(kind).items()}

    def url(self, operation, given, below=None):
        """The path with A's own ids, but for those that are given; `below` owns what stands behind the first of those."""
        path, is_below = operation.path, False
        for name in operation.ids:
            kind = kind_in_path(operation, name)
            id = given[name] if name in given else below[kind] if below and is_below else self.own(kind)
            is_below |= name in given
            path = path.replace("{%s}" % name, quoted(id))
        return path

    def send(self, operation, url, body=None, headers=()):
        if isinstance(body, list):
            headers, body = {**dict(headers), "Content-Type": MULTIPART}, form(body)
        key = self.a.tenant.administrator if operation.is_administrators else None
        return self.target.send(operation.method, url, body, headers=headers, key=key)

    def ask(self, place, id, below):
        """The operation as A asks it, with this id in this place."""
        operation, headers = place.operation, {}
        url = self.url(operation, {place.name: id} if place.where == "path" else {}, below)
        body = BODIES[operation.id](self.a) if operation.id in BODIES else None
        query = {"start_time": int(time.time()) // 86_400 * 86_400} if operation.id.startswith("usage-") else {}
        if place.where == "query":
            query[place.name] = id
        elif place.where == "header":
            headers = {place.name: id}
        elif place.where == "body":
            body = put(body, place.name, id)
            if place.kind == "email":
                del body["user_id"]
        if query:
            url += "?" + "&".join(f"{quoted(name)}={quoted(str(value))}" for name, value in query.items())
        return self.send(operation, url, body, headers)

    def is_looked_at(self, place, absent, never):
        """Whether the answer to an id that never was is about the id."""
        status, text, _ = absent
        if place.where == "path":
            return status == 404
        if status != 200:
            param = json.loads(text)["error"]["param"] or ""
            return status in (400, 404) and ("ID" in text or place.name.rsplit(".")[-1] in param)

        def differs():
            own = self.own(place.kind)
            return masked(self.ask(place, own, self.a), own)[1] != text

        return place.operation.id in SAME_FOR_ALL or wait_until(f"{place} shows what A has", differs, 20)

    def attack(self, test, place):
        """How many ids were tried."""
        known, n_attacks = {}, 0
        for whose, (id, below) in self.strangers(place).items():
            never = random_like(id)
            form = never[:len(never) - 8], len(never)
            with test.subTest(f"{place}, {whose}"):
                if form not in known:
                    absent = known[form] = masked(self.ask(place, never, below), never)
                    test.assertTrue(self.is_looked_at(place, absent, never), absent)
                test.assertEqual(masked(self.ask(place, id, below), id), known[form])
                n_attacks += 1
        return n_attacks

    def whole(self):
        """All that B and C have, as they see it."""
        seen = {}
        for operation in all_operations():
            if operation.method == "GET" and operation.ids and operation.path.endswith("}"):
                for name, world in (("b", self.b), ("c", self.c)):
                    kind = kind_in_path(operation, operation.ids[-1])
                    if kind in world.ids:
                        path = operation.path.removeprefix("/v1/")
                        for id in operation.ids:
                            path = path.replace("{%s}" % id, quoted(world[kind_in_path(operation, id)]))
                        ask = world.administer if operation.is_administrators else world.send
                        seen[name, path] = steady(ask("GET", path))
        return seen


MATRICES = {}


@in_both_forms
class Tenants:
    def matrix(self):
        """One for all tests of a form."""
        if self.target not in MATRICES:
            MATRICES[self.target] = Matrix(self.target)
        return MATRICES[self.target]

    def attack(self, number, at_least):
        """Every place of the case, with the ids of every stranger; what they own is as it was."""
        matrix = self.matrix()
        chosen = [place for place in places() if case(place) == number]
        for place in chosen:
            matrix.strangers(place)
        before = matrix.whole()
        n_attacks = sum(matrix.attack(self, place) for place in chosen)
        self.assertGreaterEqual(n_attacks, at_least)
        after = matrix.whole()
        self.assertEqual({what: after.get(what) for what in before}, before, "an attack changed what is not the attacker's")
        self.assertNotIn("stolen", json.dumps(list(before.values())))

    def test_s33_files_and_all_else_that_a_project_keeps(self):
        self.attack(33, 40)
        for tenant in (self.b, self.c):
            self.assertEqual(tenant.client.files.content(tenant.file).read(), examples(12))

    def test_s33_every_id_of_the_document_is_attacked(self):
        judged = {case(place) for place in places()}
        named = {number for number in range(1, 121) if any(name.startswith(f"test_s{number:02}_") for name in dir(self))}
        self.assertEqual(judged - named, set())

    def test_s33_names_that_others_have_are_free(self):
        """A name that is refused because another has it would tell that it is there."""
        matrix = self.matrix()
        projects = "/v1/organization/projects"
        name = f"taken {drawn()}"
        for administrator in (self.c.administrator, self.a.administrator):
            self.assertEqual(self.send("POST", projects, {"name": name}, key=administrator).status, 200)
        for world in (matrix.b, matrix.c):
            alias = {"id": world["alias"], "model": MODEL}
            self.assertEqual(self.send("POST", "/v1/x/model_aliases", alias).status, 200)
            self.assertEqual(self.send("DELETE", f"/v1/x/model_aliases/{world['alias']}").status, 200)
            self.assertIn(world["alias"], json.dumps(world.send("GET", "x/model_aliases")), "it was another's that went")
        taken = {"email": matrix.c["email"], "role": "reader"}
        invite = self.send("POST", "/v1/organization/invites", taken, key=self.a.administrator)
        self.assertEqual(invite.status, 200, invite)
        self.send("DELETE", f"/v1/organization/invites/{invite.json()['id']}", key=self.a.administrator)

    def test_s34_jobs(self):
        self.attack(34, 14)
        for tenant in (self.b, self.c):
            self.assertEqual(tenant.client.fine_tuning.jobs.retrieve(tenant.job.id).status, "succeeded")

    def test_s35_a_job_on_the_file_of_another(self):
        self.attack(35, 9)

    def test_s36_a_job_that_goes_on_from_the_model_of_another(self):
        self.attack(36, 20)

    def test_s37_an_answer_of_the_model_or_checkpoint_of_another(self):
        self.attack(37, 40)

    def test_s38_models(self):
        self.attack(38, 15)
        for tenant in (self.b, self.c):
            self.assertEqual(tenant.client.models.retrieve(tenant.model).id, tenant.model)

    def test_s39_uploads(self):
        self.attack(39, 8)
        for world in (self.matrix().b, self.matrix().c):
            part, id = world["part_id"], world["upload_id"]
            self.assertEqual(world.send("POST", f"uploads/{id}/complete", {"part_ids": [part]})["status"], "completed")
            del world.ids["part_id"], world.ids["upload_id"]

    def test_s40_a_cursor_of_another(self):
        self.attack(40, 45)

    def test_s43_webhooks_and_all_that_administrators_see(self):
        self.attack(43, 110)
        matrix = self.matrix()
        policy = f"organization/projects/{self.a.project}/model_permissions"
        self.assertTrue(matrix.a.administer("DELETE", policy)["deleted"])

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

        key = drawn()
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
        """Every kind that can be deleted: it is not listed, and every route answers as if it had never been."""
        matrix = self.matrix()
        lists = {o.path: o for o in all_operations() if o.method == "GET"}
        for kind, deletion in matrix.deletions.items():
            with self.subTest(kind):
                id = matrix.deleted(kind)["deleted"]
                listing = lists.get(deletion.path.rsplit("/", 1)[0])
                if listing:
                    reply = matrix.send(listing, matrix.url(listing, {}))
                    self.assertEqual(reply.status, 200, reply)
                    self.assertNotIn(json.dumps(id), reply.body.decode())
                at = {deletion.ids[-1]: id}
                for operation in all_operations():
                    if operation.ids[-1:] == deletion.ids[-1:] and kind_in_path(operation, operation.ids[-1]) == kind:
                        body = BODIES[operation.id](matrix.a) if operation.id in BODIES else None
                        self.refused(matrix.send(operation, matrix.url(operation, at), body), 404)
