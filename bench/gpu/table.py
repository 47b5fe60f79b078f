"""The rows of `bench/gpu/run`: what it measured beside its peers, the goals, and the page that says so."""

import json
import os
import re

SHAPES = {"8b": "llama-3.1-8b", "1.5b": "qwen2.5-1.5b", "0.5b": "qwen2.5-0.5b"}
# How many times better ours is to be, or where a row ends with "to reach" or "to fit in", what stands in the peer's column.
AGAINST_UNSLOTH = {"8b": 1.3, "1.5b": 1.5, "0.5b": 2.0}
TRL_8B, TOKENS_8B = 2.0, 17_000
ALPACA = 3.0
QLORA, QLORA_GIB = 1.2, 8.0
DECODE_BATCHES = [1, 64]
# Of 4.3 TB/s, as a copy within an H200 moves them.
BANDWIDTH_GB_S, OF_BANDWIDTH = 4300, 0.8
# Adapters in a batch, and what they are to keep of the base's speed.
ADAPTERS_KEEP = {4: 0.95, 32: 0.8}
FIRST_TOKEN_S = 0.1
DECODE_PEERS = {"transformers+graph": "transformers in a CUDA graph", "vllm": "vLLM"}
LEAST = ["base=nf4", "memory=layer-inputs", "pass=2048", "streams=host"]
# What fits where Unsloth fits.
LEAN = ["memory=drop-gate-up", "pass=2048", "streams=host", "gate-up=5"]


class Data:
    """What lies in folders of raw data; of two answers to one case the later counts."""

    def __init__(self, folders):
        self.folders = folders
        self.about = {}
        for text in self.texts("about.json"):
            self.about |= json.loads(text)
        self.ours, self.profiles, self.peers = {}, {}, {}
        for line in self.lines("ours.jsonl"):
            self.ours[ours_key(line)] = line
            if line.get("profile"):
                self.profiles[ours_key(line)] = line["profile"]
        for line in self.lines("peers.jsonl"):
            self.peers[line["peer"], line["model"], line["workload"], line["base"]] = line
        self.decode = {}
        for line in self.lines("ours_decode.jsonl"):
            model, batch = model_of(line), next(o for o in line["options"] if o.startswith("batch="))
            adapters = next((o.removeprefix("adapters=") for o in line["options"] if o.startswith("adapters=")), None)
            base = next((o.removeprefix("base=") for o in line["options"] if o.startswith("base=")), None)
            who = ", ".join(filter(None, ["ours", adapters and f"{adapters} adapters", base]))
            self.decode[who, model, int(batch.removeprefix("batch="))] = line
        self.both = {model_of(line): line for line in self.lines("both.jsonl")}
        for line in self.lines("peers_decode.jsonl"):
            self.decode[line["peer"], line["model"], line["batch"]] = line

    def texts(self, name):
        for folder in self.folders:
            path = os.path.join(folder, name)
            if os.path.exists(path):
                with open(path) as f:
                    yield f.read()

    def text(self, name):
        return ([*self.texts(name)] or [""])[-1]

    def lines(self, name):
        for text in self.texts(name):
            yield from (json.loads(line) for line in text.splitlines() if line.startswith("{"))

    def of_ours(self, model, workload, options=()):
        return self.ours.get((model, workload, tuple(sorted(options))), {})

    def of_peer(self, peer, model, workload, base="bf16"):
        return self.peers.get((peer, model, workload, base), {})

    def tests(self):
        """Each test of engine/tests/cuda.rs and how it ended."""
        found, name = {}, None
        for line in self.text("tests.log").splitlines():
            begun = re.match(r"test (\S+) \.\.\. (.*)", line)
            name, said = begun.groups() if begun else (name, line)
            ended = re.fullmatch(r"(ok|FAILED|ignored).*", said.strip())
            if name and ended:
                found[name], name = ended.group(1), None
        if name:
            found[name] = "did not end"
        return found


