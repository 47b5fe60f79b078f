"""The shapes that peers are measured in, and models of random weights in them: made in place, or as a checkpoint for peers that only load from disk."""

import json
import math
import os
import shutil
import struct
import tempfile

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# hidden, layers, heads, key-value heads, feed-forward, vocabulary
SHAPES = {
    "tiny": ("qwen2", 64, 3, 4, 2, 176, 512),
    "tiny-llama": ("llama", 64, 3, 4, 2, 176, 512),
    "0.5b": ("qwen2", 896, 24, 14, 2, 4864, 151936),
    "1.5b": ("qwen2", 1536, 28, 12, 2, 8960, 151936),
    "8b": ("llama", 4096, 32, 32, 8, 14336, 128256),
}


def config_dict(name):
    kind, hidden, layers, heads, kv_heads, feed_forward, vocab = SHAPES[name]
    config = dict(
        model_type=kind, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=feed_forward, vocab_size=vocab, hidden_act="silu", initializer_range=0.02, use_cache=False,
        bos_token_id=1, eos_token_id=2, pad_token_id=3, dtype="bfloat16",
    )
    if kind == "qwen2":
        config |= dict(architectures=["Qwen2ForCausalLM"], tie_word_embeddings=True, max_position_embeddings=32768, rms_norm_eps=1e-6,
                       rope_theta=1000000.0, use_sliding_window=False)
    else:
        config |= dict(architectures=["LlamaForCausalLM"], tie_word_embeddings=False, max_position_embeddings=131072, rms_norm_eps=1e-5,
                       rope_theta=500000.0, attention_bias=False, mlp_bias=False,
                       rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                         original_max_position_embeddings=8192))
    return config


def vocabulary(name):
    return SHAPES[name][-1]


def random_model(name, device, seed=0):
    """A transformers model of random bf16 weights, made on the device itself."""
    import torch
    import transformers

    values = config_dict(name)
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    torch.manual_seed(seed)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")


def tokenizer():
    """The smallest tokenizer that trainers accept; the documents are token numbers already."""
    import tokenizers
    import transformers

    words = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", "<pad>", "a", "b", "c", "d"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="right",
        chat_template="{% for m in messages %}{{ m['content'] }}</s>{% endfor %}",
    )


def tensor_shapes(name):
    kind, hidden, layers, heads, kv_heads, feed_forward, vocab = SHAPES[name]
    kv = hidden // heads * kv_heads
    linears = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (feed_forward, hidden), "mlp.up_proj": (feed_forward, hidden),
        "mlp.down_proj": (hidden, feed_forward),
    }
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(layers):
        for linear, shape in linears.items():
            yield f"model.layers.{layer}.{linear}.weight", shape
            if kind == "qwen2" and linear.endswith(("q_proj", "k_proj", "v_proj")):
                yield f"model.layers.{layer}.{linear}.bias", shape[:1]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{norm}.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if kind == "llama":
        yield "lm_head.weight", (vocab, hidden)


def checkpoint_root(name):
    size = sum(2 * math.prod(shape) for _, shape in tensor_shapes(name))
    memory = "/dev/shm"
    roomy = os.path.isdir(memory) and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > size + (4 << 30)
    return os.path.join(memory if roomy else tempfile.gettempdir(), "luthier-peer-models")


def checkpoint(name, device, seed=0):
    """The folder of a checkpoint of random weights; written by the first that asks for it."""
    import torch

    folder = os.path.join(checkpoint_root(name), name)
    if os.path.exists(os.path.join(folder, "config.json")):
        return folder
    os.makedirs(folder, exist_ok=True)
    header, at = {}, 0
    for tensor, shape in tensor_shapes(name):
        size = 2 * math.prod(shape)
        header[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    path = os.path.join(folder, "model.safetensors")
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(start + at)
    # Values leave the device straight into the file's pages.
    file = torch.from_file(path, shared=True, size=start + at, dtype=torch.uint8)
    generator = torch.Generator(device=device).manual_seed(seed)
    for tensor, entry in header.items():
        values = torch.empty(entry["shape"], dtype=torch.bfloat16, device=device)
        if tensor.endswith("bias"):
            values.zero_()
        elif len(entry["shape"]) == 1:
            values.fill_(1.0)
        else:
            values.normal_(0.0, 0.02, generator=generator)
        begin, end = entry["data_offsets"]
        file[start + begin : start + end].copy_(values.view(-1).view(torch.uint8))
        del values
    del file
    tokenizer().save_pretrained(folder)
    # The configuration comes last: it says that the rest is complete.
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config_dict(name), f, indent=1)
    return folder
