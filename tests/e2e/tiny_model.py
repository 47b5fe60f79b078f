"""A tiny random Llama as a Hugging Face folder, made with the standard library alone.

Byte-level tokenizer (one token a byte), ChatML template, seeded weights: the same folder every time.
"""

import json
import random
import struct
from pathlib import Path

HIDDEN, LAYERS, HEADS, KV_HEADS, FEED_FORWARD = 48, 2, 4, 2, 96
# Peaked logits, and rows of zeros for the control tokens: an answer hardly ever ends by chance, so tests may count tokens.
FINAL_NORM = 4.0
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_alphabet():
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {}, 0
    for byte in range(256):
        if byte in plain:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(256 + extra)
            extra += 1
    return [table[byte] for byte in range(256)]


def tokenizer(vocab_size=len(SPECIAL) + 256):
    """One token a byte, for as many of the first bytes as there is room for."""
    vocab = {token: i for i, token in enumerate((SPECIAL + byte_alphabet())[:vocab_size])}
    added = [
        {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, t in enumerate(SPECIAL)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": [],
        },
    }


def tensors(vocab_size):
    head = HIDDEN // HEADS
    shapes = {"model.embed_tokens.weight": (vocab_size, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (HIDDEN,),
            f"{layer}.post_attention_layernorm.weight": (HIDDEN,),
            f"{layer}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}.self_attn.k_proj.weight": (KV_HEADS * head, HIDDEN),
            f"{layer}.self_attn.v_proj.weight": (KV_HEADS * head, HIDDEN),
            f"{layer}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}.mlp.gate_proj.weight": (FEED_FORWARD, HIDDEN),
            f"{layer}.mlp.up_proj.weight": (FEED_FORWARD, HIDDEN),
            f"{layer}.mlp.down_proj.weight": (HIDDEN, FEED_FORWARD),
        }
    return shapes


def write_tokenizer(folder, vocab_size):
    """Makes a folder of weights one that can be talked to."""
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(vocab_size)))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "bos_token": None,
        "model_max_length": 1024, "chat_template": TEMPLATE,
    }))


def write(folder, seed=7):
    """Writes the folder and returns its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = len(SPECIAL) + 256
    draw = random.Random(seed)
    header, blobs, offset = {}, [], 0
    for name, shape in tensors(vocab_size).items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = [1.0] * count if len(shape) == 1 else [draw.gauss(0.0, 0.08) for _ in range(count)]
        if name == "model.norm.weight":
            values = [FINAL_NORM] * count
        elif name == "model.embed_tokens.weight":
            values[: len(SPECIAL) * HIDDEN] = [0.0] * (len(SPECIAL) * HIDDEN)
        blob = struct.pack(f"<{count}f", *values)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))
    write_tokenizer(folder, vocab_size)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "vocab_size": vocab_size, "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False, "eos_token_id": 2, "bos_token_id": 0, "torch_dtype": "float32",
    }))
    return folder