def model_of(line):
    return next((m for m, file in SHAPES.items() if file in line["config"]), line["config"])


def ours_key(line):
    model = model_of(line)
    workload = line["workload"] if "/" not in line["workload"] else os.path.basename(line["workload"]).removesuffix(".txt")
    options = [o for o in line["options"] if not o.startswith(("steps=", "profile="))]
    return model, workload, tuple(sorted(options))


def row(name, unit, ours, peer, goal, ratio=None):
    """`ratio` is how many times better ours is; where a side is missing, the row was not run."""
    if ratio is None and ours and peer:
        ratio = ours / peer
    verdict = "not run" if ratio is None else "-" if goal is None else "ok" if ratio >= goal else "below"
    return {"row": name, "unit": unit, "ours": ours, "peer": peer, "ratio": ratio, "goal": goal, "verdict": verdict}


def less(name, ours, peer, goal):
    return row(name, "GiB", ours, peer, goal, peer / ours if ours and peer else None)


def rows(data):
    speed, memory = "tokens_per_s", "memory_gib"
    for model, goal in AGAINST_UNSLOTH.items():
        name = f"{model.upper()} packed 8x2048"
        ours, unsloth, trl = data.of_ours(model, "packed"), data.of_peer("unsloth", model, "packed2048x8"), data.of_peer("trl", model, "packed2048x8")
        yield row(f"{name}, Unsloth", "tok/s", ours.get(speed), unsloth.get("tokens_per_s_total"), goal)
        if model == "8b":
            yield row(f"{name}, TRL's defaults", "tok/s", ours.get(speed), trl.get("tokens_per_s_total"), TRL_8B)
            yield row(f"{name}, to reach", "tok/s", ours.get(speed), TOKENS_8B, 1.0)
            lean = data.of_ours(model, "packed", LEAN)
            yield row(f"{name} in no more memory, Unsloth", "tok/s", lean.get(speed), unsloth.get("tokens_per_s_total"), goal)
            yield less(f"{name}: peak memory of that, Unsloth", lean.get(memory), unsloth.get("peak_allocated_gib"), 1.0)
    for model in SHAPES:
        ours, trl = data.of_ours(model, "alpaca"), data.of_peer("trl", model, "alpaca")
        yield row(f"{model.upper()} Alpaca's lengths, unpacked, TRL's defaults", "tok/s", ours.get(speed), trl.get("tokens_per_s_total"), ALPACA)
    ours, unsloth = data.of_ours("8b", "packed2", LEAST), data.of_peer("unsloth", "8b", "packed2048x2", "nf4")
    yield row("8B QLoRA 2x2048, Unsloth", "tok/s", ours.get(speed), unsloth.get("tokens_per_s_total"), QLORA)
    yield less("8B QLoRA 2x2048: peak memory, to fit in", ours.get(memory), QLORA_GIB, 1.0)
    for batch in DECODE_BATCHES:
        for peer, title in DECODE_PEERS.items():
            ours, theirs = (data.decode.get((who, "8b", batch), {}).get(speed) for who in ("ours", peer))
            yield row(f"8B decode, batch {batch}, {title}", "tok/s", ours, theirs, 0.95 if peer == "vllm" else None)
        read = data.decode.get(("ours", "8b", batch), {}).get("read_gb_per_s")
        yield row(f"8B decode, batch {batch}: what it must read, of 4.3 TB/s", "GB/s", read, BANDWIDTH_GB_S if read else None, OF_BANDWIDTH)
    most = DECODE_BATCHES[-1]
    for adapters, kept in ADAPTERS_KEEP.items():
        ours, base = (data.decode.get((who, "8b", most), {}).get(speed) for who in (f"ours, {adapters} adapters", "ours"))
        yield row(f"8B decode, batch {most}, {adapters} adapters, our own base", "tok/s", ours, base, kept)
    both = data.both.get("8b", {})
    first = (both.get("first_token_s") or {}).get("p99")
    yield row("8B: first token after the last step, p99", "s", first, FIRST_TOKEN_S, 1.0, FIRST_TOKEN_S / first if first else None)
    runs = [how for name, how in data.tests().items() if re.search(r"twenty|20_runs", name)]
    same = None if not runs else float(all(how == "ok" for how in runs))
    yield row("same seed, 20 runs and 10 killed and resumed: same bytes", "", same, 1.0, 1.0)


