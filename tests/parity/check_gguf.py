#!/usr/bin/env python3
"""Checks GGUF exports against transformers and llama.cpp: check_gguf.py [--gguf FILE --model FOLDER].

Without arguments: exports the fixtures with their adapters, and a tiny random model of every family that can be written, as f32,
f16, bf16 and q8_0. gguf.GGUFReader must dequantise each file to transformers' tensors, and llama.cpp must compute the logits of
transformers in f32 (with an f32 cache), and the same best tokens from f16 and q8_0. A file with a vocabulary must split
texts into the tokens of FOLDER's tokenizer. Needs llama-cpp-python. Ends with status 0 when all holds, with 1 when not.
"""

import argparse
import copy
import os
import sys
import tempfile

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from llama_cpp import Llama
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from check_merged import FIXTURES, LOGITS_TOLERANCE, export, fixtures, load

# Half an ulp of the float types; half a step of 8 bits, and of the f16 scale. Of the largest value.
TENSOR_TOLERANCE = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8, "q8_0": 0.5 / 127 + 2.0**-11}
# Of the largest logit. Rounded weights make another model: the best token may change where the next one is nearer than this.
CLEAR_MARGIN = {"f32": 0.0, "f16": 0.01, "bf16": 0.1, "q8_0": 0.1}
SIZES = dict(vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
FAMILIES = {
    "llama": dict(rope_parameters=LLAMA3, attention_bias=True),
    "llama, linear": dict(rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0), head_dim=32),
    "mistral": dict(sliding_window=None),
    "mixtral": dict(num_local_experts=4, num_experts_per_tok=2),
    "qwen2": {},
    "qwen3": dict(head_dim=32),
    "qwen3_moe": dict(head_dim=32, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=32, norm_topk_prob=True),
    "gemma2": dict(head_dim=32, query_pre_attn_scalar=32, sliding_window=16),
    "gemma3_text": dict(head_dim=32, query_pre_attn_scalar=32, sliding_window=16, num_hidden_layers=7),
    "phi3": dict(sliding_window=None),
    "olmo2": {},
    "smollm3": dict(num_hidden_layers=5),
    "glm4": dict(head_dim=16),
}
TEXTS = ["Hello, world!", " It's 12345 o'clock;\n\n\tdon't panic...  ", "Ünïcödé — 日本語 🙂🙂", "<|im_start|>user\nhi<|im_end|>\n", "a  b   c"]


def random_model(kind, folder):
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind.split(",")[0], **{**SIZES, **FAMILIES[kind]})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, p in model.named_parameters():
            spread = 0.2 if "norm" in name or name.endswith("bias") else 1.2 / p.shape[-1] ** 0.5
            centre = 1.0 if "norm" in name and not kind.startswith("gemma") else 0.0
            p.copy_(centre + spread * torch.randn(p.shape))
    model.save_pretrained(folder)


def place(tensor, name, model):
    """Our rows in Hugging Face's order, and norms as Hugging Face stores them."""
    config = model.config
    if config.model_type in ("llama", "mistral", "mixtral", "smollm3"):
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[2 if name.startswith("blk") else 0])
        if heads:
            rest = tensor.shape[1:]
            return tensor.reshape(heads, -1, 2, *rest).swapaxes(1, 2).reshape(tensor.shape)
    if config.model_type.startswith("gemma") and "norm" in name:
        return tensor - 1
    return tensor


def check_tensors(path, model, kind):
    """Every value of the model is in the file, within the type's precision: compared as sorted sets of rows, by shape."""
    reader, worst, n = GGUFReader(path), 0.0, 0
    state = {k: v.float().numpy() for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        ours = place(dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1].tolist()), tensor.name, model)
        layer = tensor.name.split(".")[1] if tensor.name.startswith("blk") else None
        near = lambda k: layer is None or f"layers.{layer}." in k  # noqa: E731
        off = {k: np.abs(v.reshape(ours.shape) - ours).max() / np.abs(v).max() for k, v in state.items() if near(k) and v.size == ours.size}
        # Experts may be fused with others in memory, in one tensor of gates and ups.
        if not off or min(off.values()) > 0.1:
            off = {(k, i): np.abs(part - ours).max() / np.abs(part).max() for k, v in state.items() if near(k) and v.ndim == 3
                   for i, part in enumerate(np.split(v, 2, axis=1)) if part.shape == ours.shape}
        if not off:
            sys.exit(f"{tensor.name} has no counterpart")
        best = min(off.values())
        limit = 1e-6 if tensor.tensor_type.name == "F32" else TENSOR_TOLERANCE[kind]
        if best > limit:
            sys.exit(f"{tensor.name} differs by {best:.1e} of the largest value of {min(off, key=off.get)}")
        worst, n = max(worst, best), n + ours.size
    expected = sum(v.size for v in state.values())
    if n != expected:
        sys.exit(f"{n} values in the file, {expected} in the model")
    return worst


