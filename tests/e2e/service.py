"""Luthier as processes on loopback, in both forms, for tests that look at it from outside."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import openai

import tiny_model
import upstream

ROOT = Path(__file__).resolve().parents[2]
LUTHIER = os.environ.get("LUTHIER_BIN", str(ROOT / "target/debug/luthier"))
S3_SERVER = os.environ.get("S3_SERVER_BIN", str(ROOT / "target/debug/s3_server"))
POSTGRES = os.environ.get("LUTHIER_TEST_POSTGRES_URL", "postgres://root@127.0.0.1:5432/postgres")
AMQP = os.environ.get("LUTHIER_TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f")
MODEL = "tiny-llama"


def environment(extra=None):
    """Ours without `LUTHIER_…`: the service takes each of those for a key of its configuration."""
    return {**{k: v for k, v in os.environ.items() if not k.startswith("LUTHIER_")}, **(extra or {})}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(what, condition, limit_s=60):
    """Polls until `condition()` is true; its last exception or value is in the failure."""
    deadline, last = time.monotonic() + limit_s, None
    while time.monotonic() < deadline:
        try:
            last = condition()
            if last:
                return last
        except Exception as e:  # noqa: BLE001 - shown when the time is up
            last = e
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {limit_s} s (last: {last!r})")


class Service:
    """Shared by both forms: a directory, processes with logs, a client."""

    # What every process finds in its environment, for forms of one test.
    env = {}

    def __init__(self):
        self.dir = Path(tempfile.mkdtemp(prefix="luthier-e2e-"))
        self.processes = {}
        self.judge = upstream.Judge()
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        try:
            self.set_up()
        except BaseException:
            print(self.logs())
            self.close()
            raise

    def spawn(self, name, *args, env=None):
        log = open(self.dir / f"{name}.log", "ab")
        process = subprocess.Popen(
            [str(a) for a in args], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=environment({**self.env, **(env or {})}),
        )
        self.processes[name] = process
        return process

    def luthier(self, *args):
        done = subprocess.run([LUTHIER, *map(str, args)], capture_output=True, text=True, timeout=120, env=environment(self.env))
        if done.returncode != 0:
            raise AssertionError(f"luthier {' '.join(map(str, args))}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout.strip()

    def client(self, key=None, strict=True, **options):
        """openai-python, which refuses what is not as its types say if it is `strict`; all it hears is held against OpenAI's schema."""
        http = openai.DefaultHttpxClient(event_hooks={"response": [self.judge.watch]})
        return openai.OpenAI(base_url=self.base_url, api_key=key or self.key, http_client=http,
                             _strict_response_validation=strict, **options)

    def wait_until_ready(self):
        def ready():
            with urllib.request.urlopen(self.base_url.removesuffix("/v1") + "/readyz", timeout=2) as reply:
                return reply.status == 200

        def answers():
            return self.client(max_retries=0).chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=1)

        wait_until("the API is ready", ready)
        self.key = self.luthier("key", "create", "--project", "default", *self.place)
        wait_until("a worker answers", answers)

    def stop(self, name, sig=signal.SIGTERM, limit_s=60):
        process = self.processes.pop(name)
        process.send_signal(sig)
        return process.wait(timeout=limit_s)

    def close(self):
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes = {}
        shutil.rmtree(self.dir, ignore_errors=True)
        self.judge.verdict()

    def logs(self):
        tail = lambda path: f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-40:])  # noqa: E731
        return "\n".join(tail(path) for path in sorted(self.dir.glob("*.log")))


class Embedded(Service):
    """`luthier up` on a directory."""

    form = "embedded"

    def set_up(self):
        self.data_dir = self.dir / "data"
        self.place = ["--data-dir", self.data_dir]
        self.luthier("model", "add", MODEL, tiny_model.write(self.dir / "tiny"), *self.place)
        self.start()

    def start(self):
        self.spawn("up", LUTHIER, "up", *self.place, "--listen", f"127.0.0.1:{self.port}")
        self.wait_until_ready()


