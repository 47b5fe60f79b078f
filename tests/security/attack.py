"""What every attack needs: the service in both forms with three tenants, replies that are judged as they come, and a wire for
bytes that no HTTP client would send."""

import atexit
import functools
import http.client
import json
import os
import re
import socket
import sqlite3
import sys
import threading
import time
import unittest
import urllib.parse
from pathlib import Path

# Behind ours: both folders have tests of the same names.
sys.path.append(str(Path(__file__).resolve().parents[1] / "e2e"))
import service  # noqa: E402
import tiny_model  # noqa: E402, F401
from internet import INTERNET, Hopeless  # noqa: E402
from issuer import Issuer  # noqa: E402
from service import MODEL, ROOT, Embedded, Production, examples, finish, wait_until  # noqa: E402, F401

MAX_FILE_BYTES = 24 << 20
ISSUER, PROXY = Issuer(), Issuer()
MAX_UNFINISHED_JOBS = 20
SETTINGS = {
    "LUTHIER_API_MAX_FILE_BYTES": str(MAX_FILE_BYTES), "LUTHIER_AUTH_ISSUERS": ISSUER.setting(),
    "LUTHIER_LIMITS_UNFINISHED_JOBS": str(MAX_UNFINISHED_JOBS),
    # Nobody goes there: what a process calls is what its configuration and its tenants name.
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), PROXY.url),
    # The S3 client alone would: its server is the operator's choice, as the environment is.
    "NO_PROXY": "127.0.0.1",
    **INTERNET.env,
}
MULTIPART = "multipart/form-data; boundary=XX"
# What an error must never show: how the service is made, where it lies, what opens it.
INSIDES = re.compile(
    r"panicked|backtrace|\bSELECT |\bINSERT INTO |sqlx|sea_orm|sqlite|SQLite|/(tmp|home|root)/|\.rs:\d|postgres(ql)?://|amqp://")


class Bounded:
    """A form with limits that a test can reach."""

    n_workers = 1

    def spawn(self, name, *args, env=None):
        return super().spawn(name, *args, env={**(env or {}), **SETTINGS})


class BoundedEmbedded(Bounded, Embedded):
    def set_up(self):
        self.operational = f"127.0.0.1:{service.free_port()}"
        super().set_up()

    def spawn(self, name, *args, env=None):
        return super().spawn(name, *args, env={"LUTHIER_API_OPERATIONAL_LISTEN": self.operational})


class BoundedProduction(Bounded, Production):
    @property
    def operational(self):
        return re.search(r'operational_listen = "([^"]+)"', self.config.read_text())[1]