def llama_logits(path, ids):
    """As far as the file says that the model reads: a window that llama.cpp does not know is the end of the context."""
    llama = Llama(path, n_ctx=128, logits_all=True, type_k=0, type_v=0, flash_attn=False, n_threads=1, verbose=False)
    ids = ids[: int(llama.metadata[f"{llama.metadata['general.architecture']}.context_length"])]
    llama.eval(ids)
    return np.array(llama.scores[: len(ids)]), llama


class TableGelu(torch.nn.Module):
    """GELU as llama.cpp's CPU has it: looked up in f16, between −10 and 10."""

    def forward(self, x):
        looked_up = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, looked_up))


def with_table_gelu(model):
    """What that table alone does to Gemma is llama.cpp's error, not the file's."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if getattr(model.config, "hidden_activation", None) == "gelu_pytorch_tanh" and hasattr(module, "act_fn"):
            module.act_fn = TableGelu()
    return model


@torch.no_grad()
def check_logits(path, model, kind):
    ids = torch.randint(3, model.config.vocab_size, (40,), generator=torch.Generator().manual_seed(5)).tolist()
    ours, llama = llama_logits(path, ids)
    theirs = model(input_ids=torch.tensor([ids])).logits[0].numpy()[: len(ours)]
    by_table = with_table_gelu(model)(input_ids=torch.tensor([ids])).logits[0].numpy()[: len(ours)]
    scale = max(1.0, np.abs(theirs).max())
    worst = np.abs(ours - theirs).max() / scale
    limit = LOGITS_TOLERANCE + np.abs(by_table - theirs).max() / scale
    if kind == "f32" and not worst <= limit:
        sys.exit(f"{path} {kind}: logits differ by {worst:.2e} of the largest, more than {limit:.1e}")
    best = np.sort(theirs, axis=-1)
    clear = best[:, -1] - best[:, -2] > CLEAR_MARGIN[kind] * scale
    same = (ours.argmax(-1) == theirs.argmax(-1))[clear]
    if clear.sum() < 3 or not same.all():
        sys.exit(f"{kind}: {same.sum()} of {clear.sum()} clear best tokens agree")
    return worst, int(clear.sum()), llama


def check_vocabulary(llama, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ours = llama.tokenize(text.encode(), add_bos=False, special=True)
        theirs = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ours != theirs:
            sys.exit(f"{text!r}: llama.cpp reads {ours}, transformers {theirs}")
    return len(TEXTS)


def check(label, path, model, kind):
    weights = check_tensors(path, model, kind)
    logits, n, llama = check_logits(path, model, kind)
    print(f"ok: {label} {kind}: tensors within {weights:.1e}, logits within {logits:.1e}, {n} best tokens agree")
    return llama


def main():
    parser = argparse.ArgumentParser()
    for name in ("--gguf", "--model", "--kind"):
        parser.add_argument(name)
    args = parser.parse_args()
    if args.gguf:
        llama = check(args.gguf, args.gguf, load(args.model), args.kind or "f32")
        print(f"ok: {check_vocabulary(llama, args.model)} texts have the same tokens")
        return
    with tempfile.TemporaryDirectory() as scratch:
        cases = []
        for base, adapter in fixtures():
            cases.append((os.path.relpath(adapter, FIXTURES), base, adapter))
        for kind in FAMILIES:
            folder = os.path.join(scratch, kind)
            random_model(kind, folder)
            cases.append((kind, folder, "-"))
        for label, base, adapter in cases:
            model = load(base)
            if adapter != "-":
                model = PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()
            for kind in TENSOR_TOLERANCE:
                path = os.path.join(scratch, "model.gguf")
                if export("gguf", base, adapter, path, kind):
                    check(label, path, model, kind)


if __name__ == "__main__":
    main()
