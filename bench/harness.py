"""What the benchmarks share: peers in a virtual environment of their own, programs that take steps in turn, and the table."""

import datetime
import functools
import json
import os
import platform
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PEERS = os.path.join(ROOT, "bench", "peers")
# Always the same: what is asked for decides the features of shared dependencies, and others would compile them anew.
EVERYTHING = ("--workspace", "--bins", "--examples")


def run(command, **kw):
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, **kw).stdout


def build_example(name):
    """The engine's example in release mode."""
    return built(name, *EVERYTHING)


def build_binary():
    """`luthier` in release mode."""
    return built("luthier", *EVERYTHING)


@functools.cache
def built(name, *what):
    messages = run(["cargo", "build", "--release", "-q", *what, "--message-format=json"])
    for line in messages.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == name:
            return message["executable"]
    sys.exit(f"cargo built no {name}")


def peer_python(requirements):
    """An interpreter with the peers that `bench/peers/REQUIREMENTS` names: that of LUTHIER_BENCH_PYTHON, or one of our own."""
    given = os.environ.get("LUTHIER_BENCH_PYTHON")
    if given:
        return given
    venv = os.path.join(ROOT, "target", "bench-venv")
    python, done = os.path.join(venv, "bin", "python"), os.path.join(venv, f"installed-{requirements}")
    path = os.path.join(PEERS, requirements)
    wanted = open(path).read()
    if not os.path.exists(done) or open(done).read() != wanted:
        print(f"installing the peers into {venv} …", file=sys.stderr)
        run([sys.executable, "-m", "venv", venv])
        run([python, "-m", "pip", "install", "-q", "-r", path])
        open(done, "w").write(wanted)
    return python


class Stepper:
    """A program that takes one training step for each line it reads."""

    def __init__(self, command):
        self.command = command
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.about = self._read()["ready"]

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(self.command)} ended with {self.process.wait()}; run it alone to see why")
        return json.loads(line)

    def step(self):
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return self._read()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def in_turns(programs, n_steps):
    """The steps of each program, taken one after the other."""
    results = [[] for _ in programs]
    for _ in range(n_steps):
        for program, out in zip(programs, results):
            # A moment for the other's worker threads to leave their spin loops.
            time.sleep(0.2)
            out.append(program.step())
    for program in programs:
        program.close()
    return results


def row(name, values, unit, ratio, goal):
    """`ratio` is how many times better ours is; the goal is a lower bound for it."""
    ours, peer = (round(v, 2) for v in values)
    return {"name": name, "ours": ours, "peer": peer, "unit": unit, "ratio": round(ratio, 3), "goal": goal, "ok": ratio >= goal}


def machine():
    with open("/proc/cpuinfo") as f:
        model = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), platform.processor())
    return f"{model}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}"


def commit():
    try:
        return run(["git", "describe", "--always", "--dirty", "--abbrev=12"], stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def report(rows, threads, json_path):
    """Prints each row of `rows` as it comes, and writes them to `json_path` if there is one."""
    print(f"{machine()}; {threads} thread(s) each; load {os.getloadavg()[0]:.1f}\n")
    print(f"{'row':<50} {'ours':>9} {'peer':>9} {'unit':<10} {'ratio':>6} {'goal':>5}", flush=True)
    done = []
    for r in rows:
        verdict = "ok" if r["ok"] else "below"
        print(f"{r['name']:<50} {r['ours']:>9.2f} {r['peer']:>9.2f} {r['unit']:<10} {r['ratio']:>6.2f} {r['goal']:>5.2f} {verdict}", flush=True)
        done.append(r)
    if json_path:
        now = datetime.datetime.now(datetime.timezone.utc)
        out = {"date": now.isoformat(timespec="seconds"), "machine": machine(), "commit": commit(), "rows": done}
        with open(json_path, "w") as f:
            json.dump(out, f, indent=1)
            f.write("\n")