class Reply:
    """An answer, whole."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json()["error"]

    def __repr__(self):
        return f"{self.status} {self.body[:600]!r}"

    def judge(self):
        """What holds for every answer, whatever was asked. Returns it."""
        assert self.status < 500, f"the service failed: {self}"
        assert re.fullmatch(r"req_[0-9a-f]{32}", self.headers.get("x-request-id", "")), f"no request id: {self.headers}"
        assert self.headers.get("x-content-type-options") == "nosniff" and not self.headers.get("server"), str(self.headers)
        if self.status >= 400:
            assert self.headers["content-type"].startswith("application/json"), str(self.headers)
            assert set(self.json()) == {"error"} and set(self.error) == {"message", "type", "param", "code"}, f"no envelope: {self}"
            shown = INSIDES.search(self.body.decode())
            assert not shown, f"an error shows {shown.group()!r}: {self}"
        return self


class Tenant:
    """A project with a key, what it owns, and who administers its organisation."""

    def __init__(self, target, project, key, organization, administrator):
        self.target, self.project, self.key = target, project, key
        self.organization, self.administrator = organization, administrator
        self.client = target.service.client(key, max_retries=0)

    def upload(self, content=None, name="train.jsonl"):
        content = examples(12) if content is None else content
        return self.client.files.create(file=(name, content), purpose="fine-tune").id

    def order(self, file=None, n_epochs=1, **more):
        """The id of a new job."""
        method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": n_epochs, "batch_size": 4}}}
        return self.client.fine_tuning.jobs.create(model=MODEL, training_file=file or self.upload(), method=method, **more).id

    @functools.cached_property
    def file(self):
        return self.upload()

    @functools.cached_property
    def job_id(self):
        return self.order(self.file, n_epochs=2, metadata={"of": self.project})

    @functools.cached_property
    def job(self):
        """One that has ended with a model and checkpoints."""
        job = finish(self.client, self.job_id, 120)
        assert job.status == "succeeded", f"{job.error}\n{self.target.service.logs()}"
        return job

    @property
    def model(self):
        return self.job.fine_tuned_model

    @functools.cached_property
    def checkpoints(self):
        return list(self.client.fine_tuning.jobs.checkpoints.list(self.job.id))


class Target:
    """A running service. `a` attacks, `b` is another project of its organisation, `c` one of another organisation."""

    def __init__(self, form):
        self.service, self.issuer = form(), ISSUER
        self.address = ("127.0.0.1", self.service.port)
        organization, project = self.rows("select organization_id, id from projects")[0]
        self.admin_key = self.luthier("admin-key", "create")
        self.a = Tenant(self, project, self.service.key, "luthier", self.admin_key)
        other = self.luthier("organization", "create", "other")
        self.organization, self.other_organization = organization, other
        self.b = self.tenant("b", "luthier")
        self.c = self.tenant("c", "other")
        for tenant in (self.b, self.c):
            tenant.job_id
        self.began = time.monotonic()
        self.hopeless = Hopeless(self.tenant("hopeless", "luthier"))
        self.revoked_key = self.key("--project", "default", "--name", "revoked")
        assert self.send("GET", "/v1/models", key=self.revoked_key).status == 200
        self.execute("update api_keys set revoked_at = 1 where name = 'revoked'")
        self.dribbling = Dribble([self.begin_slowly(i) for i in range(60)])

    def tenant(self, name, organization):
        administrator = self.luthier("admin-key", "create", "--organization", organization)
        project = self.send("POST", "/v1/organization/projects", {"name": name}, key=administrator).json()["id"]
        key = self.key("--project", name, "--organization", organization)
        return Tenant(self, project, key, organization, administrator)

    def luthier(self, *order):
        return self.service.luthier(*order, *self.service.place)

    def key(self, *order):
        return self.luthier("key", "create", *order)

    @property
    def is_embedded(self):
        return isinstance(self.service, Embedded)

    def sqlite(self):
        return sqlite3.connect(self.service.data_dir / "luthier.db", timeout=30)

    def execute(self, sql):
        if not self.is_embedded:
            return self.service.psql(sql, self.service.database)
        database = self.sqlite()
        with database:
            database.execute(sql)
        database.close()

    def rows(self, sql):
        """As tuples of text."""
        if not self.is_embedded:
            return [tuple(line.split("|")) for line in self.service.psql(sql, self.service.database).splitlines()]
        database = self.sqlite()
        rows = [tuple(map(str, row)) for row in database.execute(sql)]
        database.close()
        return rows

    def stored(self):
        """All that the database holds, as bytes."""
        if self.is_embedded:
            return b"".join(path.read_bytes() for path in self.service.data_dir.glob("luthier.db*"))
        tables = self.rows("select table_name from information_schema.tables where table_schema = 'public'")
        assert len(tables) > 10, tables
        return "\n".join(self.service.psql(f'select * from "{name}"', self.service.database) for name, in tables).encode()

    def objects(self, of=""):
        """Every object of the bucket, with its size; or those of one project, as others may have jobs that write."""
        root = self.service.data_dir / "objects" if self.is_embedded else self.service.dir / "s3"
        return {str(path): path.stat().st_size for path in root.rglob("*")
                if path.is_file() and path.name[0] != "." and of in str(path)}

    def logs(self):
        return "\n".join(path.read_text(errors="replace") for path in self.service.dir.glob("*.log"))

    def pids(self):
        """Of all processes of the service, the worker that `up` starts among them."""
        def of(pid):
            children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()
            return [pid, *(descendant for child in children for descendant in of(int(child)))]

        return [pid for name, process in self.service.processes.items() if name != "s3" for pid in of(process.pid)]

    def resident(self):
        """Memory of each process, in bytes."""
        return {pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") for pid in self.pids()}

    def begin_slowly(self, i):
        """A connection that has sent the beginning of a request: of its head, or of its body."""
        wire = Wire(self)
        if i % 2 == 0:
            wire.send(b"POST /v1/fi")
        else:
            wire.send(head("POST", "/v1/chat/completions", key=self.a.key, content_length=10_000) + b"{")
        return wire

    # --- asking

    def send(self, method, path, body=None, **options):
        """The answer, judged. `body`: bytes, or what becomes JSON. `key`: another than A's; `""`: none."""
        return self.send_unjudged(method, path, body, **options).judge()

    def send_unjudged(self, method, path, body=None, *, key=None, headers=(), address=None):
        key = self.a.key if key is None else key
        headers = dict(headers)
        if key:
            headers.setdefault("Authorization", f"Bearer {key}")
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection(*(address or self.address), timeout=60)
        try:
            try:
                connection.request(method, path, body, headers)
            except BrokenPipeError:
                pass  # refused before all of it was sent
            got = connection.getresponse()
            return Reply(got.status, got.headers, got.read())
        finally:
            connection.close()

    def chat(self, content="Hi", **more):
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 1, **more}
        return self.send("POST", "/v1/chat/completions", body)

    def post_form(self, parts, path="/v1/files", content_type=MULTIPART, **options):
        return self.send("POST", path, form(parts), headers={"Content-Type": content_type}, **options)

    def close(self):
        self.dribbling.stop()
        self.service.close()

    def is_well(self):
        for name, process in self.service.processes.items():
            assert process.poll() is None, f"{name} has ended\n{self.service.logs()}"
        assert self.send("GET", "/v1/models").status == 200
        assert self.chat().status == 200


