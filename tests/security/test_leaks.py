"""What must not be written down or be open by default: logs, the database, a fresh installation (API8, API9)."""

import http.client
import json
import re
import secrets
import sqlite3
import ssl
import subprocess
import tempfile
import unittest
import urllib.request
from pathlib import Path

from attack import INSIDES, MODEL, MULTIPART, ROOT, finish, form, in_both_forms, service, wait_until


@in_both_forms
class Leaks:
    def test_s104_secrets_in_every_header_and_field(self):
        marks = {kind: f"{kind}{secrets.token_hex(20)}" for kind in ("sk-proj-", "whsec_", "Bearer-", "wandb-", "AKIA", "pw-")}
        for mark in marks.values():
            for name in ("Authorization", "X-Api-Key", "Cookie", "User-Agent", "Referer", "X-Forwarded-For", "X-Request-Id", "Idempotency-Key",
                         "OpenAI-Organization", "OpenAI-Project", "X-Stainless-Retry-Count", "Accept", "Origin"):
                self.send("GET", "/v1/models", headers={name: mark})
            for path in (f"/v1/models/{mark}", f"/v1/files/{mark}", f"/v1/{mark}", f"/{mark}", f"/v1/files?after={mark}", f"/v1/models?{mark}"):
                self.send("GET", path)
            message = {"role": "user", "content": mark, "name": "x"}
            self.send("POST", "/v1/chat/completions", {"model": MODEL, "messages": [message], "max_tokens": 1, "user": mark, "stop": mark})
            for field in ("model", "messages", "stop", "seed", "user", "tools", "response_format", "metadata", mark):
                self.chat(**{field: mark}) if field != "messages" else self.send("POST", "/v1/chat/completions", {"messages": mark})
            for body in ({"model": mark, "training_file": mark}, {"model": MODEL, "training_file": "file-x", "suffix": mark * 3}):
                self.send("POST", "/v1/fine_tuning/jobs", body)
            self.send("POST", "/v1/files", form([("purpose", None, mark), ("file", mark, mark)]), headers={"Content-Type": MULTIPART})
            self.send("POST", "/v1/chat/completions", mark.encode())
        logs = self.target.logs()
        self.assertEqual([kind for kind, mark in marks.items() if mark in logs], [])
        self.assertIn("request", logs)

    def test_s105_prompts_answers_and_rows_are_not_in_the_log(self):
        question, taught = f"question {secrets.token_hex(12)}", f"taught {secrets.token_hex(12)}"
        answer = self.chat(question, max_tokens=40, temperature=0).json()["choices"][0]["message"]["content"]
        rows = [json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": taught}]})] * 12
        broken = f'{{"messages": [{taught}'
        finish(self.a.client, self.a.order(self.a.upload("\n".join([*rows, broken]).encode())), 120)
        logs = self.target.logs()
        for text in (question, taught, answer.strip()):
            self.assertNotIn(text, logs)

    def test_s115_the_database_and_the_bucket_hold_no_secret(self):
        keys = [tenant.key for tenant in (self.a, self.b, self.c)]
        pepper = self.secret("key_pepper")
        needles = [needle.encode() for needle in [*keys, *(key.removeprefix("sk-proj-")[:24] for key in keys), pepper]]
        stored = self.target.stored()
        self.assertIn(self.a.project.encode(), stored)
        objects = b"".join(Path(path).read_bytes() for path in self.target.objects())
        for needle in needles:
            self.assertNotIn(needle, stored)
            self.assertNotIn(needle, objects)
            self.assertNotIn(needle.decode(), self.target.logs())

    def test_s106_a_failure_of_the_service_tells_its_client_nothing(self):
        """A row that the service cannot read, as after a fault of the disk or of a program."""
        file, mark = self.a.upload(), secrets.token_hex(12)
        for column, broken in (("purpose", mark), ("size_bytes", "-1")):
            before, = self.target.rows(f"select {column} from files where id = '{file}'")[0]
            self.target.execute(f"update files set {column} = '{broken}' where id = '{file}'")
            for method, path in (("GET", f"/v1/files/{file}"), ("GET", "/v1/files")):
                with self.subTest(f"{method} {path} {column}"):
                    reply = self.target.send_unjudged(method, path)
                    self.assertEqual((reply.status, reply.headers["content-type"].split(";")[0]), (500, "application/json"), reply)
                    self.assertEqual(set(reply.error), {"message", "type", "param", "code"})
                    self.assertEqual(reply.error["type"], "server_error")
                    self.assertTrue(reply.error["message"].startswith("The server had an error while processing your request."), reply)
                    self.assertIsNone(INSIDES.search(reply.body.decode()))
                    for told in (mark, column, "files", file):
                        self.assertNotIn(told, reply.body.decode())
                    # The operator finds it by the id that the client has.
                    self.assertIn(reply.headers["x-request-id"], self.target.logs())
            self.target.execute(f"update files set {column} = '{before}' where id = '{file}'")
        self.assertEqual(self.send("DELETE", f"/v1/files/{file}").status, 200)

    def secret(self, name):
        if self.target.is_embedded:
            path, = (self.target.service.data_dir / "secrets").glob(f"*{name}*")
            self.assertEqual(path.stat().st_mode & 0o077, 0, f"others may read {path}")
            return path.read_text().strip()
        return re.search(rf'{name} = "(\w+)"', self.target.service.config.read_text())[1]

    def test_s105_the_operators_listener_shows_numbers_alone(self):
        """Metrics name routes, never tenants, keys or names."""
        with urllib.request.urlopen(f"http://{self.target.service.operational}/metrics", timeout=20) as reply:
            text = reply.read().decode()
        self.assertIn("luthier_http_requests_total", text)
        for secret in (self.a.key, self.a.project, self.b.project, self.a.file, "passwd", "union select"):
            self.assertNotIn(secret, text)

    def test_s118_a_crash_leaves_no_memory_on_a_disk(self):
        pids = self.target.pids()
        self.assertGreaterEqual(len(pids), 2)
        for pid in pids:
            self.assertRegex(Path(f"/proc/{pid}/limits").read_text(), r"Max core file size +0 +0 +bytes")


class FreshInstallation(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="luthier-security-")
        self.addCleanup(self.folder.cleanup)
        self.data_dir = Path(self.folder.name) / "data"

    def up(self, *more, env=None):
        log = open(Path(self.folder.name) / "up.log", "ab")
        self.addCleanup(log.close)
        process = subprocess.Popen([service.LUTHIER, "up", "--data-dir", str(self.data_dir), *more], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   env=service.environment({"LUTHIER_API_OPERATIONAL_LISTEN": f"127.0.0.1:{service.free_port()}", **(env or {})}))
        self.addCleanup(process.wait)
        self.addCleanup(process.terminate)
        return process

    def test_s112_a_public_address_without_tls_is_refused(self):
        for address in ("0.0.0.0:0", "[::]:0"):
            process = self.up("--listen", address)
            self.assertNotEqual(process.wait(30), 0)
            text = (Path(self.folder.name) / "up.log").read_text()
            self.assertIn("--insecure", text)

    def test_s112_the_default_address_is_loopback(self):
        example = (ROOT / "deploy/config.example.toml").read_text()
        for name in ("listen", "operational_listen", "door_listen"):
            for address in re.findall(rf'^#?{name} = "([^"]+)"', example, re.M):
                self.assertTrue(address.startswith("127.0.0.1:"), f"{name} = {address}")

    def over_tls(self):
        """What asks an installation that speaks TLS: (status, headers, body) of a path."""
        pem = ROOT / "api/tests/fixtures/tls"
        port = service.free_port()
        self.up("--listen", f"127.0.0.1:{port}", env={
            "LUTHIER_API_TLS_CERTIFICATE": str(pem / "certificate.pem"), "LUTHIER_API_TLS_KEY": str(pem / "key.pem")})

        def ask(path, key=None, ciphers=None, **versions):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if ciphers:
                context.set_ciphers(ciphers)
            for name, version in versions.items():
                setattr(context, name, version)
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
            try:
                connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
                reply = connection.getresponse()
                return reply.status, reply.headers, reply.read()
            finally:
                connection.close()

        wait_until("it is ready", lambda: ask("/readyz")[0] == 200, 30)
        return ask

    def test_s108_headers_over_tls(self):
        ask = self.over_tls()
        for path in ("/v1/models", "/healthz", "/no-such"):
            _, headers, _ = ask(path)
            self.assertEqual(headers["strict-transport-security"], "max-age=31536000")
            self.assertEqual(headers["x-content-type-options"], "nosniff")
            self.assertIsNone(headers["server"])

    def test_s109_old_versions_and_weak_ciphers(self):
        ask = self.over_tls()
        tls_1_2 = {"minimum_version": ssl.TLSVersion.TLSv1_2, "maximum_version": ssl.TLSVersion.TLSv1_2}
        for attack in ({"minimum_version": ssl.TLSVersion.TLSv1, "maximum_version": ssl.TLSVersion.TLSv1_1, "ciphers": "ALL:@SECLEVEL=0"},
                       {**tls_1_2, "ciphers": "AES128-SHA:AES256-SHA256:@SECLEVEL=0"}, {**tls_1_2, "ciphers": "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"},
                       {**tls_1_2, "ciphers": "aNULL:@SECLEVEL=0"}, {**tls_1_2, "ciphers": "PSK:@SECLEVEL=0"}):
            with self.subTest(attack), self.assertRaises((ssl.SSLError, ConnectionResetError)):
                ask("/healthz", **attack)
        self.assertEqual(ask("/healthz", **tls_1_2)[0], 200)
        self.assertEqual(ask("/healthz", minimum_version=ssl.TLSVersion.TLSv1_3)[0], 200)

    def test_s112_a_fresh_installation_has_no_key_that_anybody_knows(self):
        ask = self.over_tls()
        for key in (None, "sk-proj-default", "admin", "luthier", "sk-admin", "changeme", "default"):
            self.assertEqual(ask("/v1/models", key)[0], 401)
        database = sqlite3.connect(self.data_dir / "luthier.db")
        for table in ("api_keys", "admin_api_keys", "users"):
            self.assertEqual(database.execute(f"select count(*) from {table}").fetchone(), (0,))
        database.close()
        for path in (self.data_dir, *(self.data_dir / "secrets").iterdir()):
            self.assertEqual(path.stat().st_mode & 0o077, 0, f"others may read {path}")
