"""Luthier as a whole for benchmarks and the soak: `luthier up` in release mode on a model of random weights, adapters of random values
brought through the API, and clients that say when the first token came. Standard library alone."""

import contextlib
import http.client
import io
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from array import array

from harness import ROOT, build_binary, build_example
from peers.shapes import SHAPES

sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
import tiny_model  # noqa: E402

MODEL = "bench"
RANK = 16
# What the chat template puts around a message, in tokens of `write_model`'s tokenizer.
TEMPLATE_TOKENS = 19
LETTERS = "abcdefghijklmnopqrstuvwxyz "


def write_model(shape, folder):
    """A model of random weights with a tokenizer whose every token is whole characters, so that each shows the moment it is there."""
    vocab_size = SHAPES[shape][-1]
    subprocess.run([build_example("bench_serve"), "--write", folder, "--shape", shape], check=True)
    tokenizer = tiny_model.tokenizer()
    words = tiny_model.SPECIAL + tiny_model.byte_alphabet()[:128]
    words += [f"w{i}" for i in range(len(words), vocab_size)]
    tokenizer["model"]["vocab"] = {word: i for i, word in enumerate(words)}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": tiny_model.TEMPLATE}
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
        with open(os.path.join(folder, name), "w") as f:
            json.dump(content, f)


