"""Rounds of llama.cpp on request: prints `{"ready": ...}`, then one JSON line for each line `step` on standard input.

A round takes a prompt of `--prompt` random tokens in and generates `--new` tokens, greedily, with the GGUF file `--model`.
"""

import argparse
import ctypes
import json
import random
import sys
import time

import llama_cpp
import numpy as np
from usage import cpu_s, peak_mib


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    for name in ("--prompt", "--new", "--threads"):
        parser.add_argument(name, type=int, required=True)
    args = parser.parse_args()
    llama_cpp.llama_log_set(ctypes.cast(None, llama_cpp.llama_log_callback), ctypes.c_void_p(0))
    llama = llama_cpp.Llama(args.model, n_ctx=args.prompt + args.new + 8, n_batch=512, n_threads=args.threads,
                            n_threads_batch=args.threads, verbose=False)
    n_vocab = llama.n_vocab()
    prompt = random.Random(0).choices(range(3, n_vocab), k=args.prompt)

    def best_token():
        logits = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(n_vocab,))))

    def one_round():
        llama.reset()
        wall, cpu = time.perf_counter(), cpu_s()
        llama.eval(prompt)
        token = best_token()
        first, first_cpu = time.perf_counter(), cpu_s()
        for _ in range(args.new - 1):
            llama.eval([token])
            token = best_token()
        return {"prefill_s": first - wall, "prefill_cpu_s": first_cpu - cpu, "decode_s": time.perf_counter() - first,
                "decode_cpu_s": cpu_s() - first_cpu, "prompt_tokens": args.prompt, "new_tokens": args.new - 1, "peak_mib": peak_mib()}

    one_round()
    print(json.dumps({"ready": f"llama-cpp-python {llama_cpp.__version__}"}), flush=True)
    for line in sys.stdin:
        if line.strip() != "step":
            break
        print(json.dumps(one_round()), flush=True)


if __name__ == "__main__":
    main()