class Production(Service):
    """api, scheduler and workers as processes of their own on PostgreSQL, RabbitMQ and S3."""

    form = "production"
    n_workers = 2

    def set_up(self):
        self.database = f"luthier_e2e_{secrets.token_hex(6)}"
        self.psql(f"create database {self.database}")
        s3_port, self.door_port = free_port(), free_port()
        self.spawn("s3", S3_SERVER, "--listen", f"127.0.0.1:{s3_port}", "--root", self.dir / "s3", "--bucket", "luthier")
        wait_until("the S3 server listens", lambda: socket.create_connection(("127.0.0.1", s3_port), 1))
        self.config = self.dir / "luthier.toml"
        self.config.write_text(f"""
data_dir = "{self.dir / 'state'}"
[database]
url = "{POSTGRES.rsplit('/', 1)[0]}/{self.database}"
[objects]
url = "s3://luthier/e2e"
endpoint = "http://127.0.0.1:{s3_port}"
access_key_id = "luthier-test"
secret_access_key = "luthier-test-secret"
[queue]
url = "{AMQP}"
prefix = "{self.database}"
[api]
listen = "127.0.0.1:{self.port}"
operational_listen = "127.0.0.1:{free_port()}"
batch_lease_ttl_s = 6
[scheduler]
door_listen = "127.0.0.1:{self.door_port}"
lease_ttl_s = 6
retry_backoff_max_s = 2
[worker]
beat_interval_s = 1
checkpoint_interval_s = 2
threads = 1
[secrets]
key_pepper = "{secrets.token_hex(32)}"
service_key = "{secrets.token_hex(32)}"
""")
        self.place = ["--config", self.config]
        self.luthier("migrate", "--config", self.config)
        self.luthier("model", "add", MODEL, tiny_model.write(self.dir / "tiny"), *self.place)
        self.spawn("scheduler", LUTHIER, "scheduler", "--config", self.config)
        self.start_api()
        for i in range(self.n_workers):
            self.start_worker(f"worker-{i}")
        self.wait_until_ready()

    def start_api(self):
        return self.spawn("api", LUTHIER, "api", "--config", self.config)

    def start_worker(self, name):
        return self.spawn(name, LUTHIER, "worker", "--config", self.config, env={
            "LUTHIER_WORKER_LISTEN": f"127.0.0.1:{free_port()}",
            "LUTHIER_WORKER_CACHE_DIR": str(self.dir / f"cache-{name}"),
        })

    def psql(self, sql, database=None):
        url = POSTGRES if database is None else f"{POSTGRES.rsplit('/', 1)[0]}/{database}"
        done = subprocess.run(["psql", url, "-Atqc", sql], capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise AssertionError(f"psql: {done.stderr}")
        return done.stdout.strip()

    def close(self):
        try:
            super().close()
        finally:
            self.psql(f"drop database if exists {self.database} with (force)")


class OneService:
    """Mixed into test classes: all tests of a class share one service, of the form that `make` starts."""

    @classmethod
    def setUpClass(cls):
        cls.service = cls.make()
        cls.client = cls.service.client()
        # For what the SDK's types have no word for, though OpenAI answers so, too.
        cls.lenient = cls.service.client(strict=False)

    @classmethod
    def tearDownClass(cls):
        cls.service.close()

    @classmethod
    def upload(cls, content):
        """The id of a training file."""
        return cls.client.files.create(file=("train.jsonl", content), purpose="fine-tune").id


def examples(n, offset=0):
    """A small, regular dataset as JSONL bytes."""
    rows = ({"messages": [
        {"role": "user", "content": f"What is {i}+{i}?"}, {"role": "assistant", "content": f"It is {2 * i}."},
    ]} for i in range(offset, offset + n))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def finish(client, job_id, limit_s=240):
    """The job once it reached a terminal state."""
    def ended():
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if job.status in ("succeeded", "failed", "cancelled") else None

    return wait_until(f"{job_id} ends", ended, limit_s)


def export(service, model, query="format=peft"):
    """The bytes of an export of the model: a zip archive of a folder, or a GGUF file."""
    request = urllib.request.Request(
        f"{service.base_url}/x/models/{model}/export?{query}", headers={"Authorization": f"Bearer {service.key}"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return reply.read()
