"""Webhooks to where they must not go, and their secrets (API7, API10)."""

from attack import PROXY, in_both_forms

PRIVATE = ["http://127.0.0.1", "https://127.0.0.1", "https://[::1]", "https://0.0.0.0", "https://169.254.169.254/latest/meta-data", "https://10.0.0.1",
           "https://172.16.0.1", "https://192.168.1.1", "https://100.64.0.1", "https://[fd00::1]", "https://[fe80::1]", "https://[::]", "https://224.0.0.1",
           "https://255.255.255.255", "https://192.0.2.1", "https://198.18.0.1", "https://localhost", "https://hook.internal", "https://hook.local"]
SPELLED = ["https://2130706433", "https://0x7f.1", "https://017700000001", "https://[::ffff:127.0.0.1]", "https://[64:ff9b::7f00:1]", "https://localhost.",
           "https://127.1", "https://127\u30020\u30020\u30021", "https://0x7f000001", "https://[::ffff:7f00:1]", "https://[::127.0.0.1]",
           "https://LOCALHOST", "https://127.0.0.1.", "https://%31%32%37.0.0.1", "https://[2002:7f00:1::]", "https://\u24df127.0.0.1"]
OTHERWISE = ["gopher://hook.example", "file:///etc/passwd", "ftp://hook.example", "https://good@hook.example", "https://good:pw@hook.example",
             "https://hook.example:5432", "https://hook.example:5672", "https://hook.example:22", "https://hook.example:80", "javascript:alert(1)",
             "data:text/plain,x", "//hook.example", "hook.example", "", "https://", "https:///x", "unix:/run/docker.sock", "https://hook.example/" + "x" * 3000]


@in_both_forms
class Webhooks:
    def create(self, url):
        body = {"name": "hook", "url": url, "event_types": ["fine_tuning.job.succeeded"]}
        return self.send("POST", "/v1/webhook_endpoints", body)

    def refused_everywhere(self, urls):
        """At creation, and where an endpoint that exists is turned there."""
        good = self.create("https://hook.example/x").json()["id"]
        for url in urls:
            with self.subTest(url[:60]):
                self.refused(self.create(url), param="url")
                self.refused(self.send("POST", f"/v1/webhook_endpoints/{good}", {"url": url}), param="url")
        kept = self.send("GET", f"/v1/webhook_endpoints/{good}").json()
        self.assertEqual(kept["url"], "https://hook.example/x")
        self.send("DELETE", f"/v1/webhook_endpoints/{good}")

    def test_s82_addresses_that_are_not_public(self):
        self.refused_everywhere(PRIVATE)

    def test_s83_the_same_in_other_spellings(self):
        self.refused_everywhere(SPELLED)

    def test_s86_other_schemes_ports_and_credentials(self):
        self.refused_everywhere(OTHERWISE)

    def test_s82_an_address_that_was_put_into_the_database(self):
        id = self.create("https://hook.example/x").json()["id"]
        self.target.execute(f"update webhook_endpoints set url = 'https://127.0.0.1:{self.target.service.port}/' where id = '{id}'")
        reply = self.send("POST", f"/v1/webhook_endpoints/{id}/test", {"event_type": "fine_tuning.job.succeeded"})
        self.refused(reply)
        self.assertIn("not a public host", reply.body.decode())
        self.send("DELETE", f"/v1/webhook_endpoints/{id}")

    def test_s88_a_proxy_in_the_environment(self):
        id = self.create("https://hook.example/x").json()["id"]
        reply = self.send("POST", f"/v1/webhook_endpoints/{id}/test", {"event_type": "fine_tuning.job.succeeded"})
        self.refused(reply)
        self.assertEqual(self.send("GET", "/v1/files", key=self.target.issuer.token(self.target.issuer.claims(self.a.project))).status, 200)
        self.assertEqual(PROXY.n_asked, 0)
        self.send("DELETE", f"/v1/webhook_endpoints/{id}")

    def test_s53_a_secret_is_shown_once(self):
        made = self.create("https://hook.example/x").json()
        secret, id = made["signing_secret"], made["id"]
        self.assertTrue(secret.startswith("whsec_"))
        for method, path, body in (("GET", "", None), ("POST", "", {"name": "other"}), ("POST", "/test", {"event_type": "fine_tuning.job.succeeded"})):
            reply = self.send(method, f"/v1/webhook_endpoints/{id}{path}", body)
            self.assertNotIn(secret, reply.body.decode())
        self.assertNotIn(secret, self.send("GET", "/v1/webhook_endpoints").body.decode())
        self.assertNotIn(secret, self.target.logs())
        stored = self.target.rows(f"select * from webhook_endpoints where id = '{id}'")
        self.assertNotIn(secret, str(stored))
        self.send("DELETE", f"/v1/webhook_endpoints/{id}")
