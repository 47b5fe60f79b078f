"""Runs each peer in a process of its own, so that a failure or an exhausted memory ends one case alone: a case that could
not run is a JSON line with `error`."""

import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback

# A child's exit status that asks for a fresh process for what is left of its group.
AGAIN = 75


def run_all(script, groups, limit_s, log):
    """`groups` are lists of cases that share a process; one that ends early is started again for what is left of its group."""
    log = log or os.path.join(tempfile.gettempdir(), "luthier-peers.log")
    for group in groups:
        left = list(group)
        while left:
            done, why = run_group(script, left, limit_s, log)
            left = left[done:]
            if left and why:
                print(json.dumps({**left.pop(0), "error": why}), flush=True)


def run_group(script, group, limit_s, log):
    """How many cases answered, and why the next did not: None where a fresh process may try it."""
    with open(log, "ab") as errors:
        errors.write(f"== {json.dumps(group)}\n".encode())
        errors.flush()
        began = errors.tell()
        child = subprocess.Popen([sys.executable, script, "--cases", json.dumps(group)], stdout=subprocess.PIPE, stderr=errors, text=True)
        timed_out = threading.Event()

        def end():
            timed_out.set()
            child.kill()

        done = 0
        timer = threading.Timer(limit_s, end)
        timer.start()
        for line in child.stdout:
            print(line, end="", flush=True)
            done += 1
            timer.cancel()
            timer = threading.Timer(limit_s, end)
            timer.start()
        status = child.wait()
        timer.cancel()
    if timed_out.is_set():
        return done, f"not done within {limit_s} s"
    if status == AGAIN and done:
        return done, None
    with open(log, "rb") as f:
        f.seek(began)
        return done, f"ended with status {status}: {f.read()[-800:].decode(errors='replace')}"


def serve(cases, measure):
    """The child's side: answers each case on what was standard output; whatever libraries print goes to standard error. After an error, or
    where a case left memory behind, the rest goes to a fresh process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false",
                      UNSLOTH_DISABLE_STATISTICS="1", DISABLE_MLFLOW_INTEGRATION="TRUE", WANDB_MODE="disabled")
    for case in cases:
        if case is not cases[0] and occupied():
            os._exit(AGAIN)
        try:
            answer = {**case, **measure(dict(case))}
        except BaseException as error:  # noqa: BLE001 - a line for every case, whatever happened
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"
            where = [f"{os.path.basename(f.filename)}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-4:]]
            answer = {**case, "error": text[:600], "at": where}
        print(json.dumps(answer), file=answers, flush=True)
        if "error" in answer and case is not cases[-1]:
            os._exit(AGAIN)


def occupied():
    import torch

    gc.collect()
    return torch.cuda.is_available() and torch.cuda.memory_allocated() > 1 << 29
