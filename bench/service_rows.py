"""Rows of `serve_cpu` that a whole running service prints: what a client at the API sees, the worker's own threads being the engine's."""

import glob
import io
import itertools
import json
import os
import random
import tempfile
import threading
import time
import zipfile

import service
from harness import row
from service import Adapters, Client, in_threads, percentile, running, sentence

PROMPT_TOKENS = 32
MIB = 1 << 20


def fits(name, ours, limit, unit):
    """A row whose second figure is the most that ours may be; a hundredth of it, or less than nothing, is as good as can be told."""
    return row(f"{name}, to fit in", [ours, limit], unit, limit / max(ours, limit / 100), 1.0)


def bring_all(client, adapters, n):
    """The names of `n` models, and what one takes in the worker's memory."""
    models = [client.bring(adapters.zip(i)) for i in range(n)]
    return models, client.service.metrics()["luthier_worker_adapter_memory_bytes"] / n


# --- One adapter after the other -----------------------------------------------------------------------------------------------------

SWITCHING_SHAPE = "135m"
IN_MEMORY = 4
# What a switch may add to the time to the first token. Milliseconds.
FROM_MEMORY_MS, FROM_DISK_MS = 5, 50


def measure_switching(args):
    """How much later the first token comes when another adapter was used before, at the median of pairs of requests: the second request
    of a pair goes to the adapter that has just been used. On disk means: not in the worker's memory and not in the kernel's cache."""
    n_adapters, n_rounds = (6, 3) if args.quick else (12, 8)
    draw = random.Random(2)
    with tempfile.TemporaryDirectory() as folder:
        data_dir = service.install(SWITCHING_SHAPE, folder)
        with running(data_dir) as up:
            models, size_bytes = bring_all(Client(up), Adapters(SWITCHING_SHAPE), n_adapters)
        with running(data_dir, adapter_memory_bytes=int((IN_MEMORY + 0.5) * size_bytes)) as up:
            client = Client(up)

            def more_ms(among):
                client.chat(among[-1], sentence(draw, PROMPT_TOKENS), 2)
                added = []
                for model in among * n_rounds:
                    drop_from_kernel_cache(glob.glob(f"{data_dir}/cache/adapters/*/*"))
                    switched, just_used = (client.chat(model, sentence(draw, PROMPT_TOKENS), 2)[0] for _ in range(2))
                    added.append(1000 * (switched - just_used))
                return percentile(added, 50)

            for name, among, limit in (("memory", models[:IN_MEMORY], FROM_MEMORY_MS), ("disk", models, FROM_DISK_MS)):
                more_ms(among[:1] * 2 if args.quick else among)
                yield fits(f"{SWITCHING_SHAPE} r{service.RANK} from {name}: more TTFT p50", more_ms(among), limit, "ms")


def drop_from_kernel_cache(paths):
    for path in paths:
        with open(path) as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# --- A thousand adapters -------------------------------------------------------------------------------------------------------------

THOUSAND_SHAPE = "10m"
CLIENTS = 16
NEW_TOKENS = 16
# Of all adapters, those that the budget holds.
HELD = 0.1
# Beside the budget, in adapters: those that answer, those being loaded, and what the allocator holds back.
BESIDE = 64


def measure_thousand(args):
    """Answers of many adapters, of which memory holds a tenth, beside the same answers with all of them in memory."""
    n_adapters, n_warm, n_requests = (200, 200, 600) if args.quick else (1000, 500, 4000)
    with tempfile.TemporaryDirectory() as folder:
        data_dir = service.install(THOUSAND_SHAPE, folder)
        with running(data_dir, adapter_memory_bytes=64 << 30) as up:
            models, size_bytes = bring_all(Client(up), Adapters(THOUSAND_SHAPE), n_adapters)
            resident, *_ = zipf_answers(up, models, n_warm, n_requests)
        budget = int(HELD * n_adapters * size_bytes)
        with running(data_dir, adapter_memory_bytes=budget) as up:
            in_threads(CLIENTS, lambda i: Client(up).chat(service.MODEL, sentence(random.Random(i), PROMPT_TOKENS), NEW_TOKENS))
            base = up.worker_rss_bytes()
            tiered, errors, most = zipf_answers(up, models, n_warm, n_requests)
            held = up.metrics()["luthier_worker_adapter_memory_bytes"]
    name = f"{THOUSAND_SHAPE} {n_adapters} adapters"
    p99 = [1000 * percentile(times, 99) for times in (tiered, resident)]
    yield row(f"{name}, all resident: TTFT p99", p99, "ms", p99[1] / p99[0], 0.5)
    yield row(f"{name}: errors", [len(errors), 0], "", float(not errors), 1.0)
    yield fits(f"{name}: in memory", held / MIB, budget / MIB, "MiB")
    yield fits(f"{name}: worker beyond base", (most - base) / MIB, (budget + BESIDE * size_bytes) / MIB, "MiB")


