"""What a key opens, and until when: scopes, ends, archived projects (API2, API5). Routes are those of our OpenAPI document."""

import time

from attack import MODEL, in_both_forms
from worlds import all_operations, operations


def url(path):
    """A route with ids that nobody has: whether a key may call it is decided before."""
    return path.replace("{", "").replace("}", "")


def of_projects():
    return [(method, url(path)) for method, path, _, _ in operations() if path.startswith("/v1/")]


@in_both_forms
class Keys:
    def test_s06_a_key_whose_time_has_come(self):
        key = self.target.key("--project", "default", "--name", "expired")
        self.assertEqual(self.send("GET", "/v1/models", key=key).status, 200)
        other = self.target.key("--project", "default", "--name", "expired too")
        self.target.execute(f"update api_keys set expires_at = {int(time.time() * 1e6)} where name = 'expired too'")
        self.refused(self.send("GET", "/v1/models", key=other), 401, code="expired_api_key")

    def test_s08_a_projects_key_on_the_ground_of_organisations(self):
        paths = {url(operation.path) for operation in all_operations() if operation.is_administrators}
        self.assertGreater(len(paths), 25)
        for path in {*paths, "/v1/organization", "/v1/organization/no-such"}:
            for method in ("GET", "POST", "DELETE"):
                self.refused(self.send(method, path), 403, code="insufficient_permissions")

    def test_s09_an_admin_key_on_the_ground_of_projects(self):
        for method, path in of_projects():
            with self.subTest(f"{method} {path}"):
                self.refused(self.send(method, path, key=self.target.admin_key), 403, code="insufficient_permissions")
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
        self.refused(self.send("POST", "/v1/chat/completions", chat, key=self.target.admin_key), 403)

    def test_s10_a_key_that_only_reads(self):
        key = self.target.key("--project", "default", "--scope", "api.read")
        n_writes = 0
        for method, path in of_projects():
            with self.subTest(f"{method} {path}"):
                reply = self.send(method, path, key=key)
                if method == "GET":
                    self.assertNotEqual(reply.status, 403)
                else:
                    self.refused(reply, 403, code="insufficient_permissions")
                    n_writes += 1
        self.assertGreater(n_writes, 8)
        self.refused(self.send("DELETE", f"/v1/files/{self.a.file}", key=key), 403)
        self.assertEqual(self.send("GET", f"/v1/files/{self.a.file}/content", key=key).status, 200)

    def test_s11_a_key_for_everything_but_fine_tuning(self):
        scopes = ["api.files.write", "api.model.write", "api.model.request", "api.batches.write"]
        key = self.target.key("--project", "default", *(word for scope in scopes for word in ("--scope", scope)))
        for method, path in of_projects():
            if path.startswith("/v1/fine_tuning"):
                self.refused(self.send(method, path, key=key), 403, code="insufficient_permissions")
        for path in ("/v1/files", "/v1/models"):
            self.assertEqual(self.send("GET", path, key=key).status, 200)
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        self.assertEqual(self.send("POST", "/v1/chat/completions", chat, key=key).status, 200)

    def test_s15_a_key_of_an_archived_project(self):
        gone = self.target.tenant(f"gone {time.time()}", "luthier")
        self.target.execute(f"update projects set archived_at = 1 where id = '{gone.project}'")
        self.refused(self.send("GET", "/v1/models", key=gone.key), (401, 403), code="project_archived")
