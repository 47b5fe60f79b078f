#!/usr/bin/env python3
"""Checks merged exports against PEFT: check_merged.py [--merged DIR --base BASE --adapter ADAPTER].

Without arguments: exports the fixtures with an adapter and checks each. transformers must load the folder without a missing or
unexpected key, its weights must be those of PEFT's `merge_and_unload` in f32, rounded once to the base's dtype, and its
logits those of base and adapter. Ends with status 0 when all holds, with 1 and a reason when not.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FIXTURES = os.path.join(ROOT, "engine", "tests", "fixtures")
# f32 sums in another order; times the largest logit where that is above 1.
LOGITS_TOLERANCE = 1e-4
# Sums over the rank in another order, of the tensor's largest value.
WEIGHTS_TOLERANCE = 1e-6


def export(*args):
    """Whether our engine writes this; what it refuses by name is printed, any other failure ends the check."""
    done = subprocess.run([built(), *args], capture_output=True, text=True)
    if done.returncode == 0:
        return True
    if not any(refusal in done.stderr for refusal in ("UnknownModule", "Unsupported {")):
        sys.exit(done.stderr)
    print(f"not checked: {' '.join(args)}: {done.stderr.strip()}")
    return False


@functools.cache
def built():
    """The program, built with the features of the whole workspace as everything else is."""
    subprocess.run(["cargo", "build", "-q", "--workspace", "--example", "export"], cwd=ROOT, check=True)
    return os.path.join(ROOT, "target/debug/examples/export")


def fixtures():
    """Every base with an adapter for it."""
    for name in sorted(os.listdir(FIXTURES)):
        adapter = os.path.join(FIXTURES, name, "adapter")
        if os.path.isdir(adapter):
            yield os.path.join(FIXTURES, name), adapter
    kinds = os.path.join(FIXTURES, "adapters")
    for name in sorted(os.listdir(kinds)):
        with open(os.path.join(kinds, name, "adapter_config.json")) as f:
            config = json.load(f)
        # PiSSA's folder is PEFT's own, and for another base than the one it names.
        if config["init_lora_weights"] != "pissa":
            yield os.path.join(FIXTURES, config["base_model_name_or_path"]), os.path.join(kinds, name)


def load(path, dtype=torch.float32):
    model, info = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation="eager", output_loading_info=True)
    wrong = {key: value for key, value in info.items() if value}
    if wrong:
        sys.exit(f"{path} does not load cleanly: {wrong}")
    return model.eval()


def check_weights(merged, expected):
    """Each tensor is the expected one, rounded to the stored dtype: rounding may fall to the other side of a tie."""
    stored, worst, n_off = load(merged, "auto").state_dict(), 0.0, 0
    for name, tensor in expected.state_dict().items():
        ours, theirs = stored[name], tensor.to(stored[name].dtype)
        off = (ours.float() - theirs.float()).abs().max().item() / max(tensor.abs().max().item(), 1e-30)
        limit = WEIGHTS_TOLERANCE if ours.dtype == torch.float32 else 2 * torch.finfo(ours.dtype).eps
        if off > limit:
            sys.exit(f"{name} differs by {off:.1e} of its largest value")
        worst, n_off = max(worst, off), n_off + int((ours != theirs).sum())
    return worst, n_off


@torch.no_grad()
def check_logits(merged, expected, base):
    ids = torch.randint(0, expected.config.vocab_size, (1, 48), generator=torch.Generator().manual_seed(5))
    ours, theirs, plain = (m(input_ids=ids).logits[0] for m in (merged, expected, base))
    worst = ((ours - theirs).abs().max() / max(1.0, theirs.abs().max().item())).item()
    effect = (theirs - plain).abs().max().item()
    if not worst <= LOGITS_TOLERANCE:
        sys.exit(f"logits differ by {worst:.2e} of the largest, more than {LOGITS_TOLERANCE:.0e}")
    if effect < 100 * LOGITS_TOLERANCE:
        sys.exit(f"the adapter changes the base's logits by {effect:.2e} only, so nothing is shown")
    return worst, effect


def check(merged, base, adapter):
    tuned = PeftModel.from_pretrained(load(base), adapter).eval()
    as_tuned = PeftModel.from_pretrained(load(base), adapter).merge_and_unload().eval()
    worst, n_off = check_weights(merged, as_tuned)
    ours = load(merged)
    if next(load(merged, "auto").parameters()).dtype == torch.float32:
        against = tuned
    else:
        # The rounding is the base's dtype's, and no error: what it does to PEFT's weights is what is expected.
        against = as_tuned
        for parameter in against.parameters():
            parameter.data = parameter.data.bfloat16().float()
    logits, effect = check_logits(ours, against, load(base))
    print(f"ok: {os.path.relpath(adapter, FIXTURES)}: weights within {worst:.1e} ({n_off} rounded otherwise), logits within {logits:.1e}; "
          f"the adapter moves them by {effect:.2f}")


def main():
    parser = argparse.ArgumentParser()
    for name in ("--merged", "--base", "--adapter"):
        parser.add_argument(name)
    args = parser.parse_args()
    if args.merged:
        check(args.merged, args.base, args.adapter)
        return
    for base, adapter in fixtures():
        with tempfile.TemporaryDirectory() as merged:
            if export("merged", base, adapter, merged):
                check(merged, base, adapter)


if __name__ == "__main__":
    main()
