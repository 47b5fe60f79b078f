#!/usr/bin/env python3
"""Checks that PEFT reads an adapter folder of ours as we do: check_adapter.py DIR [--base BASE].

DIR holds adapter_config.json and adapter_model.safetensors as exported, and logits.safetensors, which
`cargo run -p engine --example dump_logits -- BASE DIR` writes (`tokens.{i}`, `logits.{i}`). BASE defaults to the folder that
adapter_config.json names. Every warning is an error. Ends with status 0 when all holds, with 1 and a reason when not.
"""

import argparse
import json
import os
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

# What of a configuration decides names and shapes.
SHAPES = ["r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "rank_pattern", "alpha_pattern", "use_rslora",
          "use_dora", "bias", "modules_to_save"]
# f32 sums in another order; times the largest logit where that is above 1.
LOGITS_TOLERANCE = 1e-4


def load_base(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def check_keys(base, config, folder):
    """The names and shapes are those of an adapter that PEFT makes from the same configuration."""
    lora = LoraConfig(**{key: config[key] for key in SHAPES}, task_type="CAUSAL_LM")
    theirs = {k: tuple(v.shape) for k, v in get_peft_model_state_dict(get_peft_model(base, lora)).items()}
    ours = {k: tuple(v.shape) for k, v in load_file(os.path.join(folder, "adapter_model.safetensors")).items()}
    if ours != theirs:
        sys.exit(f"keys or shapes differ: {sorted(set(ours.items()) ^ set(theirs.items()))[:8]}")
    return len(ours)


@torch.no_grad()
def check_logits(base_path, folder):
    dump = load_file(os.path.join(folder, "logits.safetensors"))
    base, tuned = load_base(base_path), PeftModel.from_pretrained(load_base(base_path), folder).eval()
    n = sum(name.startswith("tokens.") for name in dump)
    worst, effect = 0.0, 0.0
    for i in range(n):
        ids = dump[f"tokens.{i}"].long()[None]
        theirs, ours = tuned(input_ids=ids).logits[0], dump[f"logits.{i}"]
        worst = max(worst, ((ours - theirs).abs().max() / max(1.0, theirs.abs().max().item())).item())
        effect = max(effect, (theirs - base(input_ids=ids).logits[0]).abs().max().item())
    if n == 0:
        sys.exit("logits.safetensors holds no documents")
    if not worst <= LOGITS_TOLERANCE:
        sys.exit(f"logits differ by {worst:.2e} of the largest, more than {LOGITS_TOLERANCE:.0e}")
    if effect < 100 * LOGITS_TOLERANCE:
        sys.exit(f"the adapter changes the base's logits by {effect:.2e} only, so nothing is shown")
    return n, worst, effect


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--base")
    args = parser.parse_args()
    with open(os.path.join(args.folder, "adapter_config.json")) as f:
        config = json.load(f)
    base_path = args.base or config["base_model_name_or_path"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # transformers 5 deprecates a property that PEFT 0.21 reads, whatever the adapter.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        n_tensors = check_keys(load_base(base_path), config, args.folder)
        n, worst, effect = check_logits(base_path, args.folder)
    print(f"ok: {n_tensors} tensors under PEFT's names; {n} documents: logits within {worst:.1e}; the adapter moves them by {effect:.2f}")


if __name__ == "__main__":
    main()