def form(parts, boundary="XX"):
    """A multipart body of (name, filename or None, content)."""
    body = b""
    for name, filename, content in parts:
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
        content = content if isinstance(content, bytes) else content.encode()
        body += f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


def head(method, target, *, key=None, content_length=None, extra=()):
    """The head of an HTTP/1.1 request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: luthier"]
    if key:
        lines.append(f"Authorization: Bearer {key}")
    if content_length is not None:
        lines.append(f"Content-Length: {content_length}")
    return "\r\n".join([*lines, *extra, "", ""]).encode()


def quickest(times):
    """How long something takes when nothing else is in its way: on a busy machine a median tells of the machine."""
    return sorted(times)[len(times) // 20]


def quoted(text):
    """As one segment of a path."""
    return urllib.parse.quote(text, safe="")


class Wire:
    """A TCP connection to the API."""

    def __init__(self, target, timeout=20):
        self.socket = socket.create_connection(target.address, timeout)
        self.file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        self.file.close()
        self.socket.close()

    def send(self, data):
        """False: the other side had closed."""
        try:
            self.socket.sendall(data)
            return True
        except (BrokenPipeError, ConnectionResetError):
            return False

    def has_more(self):
        """Whether the service has answered or closed, without waiting for it."""
        self.socket.setblocking(False)
        try:
            self.socket.recv(1, socket.MSG_PEEK)
            return True
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True
        finally:
            self.socket.settimeout(20)

    def reply(self):
        """The next answer, not judged; `None` when the connection ended before one."""
        try:
            status = self.file.readline()
            if not status:
                return None
            headers = http.client.parse_headers(self.file)
            if headers.get("transfer-encoding") == "chunked":
                body = b""
                while size := int(self.file.readline(), 16):
                    body += self.file.read(size)
                    self.file.readline()
                self.file.readline()
            else:
                body = self.file.read(int(headers.get("content-length", 0)))
            return Reply(int(status.split()[1]), headers, body)
        except ConnectionResetError:
            return None

    def ends(self):
        """Whether the other side closes, now that nothing more is sent."""
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True


class Dribble:
    """Sends a byte on each of many connections now and then, until it is stopped."""

    def __init__(self, wires):
        self.wires = wires
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.over.wait(2):
            for wire in self.wires:
                wire.send(b"x")

    def stop(self):
        self.over.set()
        self.thread.join()
        for wire in self.wires:
            wire.close()


TARGETS = {}


def target(form):
    """One for all test files of a run; if it does not start, it is not tried again."""
    if form not in TARGETS:
        TARGETS[form] = None
        TARGETS[form] = Target(form)
        atexit.register(TARGETS[form].close)
    if TARGETS[form] is None:
        raise AssertionError(f"the {form.form} form did not start")
    return TARGETS[form]


def in_both_forms(attacks):
    """A class decorator: test classes of its module that attack each form, or the one that $ATTACKED_FORM names."""
    module = sys.modules[attacks.__module__]
    for made in (BoundedEmbedded, BoundedProduction):
        if os.environ.get("ATTACKED_FORM", made.form) != made.form:
            continue
        name = attacks.__name__ + made.form.capitalize()
        setattr(module, name, type(name, (attacks, Attack, unittest.TestCase), {"made": made, "__module__": attacks.__module__}))
    return attacks


class Attack:
    """Mixed into what `in_both_forms` makes."""

    longMessage = True

    @classmethod
    def setUpClass(cls):
        cls.target = target(cls.made)
        cls.a, cls.b, cls.c = cls.target.a, cls.target.b, cls.target.c
        cls.send, cls.chat = cls.target.send, cls.target.chat

    def tearDown(self):
        self.target.is_well()

    def refused(self, reply, status=400, code=..., param=...):
        """The answer is this refusal."""
        statuses = status if isinstance(status, tuple) else (status,)
        self.assertIn(reply.status, statuses, reply)
        if code is not ...:
            self.assertEqual(reply.error["code"], code, reply)
        if param is not ...:
            self.assertEqual(reply.error["param"], param, reply)
        return reply
