"""The documents that every peer trains on, the same for each from one seed. `python workloads.py alpaca --steps 11` prints their
lengths as JSON, a list for each step."""

import argparse
import json
import re

import numpy as np

DEFAULT_ALPACA_BATCH = 16


def rows_of(workload, batch=None):
    """How many documents a step takes, and their length: None where it varies."""
    if workload == "alpaca":
        return batch or DEFAULT_ALPACA_BATCH, None
    length, rows = map(int, re.fullmatch(r"packed(\d+)x(\d+)", workload).groups())
    return batch or rows, length


def lengths(workload, steps, batch=None, seed=0):
    """Packed: rows full of tokens. Alpaca: log-normal with mean 200, between 16 and 1024."""
    rows, length = rows_of(workload, batch)
    if length:
        return [[length] * rows for _ in range(steps)]
    drawn = np.random.default_rng(seed).lognormal(np.log(200) - 0.6**2 / 2, 0.6, (steps, rows))
    return np.clip(drawn, 16, 1024).astype(int).tolist()


def documents(workload, steps, vocab, batch=None, seed=0):
    """Token numbers and labels. Packed: every token is a label; alpaca: the first third of each document, its prompt, is none."""
    tokens = np.random.default_rng(seed + 1)
    out = []
    for step in lengths(workload, steps, batch, seed):
        for length in step:
            ids = tokens.integers(8, vocab, length).tolist()
            prompt = length // 3 if workload == "alpaca" else 0
            out.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(lengths(args.workload, args.steps, args.batch, args.seed)))