def number(value):
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def cells(row):
    return [row["row"], number(row["ours"]), number(row["peer"]), row["unit"], number(row["ratio"]), number(row["goal"]), row["verdict"]]


def markdown(head, lines):
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*out, *("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)]


def ours_table(data):
    head = ["shape", "workload", "options", "tok/s", "median step, ms", "memory, GiB"]
    lines = [
        [model.upper(), workload, ", ".join(options) or "-", f"{line['tokens_per_s']:,.0f}", f"{line['seconds'] * 1e3:.1f}", f"{line['memory_gib']:.2f}"]
        for (model, workload, options), line in sorted(data.ours.items())
    ]
    return markdown(head, lines)


def peers_table(data):
    head = ["peer", "shape", "workload", "base", "tok/s", "peak allocated, GiB", "reserved", "attention", "optimizer"]
    lines = []
    for (peer, model, workload, base), line in data.peers.items():
        if "error" in line:
            lines.append([peer, model.upper(), workload, base, error_of(line), "", "", "", ""])
        else:
            lines.append([peer, model.upper(), workload, base, f"{line['tokens_per_s_total']:,.0f}", line.get("peak_allocated_gib", ""),
                          line.get("peak_reserved_gib", ""), line["attention"], line["optimizer"]])
    return markdown(head, lines)


def error_of(line):
    return "failed: " + (line["error"].splitlines() or [""])[-1][:120].replace("|", "/")


def versions(data):
    """What the peers were, one version of each."""
    found = {}
    for line in [*data.peers.values(), *data.decode.values()]:
        found |= line.get("versions", {})
    return ["", "Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(found.items())) + "."] if found else []


def decode_table(data):
    head = ["who", "shape", "batch", "tok/s", "prefill, tok/s", "memory, GiB"]
    lines = []
    for (who, model, batch), line in sorted(data.decode.items()):
        speeds = [error_of(line), "", ""] if "error" in line else [
            f"{line['tokens_per_s']:,.0f}", number(line.get("prefill_tokens_per_s")), line.get("memory_gib", line.get("peak_allocated_gib", ""))]
        lines.append([who, model.upper(), batch, *speeds])
    return markdown(head, lines) if lines else ["not run"]


def both_tables(data):
    """Training and chats at once."""
    for model, line in data.both.items():
        head = [f"{model.upper()}, chats at once", "first token p50, ms", "p99", "between tokens p50, ms", "p99", "tok/s", "training, tok/s"]
        lines = []
        for title, key, trained in (("alone", "chats", "trained_tokens_per_s"), ("beside each other", "chats_beside", "trained_tokens_per_s_beside")):
            chats = line[key]
            times = [chats[of][at] for of in ("first_token_s", "between_tokens_s") for at in ("p50", "p99")]
            lines.append([title, *(f"{1e3 * t:.1f}" for t in times), f"{chats['tokens_per_s']:,.0f}", f"{line[trained]:,.0f}"])
        yield from markdown(head, lines)
        if line["first_token_s"]:
            first, adapter = line["first_token_s"], line["adapter_s"]
            yield (f"\nFirst token after the last step, of {first['n']}: p50 {1e3 * first['p50']:.1f} ms, p99 {1e3 * first['p99']:.1f} ms; of these until the adapter is in "
                   f"host memory: {1e3 * adapter['p50']:.1f} and {1e3 * adapter['p99']:.1f} ms.")


def profiles(data):
    """The kernels that take most of a step, where a run asked for them."""
    for (model, workload, options), kernels in sorted(data.profiles.items()):
        case = " ".join([model.upper(), workload, *options])
        yield f"\nOne step of {case} by kernel, each waited for: {sum(ms for _, ms, _ in kernels):.1f} ms. The ten that take most:\n"
        yield from markdown(["kernel or product", "ms", "launches"], [[name, f"{ms:.2f}", n] for name, ms, n in kernels[:10]])


def tables_of(text, keep=lambda line: True):
    """The lines of a kernel program's log that are tables, and its last word."""
    out = []
    for line in text.splitlines():
        if line.startswith("|") and keep(line):
            out.append(line)
        elif out and out[-1] and not line.startswith("|"):
            out.append("")
    return out


def is_default(line):
    """Whether it is the launch that the engine makes, not another that the program tried beside it."""
    return not re.search(r"(threads|blocks|shared) \|", line.split("|", 2)[1] + "|")


def kernel_sections(data):
    for name in ("elementwise", "attention", "decode"):
        text = data.text(f"{name}.log")
        if not text:
            yield f"\n### {name}: not run"
            continue
        counted = re.findall(r"^(?:\d+ passed, \d+ failed.*|all checks passed|\d+ failed: .*)$", text, re.MULTILINE)
        n_ok = len(re.findall(r"^ok ", text, re.MULTILINE))
        n_bad = len(re.findall(r"^FAIL", text, re.MULTILINE))
        said = counted[-1] if counted else f"{n_ok} ok, {n_bad} failed in what it printed"
        yield f"\n### {name}: {said}\n"
        if name == "attention":
            times = [*data.texts("attention.log")]
            times = next((t for t in reversed(times) if "TFLOP/s, causal" in t), "")
            if times:
                yield from ["```text", times[times.index("TFLOP/s, causal"):].strip(), "```"]
        else:
            yield from tables_of(text, is_default)


def page(data, parts):
    """The whole page, as `bench/gpu/RESULTS.md` keeps one."""
    about = data.about
    yield "# What bench/gpu/run printed"
    yield ""
    yield (f"{about.get('date', 'date unknown')}, {about.get('card', 'card unknown')}, commit {about.get('commit', 'unknown')}, driver {about.get('driver', 'unknown')}, "
           f"torch {about.get('torch', 'unknown')}.")
    yield from (f"\n{note}" for note in about.get("notes", []))
    yield ""
    yield ("`ratio` is how many times better ours is; `goal` is its lower bound. tok/s: tokens that are no padding over the time of all timed steps, loading and optimizer "
           "included, LoRA of rank 16 on all seven linears, bf16 base unless it says QLoRA. Our memory is the card's free memory before the weights less that after the last step: "
           "weights, arena, workspaces, modules. A peer's is torch's peak of what it had allocated: without what its allocator reserved beyond that, without its context.")
    yield ""
    yield from markdown(["row", "ours", "peer", "unit", "ratio", "goal", ""], [cells(r) for r in rows(data)])
    if parts:
        yield "\n## Parts\n"
        yield from markdown(["part", "seconds", "how it ended"], [[p["part"], p["seconds"], p["said"].replace("|", "/")] for p in parts])
    yield "\n## Whole models against the CPU (engine/tests/cuda.rs)\n"
    yield from markdown(["test", ""], [[f"`{name}`", how] for name, how in data.tests().items()] or [["not run", ""]])
    yield "\n## Ours\n"
    yield from ours_table(data)
    yield from profiles(data)
    yield "\n## Peers\n"
    yield from peers_table(data) if data.peers else ["not run"]
    yield from versions(data)
    yield "\n## Decoding of whole models\n"
    yield from decode_table(data)
    if data.both:
        yield "\n## Training and generation at once, one copy of the base\n"
        yield from both_tables(data)
    yield "\n## Kernels against PyTorch in f64"
    yield from kernel_sections(data)