def zipf_answers(up, models, n_warm, n_requests):
    """Times to the first token of `n_requests` answers after `n_warm`, what went wrong, and the worker's largest memory meanwhile."""
    draw = random.Random(3)
    weights = [1 / (rank + 1) for rank in range(len(models))]
    asked = [(model, sentence(draw, PROMPT_TOKENS)) for model in draw.choices(models, weights, k=n_warm + n_requests)]
    times, errors, most = [], [], 0
    numbers = itertools.count()

    def client(_):
        nonlocal most
        connection = Client(up)
        while (i := next(numbers)) < len(asked):
            try:
                first, _ = connection.chat(*asked[i], NEW_TOKENS)
            except (service.Refused, OSError) as error:
                errors.append(error)
                continue
            most = max(most, up.worker_rss_bytes())
            if i >= n_warm and first is not None:
                times.append(first)

    in_threads(CLIENTS, client)
    return times, errors, most


# --- A training and four chats -------------------------------------------------------------------------------------------------------

TRAINING_SHAPE = "10m"
CHATS = 4
CHAT_TOKENS = 32
# Of all processors, what the chats take alone.
CHAT_SHARE = 0.30


def measure_training(args):
    """Chats beside a training, a training beside chats: each against itself alone; the adapter is to be the same, to the byte."""
    idle_s, n_rows = (10, 120) if args.quick else (40, 1500)
    with tempfile.TemporaryDirectory() as folder, running(service.install(TRAINING_SHAPE, folder)) as up:
        client = Client(up)
        data = dataset(n_rows)
        pause_s, share = paced(up, idle_s / 4)
        idle = chat_for(up, pause_s, lambda began: time.perf_counter() - began < idle_s)
        alone, alone_speed = train(client, data)
        ended = threading.Event()
        with_chats = []
        chats = threading.Thread(target=lambda: with_chats.extend(chat_for(up, pause_s, lambda _: not ended.is_set())))
        chats.start()
        beside, beside_speed = train(client, data)
        ended.set()
        chats.join()
        adapters = [adapter_bytes(client, model) for model in (alone, beside)]
    p99 = [1000 * percentile(times, 99) for times in (with_chats, idle)]
    same = float(adapters[0] == adapters[1])
    yield row(f"{TRAINING_SHAPE} chat ({share:.0%} CPU) in training, alone: TTFT p99", p99, "ms", p99[1] / p99[0], 1 / 1.5)
    yield row(f"{TRAINING_SHAPE} training beside chat, alone: speed", [beside_speed, alone_speed], "tok/s", beside_speed / alone_speed, 0.6)
    yield row(f"{TRAINING_SHAPE} training beside chat: same adapter", [len(adapters[0]), len(adapters[1])], "bytes", same, 1.0)


def chat_for(up, pause_s, goes_on):
    """Times to the first token of chats of four clients, each of which begins one every `pause_s` seconds."""
    began = time.perf_counter()

    def client(i):
        connection, draw, times = Client(up), random.Random(i), []
        due = began + pause_s * i / CHATS
        while goes_on(began):
            time.sleep(max(0.0, due - time.perf_counter()))
            due = max(due + pause_s, time.perf_counter())
            times.append(connection.chat(service.MODEL, sentence(draw, PROMPT_TOKENS), CHAT_TOKENS)[0])
        return [first for first in times if first is not None]

    return list(itertools.chain(*in_threads(CHATS, client)))


def paced(up, seconds):
    """How often each client may begin a chat so that all take `CHAT_SHARE`, and the share that was measured with it: the fewer chats run
    beside each other, the more each costs."""
    pause_s, share = 0.1, 0.0
    for n_left in reversed(range(6)):
        began, cpu = time.perf_counter(), up.cpu_s()
        chat_for(up, pause_s, lambda began: time.perf_counter() - began < seconds)
        share = (up.cpu_s() - cpu) / (time.perf_counter() - began) / os.cpu_count()
        if abs(share / CHAT_SHARE - 1) < 0.1 or n_left == 0:
            break
        pause_s *= share / CHAT_SHARE
    return pause_s, share


def dataset(n_rows):
    draw = random.Random(4)
    text = lambda n: "".join(draw.choices(service.LETTERS, k=n))  # noqa: E731
    turns = ([{"role": "user", "content": text(24)}, {"role": "assistant", "content": text(72)}] for _ in range(n_rows))
    return "".join(f"{json.dumps({'messages': messages})}\n" for messages in turns).encode()


def train(client, data):
    """Tunes a model on `data`. Returns its name, and tokens per second between the first step and the last."""
    file = client.post_form("/v1/files", {"purpose": "fine-tune"}, "train.jsonl", data)["id"]
    hyperparameters = {"n_epochs": 3, "batch_size": 8}
    job = client.json("POST", "/v1/fine_tuning/jobs", {
        "model": service.MODEL, "training_file": file, "seed": 7,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}})
    counted = lambda: client.service.metrics().get("luthier_worker_trained_tokens_total", 0.0)  # noqa: E731
    before, seen = counted(), []
    while job["status"] not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.1)
        n_tokens = counted() - before
        if n_tokens > 0 and (not seen or seen[-1][1] != n_tokens):
            seen.append((time.perf_counter(), n_tokens))
        job = client.json("GET", f"/v1/fine_tuning/jobs/{job['id']}")
    if job["status"] != "succeeded":
        raise service.Refused(f"the job {job['status']}: {job['error']}")
    (first_at, first), (last_at, last) = seen[0], seen[-1]
    return job["fine_tuned_model"], (last - first) / (last_at - first_at)


def adapter_bytes(client, model):
    exported = client.call("GET", f"/v1/x/models/{model}/export?format=peft")
    with zipfile.ZipFile(io.BytesIO(exported)) as archive:
        return archive.read("adapter_model.safetensors")
