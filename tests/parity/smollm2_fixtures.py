"""Writes engine/tests/fixtures/smollm2: slices of what transformers and PEFT compute for SmolLM2-135M-Instruct.

The adapter is a formula and the results are slices, so that little needs to be committed.
"""

import json
import os
import shutil
import tempfile

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import goldens
import smollm2

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SMOL_LORA = dict(r=8, lora_alpha=16, target_modules=ALL_LINEAR)
N_PROJECTIONS = 16
SMOL_TEXTS = [
    ("Sort the ticket.", "My parcel has not moved for nine days and the birthday is on Friday.", '{"category":"shipping"}'),
    ("You are a helpful assistant.", "What is the capital of France?", "The capital of France is Paris."),
    (None, "Write a haiku about rain on a tin roof.", "Small drums on the roof,\nthe gutter hums a low tune,\nsleep comes in between."),
    ("Answer briefly.", "日本の首都は? 🗼", "東京です。"),
]
SMOL_PROMPT = ("You are a helpful assistant.", "Tell me a story about a fox who opens a bakery.")


def hash_uniform(seed, n):
    """`n` f32 values in [-1, 1): murmur3's finaliser over a counter, its top 24 bits scaled; exact in f32."""
    with np.errstate(over="ignore"):
        x = np.arange(n, dtype=np.uint32) + np.uint32(seed) * np.uint32(0x9E3779B9)
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x85EBCA6B)
        x ^= x >> np.uint32(13)
        x *= np.uint32(0xC2B2AE35)
        x ^= x >> np.uint32(16)
    return (x >> np.uint32(8)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)


def _set_adapter_by_formula(model):
    """The k-th tensor in the order of names: A in [-1, 1)/32, B in [-1, 1)/16 (powers of two: no rounding)."""
    with torch.no_grad():
        for k, (name, p) in enumerate(sorted(goldens.trainable(model).items())):
            divisor = np.float32(32 if "lora_A" in name else 16)
            p.copy_(torch.from_numpy(hash_uniform(k, p.numel()) / divisor).reshape(p.shape))


def _projections(g):
    """Dot products with sign vectors: the mean square of their differences estimates the square of the distance."""
    flat = g.double().flatten().numpy()
    return [float(np.dot(flat, np.where(hash_uniform(1000 + j, flat.size) < 0, -1.0, 1.0))) for j in range(N_PROJECTIONS)]


def _chat_ids(tokenizer, system, user, answer):
    messages = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": user}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if answer is None:
        return ids
    full = tokenizer(prompt + answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    assert full[: len(ids)] == ids
    return {"tokens": full, "mask": [i >= len(ids) for i in range(len(full))]}


def make(out, cache):
    from transformers import PreTrainedTokenizerFast

    torch.set_num_threads(2)
    base_folder = tempfile.mkdtemp()
    gguf = smollm2.fetch_gguf(cache)
    smollm2.write_weights(gguf, base_folder)
    smollm2.write_tokenizer(gguf, base_folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base_folder)
    load = lambda: AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32, attn_implementation="eager").eval()
    base = load()
    model = get_peft_model(load(), LoraConfig(**SMOL_LORA, lora_dropout=0.0, task_type="CAUSAL_LM")).eval()
    _set_adapter_by_formula(model)
    documents = [_chat_ids(tokenizer, *t) for t in SMOL_TEXTS]
    tensors = {}
    with torch.no_grad():
        for i, d in enumerate(documents):
            for kind, m in (("base_logits", base), ("logits", model)):
                logits = m(input_ids=torch.tensor([d["tokens"]])).logits[0]
                # The last six positions: every 96th of the vocabulary, the best ten, and the largest magnitude anywhere.
                tensors[f"{kind}.{i}.strided"] = logits[-6:, ::96]
                top = logits[-6:].topk(10)
                tensors[f"{kind}.{i}.top_values"], tensors[f"{kind}.{i}.top_ids"] = top.values, top.indices.int()
                tensors[f"{kind}.{i}.max_abs"] = logits.abs().max().reshape(1)
    loss, n_labels, n_correct = goldens.mean_loss(model, documents)
    loss.backward()
    gradients = {}
    for n, p in sorted(goldens.trainable(model).items()):
        g = p.grad
        step = max(1, g.numel() // 16)
        gradients[n] = {"norm": g.norm().item(), "projections": _projections(g), "stride": step, "slice": g.flatten()[::step][:16].tolist()}
        p.grad = None
    prompt = _chat_ids(tokenizer, *SMOL_PROMPT, None)
    (base_tokens, m0), (tuned_tokens, m1) = goldens.greedy(base, prompt), goldens.greedy(model, prompt)
    print("greedy:", tokenizer.decode(base_tokens), "|", tokenizer.decode(tuned_tokens), f"(margins {m0:.4f}, {m1:.4f})")
    assert min(m0, m1) > goldens.MIN_GREEDY_MARGIN and base_tokens != tuned_tokens, "choose another prompt"
    batches = [[step % 4, (step + 1) % 4] for step in range(goldens.N_STEPS)]
    runs = goldens.train_runs(model, documents, batches, 5e-4, 1.0, ["constant", "linear_clip_decay"])
    folder = os.path.join(out, "smollm2")
    os.makedirs(folder, exist_ok=True)
    golden = {
        "package": smollm2.PACKAGE,
        "lora": SMOL_LORA,
        "documents": documents,
        "loss": loss.item(),
        "n_label_tokens": n_labels,
        "n_correct": n_correct,
        "gradients": gradients,
        "greedy": {"prompt": prompt, "base": base_tokens, "adapter": tuned_tokens},
        "runs": runs,
    }
    with open(os.path.join(folder, "golden.json"), "w") as f:
        json.dump(golden, f, separators=(",", ":"))
    save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(folder, "golden.safetensors"))
    shutil.rmtree(base_folder)
