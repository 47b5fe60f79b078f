"""Writes engine/tests/fixtures/quant: weights as bitsandbytes (NF4, int8), PyTorch (fp8) and gguf (GGML blocks) quantise them."""

import os

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from smollm2_fixtures import hash_uniform

BLOCK_TYPES = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
# Bytes at which a block holds numbers in f16.
HALVES = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
# Below and above the lengths at which PyTorch begins to add up vectors (8), groups of them (32), and in more levels (16 times
# as many for each).
SUMS = [1, 5, 7, 8, 37, 100, 1000, 9375, 20_000, 140_000]


def _weights(shape, generator):
    # Rows of different size, so that the scales differ.
    rows = torch.randn(shape, generator=generator) * torch.exp(torch.randn(shape[0], 1, generator=generator))
    return rows * 0.02


def _on_the_thresholds():
    """A block with a weight midway between each two codes, which goes to the lower one."""
    code = bnb.get_4bit_type("nf4", device="cpu")
    return torch.cat([torch.ones(1), (code[1:] + code[:-1]) / 2, torch.linspace(-0.5, 0.5, 48)])


def _told_apart_by_division(n):
    """Weights, the largest first, whose code would be another if they were multiplied by its inverse instead of divided by it."""
    code = bnb.get_4bit_type("nf4", device="cpu").numpy()
    thresholds = ((code[1:] + code[:-1]) / 2)[:, None]
    for largest in np.linspace(1, 2, 1000, dtype=np.float32):
        near = (thresholds * largest).astype(np.float32)
        near = np.concatenate([near, np.nextafter(near, np.float32(-2)), np.nextafter(near, np.float32(2))], axis=1)
        found = near[(near / largest > thresholds) != (near * (1 / largest) > thresholds)]
        if len(found) >= 3:
            return torch.from_numpy(np.resize(np.concatenate([[largest], found]), n).astype(np.float32))
    raise ValueError("no such weights")


def _nf4(name, weight, out):
    out[f"{name}.weight"] = weight
    codes, state = bnb.quantize_4bit(weight, quant_type="nf4")
    out[f"{name}.codes"], out[f"{name}.absmax"] = codes.flatten(), state.absmax
    out[f"{name}.values"] = bnb.dequantize_4bit(codes, state)
    codes, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    _nested(name, state, out)
    out[f"{name}.nested_values"] = bnb.dequantize_4bit(codes, state)


def _nested(name, state, out):
    out[f"{name}.nested_codes"], out[f"{name}.nested_absmax"] = state.absmax, state.state2.absmax
    out[f"{name}.nested_offset"] = state.offset.reshape(1)


def _make_nf4(generator):
    out = {"map": bnb.create_dynamic_map()}
    # 37 blocks and a half; block 2 is zero, and so is the half.
    ragged = _weights((24, 100), generator)
    ragged.view(-1)[128:192] = 0
    ragged.view(-1)[192:256] = _on_the_thresholds()
    ragged.view(-1)[2368:] = 0
    _nf4("ragged", ragged, out)
    # An odd number of weights: the last byte holds one.
    odd = _weights((5, 33), generator)
    odd.view(-1)[128:] = _told_apart_by_division(37)
    _nf4("odd", odd, out)
    _nf4("bf16", _weights((16, 128), generator).bfloat16(), out)
    # These weights are formulas: only what double quantisation makes of their scales is kept.
    many = hash_uniform(7, 600_000) * np.repeat(hash_uniform(8, 600_000 // 64), 64)
    formulas = {"many": many, "flat": np.full(640, np.float32(0.25))}
    for name, weights in formulas.items():
        _nested(name, bnb.quantize_4bit(torch.from_numpy(weights), quant_type="nf4", compress_statistics=True)[1], out)
    out["means"] = torch.stack([torch.from_numpy(hash_uniform(9, n)).mean() for n in SUMS])
    return out


def _make_int8(generator):
    weights = {"f32": _weights((12, 70), generator), "bf16": _weights((6, 64), generator).bfloat16()}
    weights["f32"][3] = 0
    # Halves between two codes, which go to the even one.
    weights["f32"][4] = torch.cat([torch.tensor([127.0]), torch.arange(69) - 34.5])
    out = {}
    for name, weight in weights.items():
        codes, scales, _ = bnb.int8_vectorwise_quant(weight)
        out[f"{name}.weight"], out[f"{name}.CB"], out[f"{name}.SCB"] = weight, codes, scales
        out[f"{name}.values"] = bnb.int8_vectorwise_dequant(codes, scales)
    return out


def _make_fp8(generator):
    weights = {"f32": _weights((12, 70), generator), "bf16": _weights((6, 64), generator).bfloat16()}
    weights["f32"][3] = 0
    # Every number there is, and those midway between each two, which go to the even one; the largest makes the scale 1.
    numbers = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    midway = (numbers[1:] + numbers[:-1]) / 2
    weights["every"] = torch.cat([numbers, midway, -numbers, -midway])[None, :]
    out = {}
    for name, weight in weights.items():
        values = weight.float()
        scales = values.abs().amax(1) / 448
        codes = (values / scales.where(scales > 0, 1.0)[:, None]).to(torch.float8_e4m3fn)
        out[f"{name}.weight"], out[f"{name}.codes"], out[f"{name}.scales"] = weight, codes.view(torch.uint8), scales
        out[f"{name}.values"] = codes.float() * scales[:, None]
    return out


def _random_blocks(name, rows, columns, rng):
    """Blocks of random bytes whose f16 numbers are finite, among them a negative and a subnormal one."""
    length, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = rng.integers(0, 256, (rows * columns // length, size), dtype=np.uint8)
    for at in HALVES.get(name, [0]):
        halves = rng.normal(0, 0.02, len(blocks)).astype(np.float16)
        halves[:2] = [-0.01, 3e-6]
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def _make_ggml(generator):
    rng = np.random.default_rng(5)
    out = {}
    for name in BLOCK_TYPES:
        blocks = _random_blocks(name, 3, 512, rng)
        values = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name])
        out[f"{name}.blocks"], out[f"{name}.values"] = torch.from_numpy(blocks), torch.from_numpy(values)
    weight = _weights((7, 96), generator)
    weight[2, 32:64] = 0
    # Halves between two codes of Q8_0; for Q4_0 two weights are the largest.
    weight[4, :32] = torch.cat([torch.tensor([127.0, -127.0]), torch.arange(30) - 14.5])
    out["weight"] = weight
    for name in ["Q8_0", "Q4_0"]:
        out[f"{name}.quantized"] = torch.from_numpy(gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType[name]))
    return out


def make(folder):
    os.makedirs(folder, exist_ok=True)
    # One thread: with more, PyTorch sums 32768 scales or more in another order.
    torch.set_num_threads(1)
    for k, (name, part) in enumerate([("nf4", _make_nf4), ("int8", _make_int8), ("ggml", _make_ggml), ("fp8", _make_fp8)]):
        tensors = part(torch.Generator().manual_seed(100 + k))
        save_file({key: value.contiguous() for key, value in tensors.items()}, os.path.join(folder, f"{name}.safetensors"))
