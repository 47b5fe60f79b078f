"""What administrators open and close, who may be one, and the log of it (API3, API5)."""

import json
import subprocess
import urllib.request

from attack import MODEL, in_both_forms, quoted, service
from worlds import BODIES, World, all_operations, drawn, kind_in_path

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
# Of these each attempt takes one of its own, as it may be the last that is done to it.
FRESH = {"member", "service_account_id", "api_key_id", "key_id", "invite_id", "permission_id", "user_id"}


@in_both_forms
class Administration:
    def administer(self, method, path, body=None, key=None):
        return self.send(method, f"/v1/{path}", body, key=key or self.target.admin_key)

    def done(self, *asked, **options):
        """What an administrator is answered."""
        reply = self.administer(*asked, **options)
        self.assertEqual(reply.status, 200, reply)
        return reply.json()

    def status(self, key):
        return self.send("GET", "/v1/models", key=key).status

    def person(self, organization, *more):
        """The id and the e-mail address of a new user."""
        email = f"{drawn().lower()}@people.example"
        return self.target.luthier("user", "add", email, "--organization", organization, *more), email

    def test_s12_a_key_of_a_user_who_was_removed(self):
        user, email = self.person("luthier")
        members = f"organization/projects/{self.a.project}/users"
        self.done("POST", members, {"user_id": user, "role": "member"})
        key = self.target.key("--project", "default", "--user", email)
        self.assertEqual(self.status(key), 200)
        self.done("DELETE", f"{members}/{user}")
        self.refused(self.send("GET", "/v1/models", key=key), 401, code="invalid_api_key")
        self.refused(self.send("POST", "/v1/chat/completions", CHAT, key=key), 401)
        listed = self.done("GET", f"organization/projects/{self.a.project}/api_keys?owner_project_access=inactive&limit=100")["data"]
        shown, = [one for one in listed if one["owner"].get("user", {}).get("id") == user]
        self.assertEqual((shown["owner_project_access"], shown["owner"]["user"]["role"]), ("inactive", "none"))
        # It opens again for who is a member again, and goes with the user.
        self.done("POST", members, {"user_id": user, "role": "member"})
        self.assertEqual(self.status(key), 200)
        self.done("DELETE", f"organization/users/{user}")
        self.refused(self.send("GET", "/v1/models", key=key), 401)

    def test_s13_a_service_account_without_a_role(self):
        accounts = f"organization/projects/{self.a.project}/service_accounts"
        made = self.done("POST", accounts, {"name": "bot", "create_service_account_only": True})
        self.assertEqual((made["role"], made["api_key"]), ("none", None))
        account = f"{accounts}/{made['id']}"
        key = self.done("POST", f"{account}/api_keys", {"name": "key"})["value"]
        for method, path, body in (("GET", "models", None), ("GET", "files", None), ("POST", "chat/completions", CHAT),
                                   ("GET", f"files/{self.a.file}/content", None), ("DELETE", f"files/{self.a.file}", None)):
            self.refused(self.send(method, f"/v1/{path}", body, key=key), 403)
        # It is the role that the key lacks: with one it opens, and without the account it is no key.
        self.done("POST", account, {"role": "member"})
        self.assertEqual(self.status(key), 200)
        self.done("DELETE", account)
        self.assertEqual(self.status(key), 401)

    def test_s14_a_secret_is_shown_once_and_kept_nowhere(self):
        project = f"organization/projects/{self.a.project}"
        account = self.done("POST", f"{project}/service_accounts", {"name": "bot"})
        further = self.done("POST", f"{project}/service_accounts/{account['id']}/api_keys", {"name": "more"})
        admin = self.done("POST", "organization/admin_api_keys", {"name": "more"})
        made = [account["api_key"], further, admin]
        secrets = [one["value"] for one in made]
        self.assertEqual([secret.rsplit("-", 1)[0] for secret in secrets], ["sk-svcacct", "sk-svcacct", "sk-admin"])
        for key, path in zip(secrets, ("models", "models", "organization/projects")):
            self.assertEqual(self.send("GET", f"/v1/{path}", key=key).status, 200)
        shown = ""
        for path in (f"{project}/api_keys?limit=100", f"{project}/api_keys/{further['id']}", f"{project}/service_accounts/{account['id']}",
                     "organization/admin_api_keys?limit=100", f"organization/admin_api_keys/{admin['id']}", "organization/audit_logs?limit=100"):
            shown += json.dumps(self.done("GET", path))
        for one in made:
            self.assertIn(one["id"], shown)
        with urllib.request.urlopen(f"http://{self.target.service.operational}/metrics", timeout=20) as reply:
            metrics = reply.read()
        stored = self.target.stored()
        self.assertIn(further["id"].encode(), stored)
        for secret in secrets:
            # The part that is drawn, too: whoever has it has the key.
            for needle in (secret, secret[-49:]):
                self.assertNotIn(needle, shown)
                self.assertNotIn(needle, self.target.logs())
                self.assertNotIn(needle.encode(), metrics)
                self.assertNotIn(needle.encode(), stored)
        for one in self.done("GET", f"{project}/api_keys?limit=100")["data"]:
            self.assertLess(len(one["redacted_value"]), 30, "more of a key is shown than is needed to recognise it")

    def test_s42_a_checkpoint_is_lent_and_taken_back(self):
        ask = {**CHAT, "model": self.a.model}

        def chat():
            return self.send("POST", "/v1/chat/completions", ask, key=self.b.key)

        self.refused(chat(), 404, code="model_not_found")
        permissions = f"fine_tuning/checkpoints/{quoted(self.a.model)}/permissions"
        # Neither who has the model nor who administers others may lend it.
        self.refused(self.send("POST", f"/v1/{permissions}", {"project_ids": [self.b.project]}), 403)
        self.refused(self.administer("POST", permissions, {"project_ids": [self.c.project]}, key=self.c.administrator), 404)
        self.refused(chat(), 404)
        granted, = self.done("POST", permissions, {"project_ids": [self.b.project]})["data"]
        self.assertEqual(chat().status, 200)
        # Lent is not given.
        for method, path in (("DELETE", f"models/{quoted(self.a.model)}"), ("GET", f"x/models/{quoted(self.a.model)}/export?format=peft")):
            self.refused(self.send(method, f"/v1/{path}", key=self.b.key), (403, 404))
        self.refused(self.send("POST", "/v1/chat/completions", ask, key=self.c.key), 404)
        self.assertTrue(self.done("DELETE", f"{permissions}/{granted['id']}")["deleted"])
        self.refused(chat(), 404, code="model_not_found")
        self.assertEqual(self.send("POST", "/v1/chat/completions", ask).status, 200)

    def test_s50_a_member_makes_no_key_and_no_key_is_more_than_was_asked(self):
        user, email = self.person("luthier")
        project = f"organization/projects/{self.a.project}"
        self.done("POST", f"{project}/users", {"user_id": user, "role": "member"})
        members = self.target.key("--project", "default", "--user", email)
        account = self.done("POST", f"{project}/service_accounts", {"name": "bot"})
        keys = f"{project}/service_accounts/{account['id']}/api_keys"
        for body in ({"name": "x"}, {"name": "x", "role": "owner", "scopes": ["*"]}, {"name": "x", "scopes": ["api.all"]}):
            for path in (keys, f"{project}/service_accounts", "organization/admin_api_keys"):
                for key in (members, account["api_key"]["value"], self.a.key):
                    self.refused(self.administer("POST", path, body, key=key), 403, code="insufficient_permissions")
        # Nor does an administrator by a word that the key does not have.
        for body, param in (({"role": "owner"}, "role"), ({"scopes": ["*"]}, "scopes"), ({"scopes": ["api.management.write"]}, "scopes"),
                            ({"scopes": "api.all"}, "scopes"), ({"owner": {"type": "user"}}, "owner"), ({"value": "sk-mine"}, "value")):
            reply = self.refused(self.administer("POST", keys, {"name": "x", **body}))
            self.assertTrue(reply.error["param"].startswith(param), reply)
            if param != "scopes":
                self.refused(self.administer("POST", "organization/admin_api_keys", {"name": "x", **body}), param=param)
        reader = self.done("POST", keys, {"name": "x", "scopes": ["api.files.read"]})["value"]
        self.assertEqual(self.send("GET", "/v1/files", key=reader).status, 200)
        self.refused(self.send("POST", "/v1/chat/completions", CHAT, key=reader), 403)

    def test_s51_who_is_no_owner_makes_nobody_one_and_the_last_one_stays(self):
        slug = f"owned-{drawn(10).lower()}"
        self.target.luthier("organization", "create", slug)
        ada, ada_email = self.person(slug, "--role", "owner")
        ben, ben_email = self.person(slug, "--role", "owner")

        def key(email):
            return self.target.luthier("admin-key", "create", "--organization", slug, "--user", email)

        adas, bens = key(ada_email), key(ben_email)
        self.done("POST", f"organization/users/{ben}", {"role": "reader"}, key=adas)
        own, invite = f"organization/users/{ben}", {"email": "eve@people.example", "role": "owner"}
        for method, path, body in (("POST", own, {"role": "owner"}), ("POST", "organization/invites", invite), ("DELETE", f"organization/users/{ada}", None),
                                   ("POST", "organization/admin_api_keys", {"name": "x"}), ("GET", "organization/users", None)):
            self.refused(self.administer(method, path, body, key=bens), 403, code="insufficient_permissions")
        # The operator's own commands make him none, either.
        made = subprocess.run([service.LUTHIER, "admin-key", "create", "--organization", slug, "--user", ben_email, *map(str, self.target.service.place)],
                              capture_output=True, text=True, timeout=60, env=service.environment())
        self.assertNotEqual(made.returncode, 0, made)
        self.assertEqual(made.stdout, "")
        for method, body in (("POST", {"role": "reader"}), ("DELETE", None)):
            self.refused(self.administer(method, f"organization/users/{ada}", body, key=adas), 400, code="last_owner")
        self.refused(self.administer("POST", f"organization/users/{ada}", {"role": "king"}, key=adas), param="role")
        self.assertEqual(self.done("GET", f"organization/users/{ada}", key=adas)["role"], "owner")
        self.assertEqual(self.done("GET", own, key=adas)["role"], "reader")

    def changes(self, world):
        """Every operation that changes something, with what it is done to: (operation, path, body)."""
        for operation in all_operations():
            if operation.method == "GET" or not operation.is_administrators:
                continue
            path = operation.path
            for name in operation.ids:
                kind = kind_in_path(operation, name)
                if kind == "project_id" and operation.id == "archive-project":
                    id = world.new("second_project")
                elif kind == "rate_limit_id":
                    id = f"rl-{MODEL}"
                else:
                    id = world.new(kind) if kind in FRESH else world[kind]
                path = path.replace("{%s}" % name, quoted(id))
            yield operation, path, BODIES[operation.id](world) if operation.id in BODIES else None

    def test_s110_every_change_is_in_the_log_once_and_stays_there(self):
        slug = f"logged-{drawn(10).lower()}"
        self.target.luthier("organization", "create", slug)
        world = World(self.target.tenant("logged", slug))
        administrator = world.tenant.administrator

        def by_keys():
            # What the command line does has no actor.
            logged = world.administer("GET", "organization/audit_logs?limit=100")["data"]
            return {entry["id"]: entry for entry in logged if entry["actor"]}

        n_changes, changes = 0, list(self.changes(world))
        # What is deleted last has been used by the others.
        for operation, path, body in sorted(changes, key=lambda change: change[0].method == "DELETE"):
            with self.subTest(operation.id):
                known = by_keys()
                reply = self.send(operation.method, path, body, key=administrator)
                self.assertEqual(reply.status, 200, reply)
                new = [entry for id, entry in by_keys().items() if id not in known]
                self.assertEqual(len(new), 1, new)
                entry, = new
                self.assertEqual((entry["x_ip_address"], entry["actor"]["type"]), ("127.0.0.1", "api_key"))
                self.assertTrue(entry["actor"]["api_key"]["id"].startswith("key_"), entry)
                object = entry[entry["type"]]["id"]
                self.assertTrue(object and (object in path or object in reply.body.decode()), entry)
                n_changes += 1
        self.assertGreater(n_changes, 18)
        # What was refused changed nothing.
        known = by_keys()
        self.refused(self.send("DELETE", "/v1/organization/invites/invite-none", key=administrator), 404)
        self.refused(self.send("POST", "/v1/organization/projects", {"name": ""}, key=administrator), 400)
        self.refused(self.send("POST", "/v1/organization/projects", {"name": "x"}), 403)
        self.assertEqual(by_keys(), known)
        verify = [service.LUTHIER, "audit", "verify", "--organization", slug, *map(str, self.target.service.place)]

        def verified():
            done = subprocess.run(verify, capture_output=True, text=True, timeout=60, env=service.environment())
            return done.returncode, done.stdout + done.stderr

        self.assertEqual(verified()[0], 0, verified())
        organization, = self.target.rows(f"select id from organizations where slug = '{slug}'")[0]
        of = f"organization_id = '{organization}'"
        hash, = self.target.rows(f"select hash from audit_log where {of} and seq = 7")[0]
        self.target.execute(f"update audit_log set hash = '{'0' * 64}' where {of} and seq = 7")
        status, text = verified()
        self.assertNotEqual(status, 0)
        self.assertIn("entry 7 is missing or was changed", text)
        self.target.execute(f"update audit_log set hash = '{hash}' where {of} and seq = 7")
        self.assertEqual(verified()[0], 0)
        # The last one, too: nothing comes behind it that would miss it.
        last, = self.target.rows(f"select max(seq) from audit_log where {of}")[0]
        for seq in (last, 5):
            self.target.execute(f"delete from audit_log where {of} and seq = {seq}")
            status, text = verified()
            self.assertNotEqual(status, 0)
            self.assertIn(f"entry {seq} is missing or was changed", text)
