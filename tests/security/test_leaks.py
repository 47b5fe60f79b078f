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

from attack import MODEL, MULTIPART, ROOT, finish, form, in_both_forms, service, wait_until


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
        if self.target.is_embedded:
            stored = b"".join(path.read_bytes() for path in self.target.service.data_dir.glob("luthier.db*"))
        else:
            tables = [name for name, in self.target.rows("select table_name from information_schema.tables where table_schema = 'public'")]
            self.assertGreater(len(tables), 10)
            stored = "\n".join(self.target.service.psql(f'select * from "{name}"', self.target.service.database) for name in tables).encode()
        self.assertIn(self.a.project.encode(), stored)
        objects = b"".join(Path(path).read_bytes() for path in self.target.objects())
        for needle in needles:
            self.assertNotIn(needle, stored)
            self.assertNotIn(needle, objects)
            self.assertNotIn(needle.decode(), self.target.logs())

    def secret(self, name):
        if self.target.is_embedded:
            path, = (self.target.service.data_dir / "secrets").glob(f"*{name}*")
            self.assertEqual(path.stat().st_mode & 0o077, 0, f"others may read {path}")
            return path.read_text().strip()
        return re.search(rf'{name} = "(\w+)"', self.target.service.config.read_text())[1]

    def test_s54_s105_the_operators_listener_shows_numbers_alone(self):
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

    def test_s108_s109_s112_a_fresh_installation_over_tls(self):
        pem = ROOT / "api/tests/fixtures/tls"
        port = service.free_port()
        self.up("--listen", f"127.0.0.1:{port}", env={
            "LUTHIER_API_TLS_CERTIFICATE": str(pem / "certificate.pem"), "LUTHIER_API_TLS_KEY": str(pem / "key.pem")})

        def ask(path, key=None, **versions):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
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
        status, headers, _ = ask("/v1/models")
        self.assertEqual((status, headers["strict-transport-security"]), (401, "max-age=31536000"))
        self.assertIsNone(headers["server"])
        for key in ("sk-proj-default", "admin", "luthier", "sk-admin", "changeme", "default"):
            self.assertEqual(ask("/v1/models", key)[0], 401)
        with self.assertRaises((ssl.SSLError, ConnectionResetError)):
            ask("/v1/models", minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_1)
        self.assertEqual(ask("/healthz", minimum_version=ssl.TLSVersion.TLSv1_2, maximum_version=ssl.TLSVersion.TLSv1_2)[0], 200)
        database = sqlite3.connect(self.data_dir / "luthier.db")
        self.assertEqual(database.execute("select count(*) from api_keys").fetchone(), (0,))
        database.close()
        for path in (self.data_dir / "secrets").iterdir():
            self.assertEqual(path.stat().st_mode & 0o077, 0, f"others may read {path}")
