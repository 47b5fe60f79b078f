"""Writes engine/tests/fixtures/embeddings.json: what a tiny model makes of its first document, with its adapter and without."""

import json
import os

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tiny_models import TINY


@torch.no_grad()
def _embedding(model, tokens):
    """The last layer's states after the last norm, their mean over the tokens, of unit length."""
    states = model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0]
    return torch.nn.functional.normalize(states.mean(0), dim=0).tolist()


def _load(path, **config):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager", **config).eval()


def make(folder):
    torch.set_num_threads(1)
    out = {}
    for name in TINY:
        path = os.path.join(folder, name)
        with open(os.path.join(path, "golden.json"), encoding="utf-8") as f:
            tokens = json.load(f)["documents"][0]["tokens"]
        base = _load(path)
        plain = _embedding(base, tokens)
        tuned = _embedding(PeftModel.from_pretrained(base, os.path.join(path, "adapter")).eval(), tokens)
        out[name] = {"base": plain, "adapter": tuned}
        print(name, len(plain))
    # More than one step of the engine reads, by a model whose context is widened for it.
    tokens = [3 + 37 * i * i % 499 for i in range(1100)]
    wide = _load(os.path.join(folder, "tiny_llama_tied"), max_position_embeddings=2048)
    out["long"] = {"tokens": tokens, "base": _embedding(wide, tokens)}
    with open(os.path.join(folder, "embeddings.json"), "w", encoding="utf-8") as f:
        json.dump(out, f)
        f.write("\n")