class Adapters:
    """Adapters on all linears of a shape, as PEFT writes them. All hold the same random values, each begins elsewhere in them."""

    def __init__(self, shape, rank=RANK):
        hidden, layers, heads, kv_heads, feed_forward, _ = SHAPES[shape]
        kv = hidden // heads * kv_heads
        linears = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, kv), "self_attn.v_proj": (hidden, kv),
                   "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (hidden, feed_forward),
                   "mlp.up_proj": (hidden, feed_forward), "mlp.down_proj": (feed_forward, hidden)}
        header, end = {}, 0
        for layer in range(layers):
            for name, (n_in, n_out) in linears.items():
                for side, shape_of_side in (("A", [rank, n_in]), ("B", [n_out, rank])):
                    start, end = end, end + 4 * shape_of_side[0] * shape_of_side[1]
                    name_of_side = f"base_model.model.model.layers.{layer}.{name}.lora_{side}.weight"
                    header[name_of_side] = {"dtype": "F32", "shape": shape_of_side, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self.header = struct.pack("<Q", len(text)) + text
        draw = random.Random(1)
        self.values = array("f", (draw.uniform(-0.02, 0.02) for _ in range(end // 4)))
        self.config = json.dumps({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0, "bias": "none",
            "target_modules": sorted(name.split(".")[1] for name in linears)})

    def zip(self, i):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("adapter_config.json", self.config)
            archive.writestr("adapter_model.safetensors", self.header + (self.values[i:] + self.values[:i]).tobytes())
        return packed.getvalue()


class Refused(Exception):
    """An answer that is not 200, or a stream that ended with an error."""


class Client:
    """One connection to the API; not for several threads."""

    def __init__(self, service):
        self.service = service
        self.connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=120)

    def call(self, method, path, body=None, content_type="application/json"):
        """The body of the answer. Errors: `Refused`."""
        if content_type == "application/json" and body is not None:
            body = json.dumps(body).encode()
        return self._open(method, path, body, content_type).read()

    def json(self, method, path, body=None):
        return json.loads(self.call(method, path, body))

    def post_form(self, path, fields, file_name, content):
        boundary = uuid.uuid4().hex
        parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{file_name}"\r\n\r\n'.encode()
        body = b"".join([*parts, head, content, f"\r\n--{boundary}--\r\n".encode()])
        return json.loads(self.call("POST", path, body, f"multipart/form-data; boundary={boundary}"))

    def bring(self, archive):
        """The name of the model that the adapter in the archive becomes."""
        return self.post_form("/v1/x/adapters", {"base_model": MODEL}, "adapter.zip", archive)["id"]

    def chat(self, model, content, max_tokens, leave_after=None, **options):
        """Seconds to the first token of a streamed answer, and how many pieces of text came. With `leave_after` the client hangs up
        after so many pieces. Errors: `Refused`."""
        body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens, "stream": True, **options}
        began = time.perf_counter()
        reply = self._open("POST", "/v1/chat/completions", json.dumps(body).encode(), "application/json")
        first, n_pieces = None, 0
        for line in reply:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise Refused(event["error"])
            if any(choice["delta"].get("content") for choice in event["choices"]):
                first = first or time.perf_counter() - began
                n_pieces += 1
                if leave_after is not None and n_pieces >= leave_after:
                    self.connection.close()
                    break
        return first, n_pieces

    def _open(self, method, path, body, content_type):
        headers = {"Authorization": f"Bearer {self.service.key}", "Content-Type": content_type}
        self.connection.request(method, path, body, headers)
        reply = self.connection.getresponse()
        if reply.status != 200:
            raise Refused(f"{method} {path}: {reply.status} {reply.read()[:500]}")
        return reply


class Service:
    """`luthier up` on `data_dir`, in which `MODEL` is installed; `worker` holds keys of its configuration's section `[worker]`."""

    def __init__(self, data_dir, **worker):
        self.binary = build_binary()
        self.data_dir = data_dir
        self.port, self.worker_port = free_port(), free_port()
        config = data_dir + ".toml"
        with open(config, "w") as f:
            f.write(f'[api]\nlisten = "127.0.0.1:{self.port}"\noperational_listen = "127.0.0.1:0"\n')
            f.write(f'[worker]\nbeat_interval_s = 1\nlisten = "127.0.0.1:{self.worker_port}"\n')
            f.writelines(f"{key} = {value}\n" for key, value in worker.items())
        self.log = open(data_dir + ".log", "ab")
        self.process = subprocess.Popen(
            [self.binary, "up", "--data-dir", data_dir, "--config", config], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            env=environment())
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise

    def _wait_until_it_answers(self, limit_s=120):
        deadline = time.monotonic() + limit_s
        self.key = None
        while True:
            try:
                self.key = self.key or luthier("key", "create", "--project", "default", "--data-dir", self.data_dir)
                Client(self).chat(MODEL, "Hello", 1)
                self.worker_pid = child_of(self.process.pid)
                return
            except (OSError, Refused, subprocess.CalledProcessError) as error:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    sys.exit(f"luthier up does not answer: {error}; its log is {self.log.name}")
                time.sleep(0.2)

    def stop(self):
        self.process.terminate()
        code = self.process.wait(timeout=180)
        self.log.close()
        return code

    def metrics(self):
        """What the worker counts, by name (labels included)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.worker_port, timeout=10)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))}

    def worker_rss_bytes(self):
        with open(f"/proc/{self.worker_pid}/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self):
        """What both processes have used."""
        return cpu_s(self.process.pid) + cpu_s(self.worker_pid)


@contextlib.contextmanager
def running(data_dir, **worker):
    service = Service(data_dir, **worker)
    try:
        yield service
    finally:
        service.stop()


def install(shape, folder):
    """Writes a model of `shape` and installs it in a fresh data directory below `folder`; returns that."""
    stored, data_dir = os.path.join(folder, "model"), os.path.join(folder, "data")
    write_model(shape, stored)
    luthier("model", "add", MODEL, stored, "--data-dir", data_dir)
    return data_dir


def luthier(*args):
    done = subprocess.run([build_binary(), *args], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment())
    return done.stdout.strip()


def environment():
    """Ours without `LUTHIER_…`: the service takes each of those for a key of its configuration."""
    return {key: value for key, value in os.environ.items() if not key.startswith("LUTHIER_")}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def child_of(pid):
    """The only child of a process."""
    for other in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if int(stat(other)[1]) == pid:
                return int(other)
    raise OSError(f"process {pid} has no child yet")


def stat(pid):
    """The fields of /proc/PID/stat after the name."""
    with open(f"/proc/{pid}/stat") as f:
        return f.read().rsplit(") ", 1)[1].split()


def cpu_s(pid):
    """User and system time of a process."""
    fields = stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sentence(draw, n_tokens):
    """A message that makes a prompt of `n_tokens`, and shares no beginning with others."""
    return "".join(draw.choices(LETTERS, k=n_tokens - TEMPLATE_TOKENS))


def in_threads(n, work):
    """Runs work(0) … work(n − 1) beside each other and returns what they return. The first error of any is raised."""
    results, errors = [None] * n, []

    def run(i):
        try:
            results[i] = work(i)
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def percentile(values, p):
    """The smallest value that at least p percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * p // 100) - 1)]
