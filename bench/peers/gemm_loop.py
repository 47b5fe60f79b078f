"""A loop over one bf16 matrix product on request: prints `{"ready": ...}`, then one JSON line for each line `step` on standard input.

The product is the widest of the 135M shape at 1024 tokens; what more threads make of it is what this machine gives at that moment.
"""

import argparse
import json
import os
import sys
import time

REPEATS = 60


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(args.threads)

    import torch

    torch.set_num_threads(args.threads)
    x = torch.randn(1024, 576).bfloat16()
    w = torch.randn(3072, 576).bfloat16()

    def step():
        for _ in range(REPEATS):
            torch.nn.functional.linear(x, w)

    step()
    print(json.dumps({"ready": f"torch {torch.__version__}"}), flush=True)
    for line in sys.stdin:
        if line.strip() != "step":
            break
        wall = time.perf_counter()
        step()
        print(json.dumps({"wall_s": time.perf_counter() - wall}), flush=True)


if __name__ == "__main__":
    main()
