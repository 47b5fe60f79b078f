"""The tiny random models of engine/tests/fixtures: one entry per folder, each showing what the others do not."""

import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL_LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
LENGTHS = [5, 64, 17, 2, 33, 41]

SIZES = dict(vocab_size=512, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256)
# Of the families: 160 tokens and bf16, so that a folder stays below half a megabyte.
SMALL = dict(vocab_size=160, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=128, pad_token_id=None, bos_token_id=1, eos_token_id=2)
# Where the file has no `head_dim`: 48 = 3·16.
THREE_HEADS = {**SMALL, "num_attention_heads": 3, "num_key_value_heads": 1}


def _llama(**entry):
    """The first three models: f32, every kind of run, six documents."""
    return dict(dict(dtype=torch.float32, shard="5GB", old_config=False, norm_mean=1.0, all_linear=True, lengths=LENGTHS,
                     runs=["constant", "linear_clip_decay", "linear_warmup", "cosine_warmup_clip"]), **entry)


def _family(seed, config, targets=ALL_LINEAR, **entry):
    lora = dict(r=4, lora_alpha=8, target_modules=targets)
    return _llama(**dict(dict(config=config, lora=lora, dtype=torch.bfloat16, lengths=LENGTHS[:5], runs=["linear_clip_decay"], seed=seed), **entry))


def _rope(theta, **scaling):
    return {"rope_type": "default", "rope_theta": theta, **scaling}


TINY = {
    "tiny_llama_tied": _llama(
        config=LlamaConfig(**SIZES, intermediate_size=152, num_hidden_layers=3, tie_word_embeddings=True, rms_norm_eps=1e-5,
                           bos_token_id=509, eos_token_id=511),
        lora=dict(r=8, lora_alpha=16, target_modules=ALL_LINEAR), old_config=True, seed=11,
    ),
    "tiny_llama_untied": _llama(
        config=LlamaConfig(**SIZES, intermediate_size=128, num_hidden_layers=2, tie_word_embeddings=False, rms_norm_eps=1e-6,
                           bos_token_id=1, eos_token_id=2, rope_parameters=_rope(500000.0)),
        lora=dict(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"]), all_linear=False, shard="200KB", seed=12,
    ),
    "tiny_qwen2": _llama(
        config=Qwen2Config(**SIZES, intermediate_size=176, num_hidden_layers=3, tie_word_embeddings=True, rms_norm_eps=1e-6,
                           bos_token_id=509, eos_token_id=511, use_sliding_window=False, rope_parameters=_rope(1000000.0)),
        lora=dict(r=8, lora_alpha=32, target_modules=ALL_LINEAR), old_config=True, dtype=torch.bfloat16, seed=13,
    ),
    # Wavelengths 6, 20, 63, …: one is kept, one interpolated, the others stretched.
    "tiny_llama3": _family(21, LlamaConfig(
        **SMALL, head_dim=16, rope_parameters=_rope(10000.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                                                    high_freq_factor=4.0, original_max_position_embeddings=32))),
    "tiny_llama_bias": _family(33, LlamaConfig(**SMALL, head_dim=16, attention_bias=True, mlp_bias=True)),
    "tiny_mistral": _family(22, MistralConfig(**SMALL, head_dim=16, sliding_window=12)),
    "tiny_qwen3": _family(23, Qwen3Config(**SMALL, head_dim=16, use_sliding_window=True, sliding_window=10, max_window_layers=1,
                                          tie_word_embeddings=True, rope_parameters=_rope(1000000.0))),
    "tiny_gemma2": _family(24, Gemma2Config(
        **SMALL, head_dim=16, query_pre_attn_scalar=24, sliding_window=8, attn_logit_softcapping=4.0, final_logit_softcapping=6.0),
        norm_mean=0.0),
    "tiny_gemma3": _family(25, Gemma3TextConfig(
        **{**SMALL, "num_hidden_layers": 3}, head_dim=16, query_pre_attn_scalar=24, sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"sliding_attention": _rope(1000.0), "full_attention": _rope(100000.0, rope_type="linear", factor=4.0)}),
        norm_mean=0.0),
    # The document of 64 tokens is longer than 48 and takes `long_factor`, the others `short_factor`.
    "tiny_phi3": _family(26, Phi3Config(
        **THREE_HEADS, sliding_window=24, original_max_position_embeddings=48,
        rope_parameters=_rope(10000.0, rope_type="longrope", partial_rotary_factor=0.5, short_factor=[1.0, 1.1, 1.3, 1.6],
                              long_factor=[1.2, 2.0, 3.5, 6.0])),
        targets=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
    "tiny_olmo2": _family(27, Olmo2Config(**{**SMALL, "hidden_size": 64}, rope_parameters=_rope(500000.0))),
    "tiny_smollm3": _family(28, SmolLM3Config(**{**THREE_HEADS, "num_hidden_layers": 4}, tie_word_embeddings=True)),
    "tiny_glm4": _family(29, Glm4Config(**SMALL, head_dim=16),
                         targets=[*ATTENTION, "gate_up_proj", "down_proj"]),
    # The second of three blocks is dense.
    "tiny_qwen3_moe": _family(32, Qwen3MoeConfig(
        **{**SMALL, "num_hidden_layers": 3}, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        norm_topk_prob=False, mlp_only_layers=[1]), targets=ATTENTION, all_linear=False),
    "tiny_mixtral": _family(31, MixtralConfig(**SMALL, head_dim=16, num_local_experts=4, num_experts_per_tok=2), targets=ATTENTION, all_linear=False),
}
