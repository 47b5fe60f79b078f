"""Rounds of transformers' `generate` on request: prints `{"ready": ...}`, then one JSON line for each line `step` on standard input.

A round generates `--new` tokens, greedily, for each of `--batch` prompts of `--prompt` random tokens, with the model in `--model` in bf16.
"""

import argparse
import json
import sys
import time

from torch_on import torch_on
from usage import cpu_s, peak_mib


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    for name in ("--batch", "--prompt", "--new", "--threads"):
        parser.add_argument(name, type=int, required=True)
    args = parser.parse_args()
    torch, transformers = torch_on(args.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    ids = torch.randint(3, model.config.vocab_size, (args.batch, args.prompt))
    # Neither an end token nor padding: every sequence has its full length.
    greedy = dict(do_sample=False, min_new_tokens=args.new, max_new_tokens=args.new, eos_token_id=None, pad_token_id=0,
                  attention_mask=torch.ones_like(ids))

    @torch.inference_mode()
    def generate():
        out = model.generate(ids, **greedy)
        if out.shape[1] != args.prompt + args.new:
            sys.exit(f"{out.shape[1] - args.prompt} tokens came, not {args.new}")

    generate()
    print(json.dumps({"ready": f"torch {torch.__version__}, transformers {transformers.__version__}"}), flush=True)
    for line in sys.stdin:
        if line.strip() != "step":
            break
        wall, cpu = time.perf_counter(), cpu_s()
        generate()
        print(json.dumps({"wall_s": time.perf_counter() - wall, "cpu_s": cpu_s() - cpu, "new_tokens": args.batch * args.new,
                          "peak_mib": peak_mib()}), flush=True)


if __name__ == "__main__":
    main()
