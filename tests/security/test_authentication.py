"""Who is let in: keys, and what is no key (API2)."""

import random
import string
import time
import zlib

from attack import Wire, head, in_both_forms, quickest

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase


def spelled(body):
    """A key with the checksum that a real one of this body would have: it is looked up, as without one it would not be."""
    sum, digits = zlib.crc32(body.encode()), ""
    for _ in range(6):
        sum, digit = divmod(sum, 62)
        digits = BASE62[digit] + digits
    return body + digits


def drawn(n):
    return "".join(random.choices(BASE62, k=n))


@in_both_forms
class Authentication:
    def test_s01_no_authorization(self):
        reply = self.refused(self.send("GET", "/v1/models", key=""), 401)
        self.assertEqual(reply.error["type"], "invalid_request_error")
        self.assertEqual(reply.headers["www-authenticate"], "Bearer")

    def test_s02_an_empty_bearer_another_scheme_and_two_headers(self):
        for value in ("Bearer ", "Bearer", "Basic " + self.a.key, self.a.key, "Bearer  "):
            with self.subTest(value[:8]):
                self.refused(self.send("GET", "/v1/models", key="", headers={"Authorization": value}), 401)
        for first, second in ((self.a.key, self.b.key), (self.a.key, self.a.key), ("wrong", self.a.key)):
            with Wire(self.target) as wire:
                wire.send(head("GET", "/v1/models", key=first, extra=[f"Authorization: Bearer {second}"]))
                self.refused(wire.reply().judge(), 401)

    def test_s03_a_key_with_one_character_changed(self):
        for place in (9, 20, len(self.a.key) - 1):
            changed = self.a.key[:place] + ("A" if self.a.key[place] != "A" else "B") + self.a.key[place + 1:]
            reply = self.refused(self.send("GET", "/v1/models", key=changed), 401, code="invalid_api_key")
            self.assertNotIn(changed, reply.body.decode())

    def test_s04_a_secret_that_is_nearly_right_takes_as_long_as_any(self):
        public = len("sk-proj-") + 8
        self.assertEqual(spelled(self.a.key[:-6]), self.a.key)
        near = [spelled(self.a.key[:public] + drawn(43)) for _ in range(150)]
        far = [spelled("sk-proj-" + drawn(8 + 43)) for _ in range(150)]
        times = {"near": [], "far": []}
        with Wire(self.target) as wire:
            for pair in zip(near, far):
                for kind, key in zip(times, pair):
                    begun = time.perf_counter()
                    wire.send(head("GET", "/v1/models", key=key))
                    reply = wire.reply().judge()
                    times[kind].append(time.perf_counter() - begun)
                    self.assertEqual(reply.status, 401)
        near, far = (quickest(times[kind]) for kind in times)
        # Neither is compared with a secret: both are looked up by their HMAC.
        self.assertLess(abs(near - far), 0.2 * far)

    def test_s07_a_key_in_the_query_or_a_cookie(self):
        self.refused(self.send("GET", f"/v1/models?api_key={self.a.key}&key={self.a.key}", key=""), 401)
        cookie = {"Cookie": f"api_key={self.a.key}; Authorization=Bearer {self.a.key}"}
        self.refused(self.send("GET", "/v1/models", key="", headers=cookie), 401)
        self.assertNotIn(self.a.key, self.target.logs())

    def mismatched(self, name, *values):
        for value in values:
            with self.subTest(value):
                reply = self.refused(self.send("GET", "/v1/files", headers={name: value}), 401)
                self.assertNotIn(self.b.project, reply.body.decode().replace(value, ""))
        own = {"OpenAI-Project": self.a.project, "OpenAI-Organization": self.target.organization}
        self.assertEqual(self.send("GET", "/v1/files", headers={name: own[name]}).status, 200)
        self.assertEqual(self.send("GET", "/v1/files", headers=own).status, 200)

    def test_s16_a_header_that_names_another_project(self):
        self.mismatched("OpenAI-Project", self.b.project, self.c.project, "proj_none", "default")

    def test_s17_a_header_that_names_another_organisation(self):
        self.mismatched("OpenAI-Organization", self.target.other_organization, "other", "org-none")

    def test_s18_a_key_that_is_no_text_or_too_long(self):
        before = self.target.logs().count("\n")
        evil = [b"sk-\x00null", b"sk-proj-" + b"x" * 10_000, "sk-proj-\u0430bc".encode(), b"sk\xff\xfe", b"sk\x1b[31mred", b"a b c"]
        for key in evil:
            with self.subTest(key[:12]), Wire(self.target) as wire:
                wire.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + key + b"\r\n\r\n")
                reply = wire.reply()
                self.assertIn(reply.status, (400, 401))
        with Wire(self.target) as wire:
            wire.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-a\r\nX-Evil: INFO forged\r\n\r\n")
            self.refused(wire.reply().judge(), 401)
        logs = self.target.logs()
        self.assertNotIn("forged", logs)
        self.assertNotIn("\x1b[31mred", logs)
        self.assertLessEqual(logs.count("\n") - before, len(evil) + 1, "a key wrote lines of its own")
