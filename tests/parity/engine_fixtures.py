"""Writes engine/tests/fixtures: what transformers and PEFT compute for tiny random models and for SmolLM2-135M-Instruct."""

import json
import math
import os
import shutil
import tempfile

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import smollm2

N_STEPS = 10
GREEDY_TOKENS = 32
# Below this distance between the best two logits another summation order may choose the other token.
MIN_GREEDY_MARGIN = 2e-3
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

SIZES = dict(vocab_size=512, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256)
# Each model shows something the others do not: see `engine/tests/fixtures/README.md`.
TINY = {
    "tiny_llama_tied": dict(
        config=LlamaConfig(**SIZES, intermediate_size=152, num_hidden_layers=3, tie_word_embeddings=True, rms_norm_eps=1e-5,
                           bos_token_id=509, eos_token_id=511),
        lora=dict(r=8, lora_alpha=16, target_modules=ALL_LINEAR), old_config=True, dtype=torch.float32, shard="5GB", seed=11,
    ),
    "tiny_llama_untied": dict(
        config=LlamaConfig(**SIZES, intermediate_size=128, num_hidden_layers=2, tie_word_embeddings=False, rms_norm_eps=1e-6,
                           bos_token_id=1, eos_token_id=2, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
        lora=dict(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"]), old_config=False, dtype=torch.float32,
        shard="200KB", seed=12,
    ),
    "tiny_qwen2": dict(
        config=Qwen2Config(**SIZES, intermediate_size=176, num_hidden_layers=3, tie_word_embeddings=True, rms_norm_eps=1e-6,
                           bos_token_id=509, eos_token_id=511, use_sliding_window=False,
                           rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
        lora=dict(r=8, lora_alpha=32, target_modules=ALL_LINEAR), old_config=True, dtype=torch.bfloat16, shard="5GB", seed=13,
    ),
}


def _write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1)
        f.write("\n")


def _randomise(model, generator):
    # Larger than the usual 0.02, so that attention and the gates are far from linear and logits differ clearly.
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(1 + 0.2 * torch.randn(p.shape, generator=generator))
            elif name.endswith("bias"):
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
            elif "embed_tokens" in name:
                p.copy_(0.35 * torch.randn(p.shape, generator=generator))
            else:
                p.copy_(torch.randn(p.shape, generator=generator) * 1.2 / math.sqrt(p.shape[-1]))


def _rewrite_config_in_the_older_style(folder):
    # transformers 4 and most published folders: rope_theta and torch_dtype at the top level.
    path = os.path.join(folder, "config.json")
    with open(path) as f:
        config = json.load(f)
    rope = config.pop("rope_parameters")
    config["rope_theta"], config["rope_scaling"] = rope["rope_theta"], None
    config["torch_dtype"] = config.pop("dtype")
    _write_json(path, config)


def _documents(generator, vocab, lengths):
    documents = []
    for k, n in enumerate(lengths):
        tokens = torch.randint(3, vocab - 3, (n,), generator=generator).tolist()
        # Labels come in runs, as assistant turns do; the first token of a document can be marked and counts for nothing.
        mask = [(i // 5 + k) % 2 == 1 or i == n - 1 for i in range(n)]
        documents.append({"tokens": tokens, "mask": mask})
    return documents


def _label_logits(model, document):
    """Logits that predict the labels (N, V), and the labels (N)."""
    tokens = torch.tensor(document["tokens"])
    logits = model(input_ids=tokens[None], use_cache=False).logits[0].float()
    at = [i for i in range(1, len(tokens)) if document["mask"][i]]
    return logits[[i - 1 for i in at]], tokens[at]


def _loss(model, documents):
    """Mean cross-entropy over all label tokens of all documents together; each document alone, so no padding."""
    total, n, n_correct = 0.0, 0, 0
    for document in documents:
        logits, labels = _label_logits(model, document)
        if len(labels) == 0:
            continue
        total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        n += len(labels)
        n_correct += int((logits.argmax(-1) == labels).sum())
    return total / n, n, n_correct


def _factor(schedule, step, warmup, total):
    if step < warmup:
        return step / max(1, warmup)
    progress = (step - warmup) / max(1, total - warmup)
    return {"constant": 1.0, "linear": max(0.0, 1 - progress), "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[schedule]


def _trainable(model):
    return {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}


def _train(model, documents, batches, config):
    """Ten steps of torch.optim.AdamW; the adapter is put back afterwards."""
    before = {n: p.detach().clone() for n, p in _trainable(model).items()}
    optimizer = torch.optim.AdamW(_trainable(model).values(), lr=config["learning_rate"], weight_decay=config["weight_decay"])
    out = {"losses": [], "grad_norms": [], "learning_rates": [], "n_correct": []}
    for step, batch in enumerate(batches):
        lr = config["learning_rate"] * _factor(config["schedule"], step, config["warmup_steps"], len(batches))
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss, _, n_correct = _loss(model, [documents[i] for i in batch])
        loss.backward()
        limit = config["max_grad_norm"] if config["max_grad_norm"] is not None else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(_trainable(model).values(), limit)
        optimizer.step()
        optimizer.zero_grad()
        for key, value in zip(out, (loss.item(), norm.item(), lr, n_correct)):
            out[key].append(value)
    with torch.no_grad():
        for n, p in _trainable(model).items():
            p.copy_(before[n])
    return out


def _runs(model, documents, batches, learning_rate, clip):
    variants = [
        ("constant", "constant", 0, None, 0.0),
        ("linear_clip_decay", "linear", 0, clip, 0.1),
        ("linear_warmup", "linear", 3, None, 0.0),
        ("cosine_warmup_clip", "cosine", 2, clip, 0.0),
    ]
    runs = []
    for name, schedule, warmup, max_norm, decay in variants:
        config = dict(learning_rate=learning_rate, schedule=schedule, warmup_steps=warmup, max_grad_norm=max_norm, weight_decay=decay)
        result = _train(model, documents, batches, config)
        print(f"  {name}: {result['losses'][0]:.4f} -> {result['losses'][-1]:.4f}, gradient norm {result['grad_norms'][0]:.3f}")
        runs.append({"name": name, "total_steps": len(batches), **config, "batches": batches, **result})
    return runs


@torch.no_grad()
def _greedy(model, prompt):
    tokens, margin = list(prompt), float("inf")
    for _ in range(GREEDY_TOKENS):
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
        best = logits.topk(2).values
        margin = min(margin, (best[0] - best[1]).item())
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt):], margin


def _greedy_prompt(models, generator, vocab):
    for _ in range(200):
        prompt = torch.randint(3, vocab - 3, (9,), generator=generator).tolist()
        outputs = [_greedy(m, prompt) for m in models]
        if min(margin for _, margin in outputs) > MIN_GREEDY_MARGIN:
            return {"prompt": prompt, "base": outputs[0][0], "adapter": outputs[1][0]}
    raise RuntimeError("no prompt with clear margins")


def _tiny_model(folder, spec):
    generator = torch.Generator().manual_seed(spec["seed"])
    cls = LlamaForCausalLM if isinstance(spec["config"], LlamaConfig) else Qwen2ForCausalLM
    model = cls(spec["config"])
    _randomise(model, generator)
    model.to(spec["dtype"]).save_pretrained(folder, max_shard_size=spec["shard"])
    generation = os.path.join(folder, "generation_config.json")
    if os.path.exists(generation):
        os.remove(generation)
    if spec["old_config"]:
        _rewrite_config_in_the_older_style(folder)
    return generator


def _tiny_adapter(folder, spec, generator):
    """A PEFT folder whose B is not zero, so that every gradient and every path of the forward shows."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model = get_peft_model(base, LoraConfig(**spec["lora"], lora_dropout=0.0, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, p in sorted(_trainable(model).items()):
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 / math.sqrt(p.shape[-1])))
    model.peft_config["default"].base_model_name_or_path = os.path.basename(folder)
    path = os.path.join(folder, "adapter")
    model.save_pretrained(path)
    os.remove(os.path.join(path, "README.md"))
    return path


def make_tiny(out):
    torch.set_num_threads(1)
    for name, spec in TINY.items():
        print(name)
        folder = os.path.join(out, name)
        shutil.rmtree(folder, ignore_errors=True)
        generator = _tiny_model(folder, spec)
        adapter = _tiny_adapter(folder, spec, generator)
        load = lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        base, model = load(), PeftModel.from_pretrained(load(), adapter, is_trainable=True).eval()
        vocab = spec["config"].vocab_size
        documents = _documents(generator, vocab, [5, 64, 17, 2, 33, 41])
        tensors = {}
        with torch.no_grad():
            for i, d in enumerate(documents):
                ids = torch.tensor([d["tokens"]])
                tensors[f"logits.{i}"] = model(input_ids=ids).logits[0]
                logits, labels = _label_logits(model, d)
                tensors[f"label_logprobs.{i}"] = logits.log_softmax(-1)[range(len(labels)), labels]
            tensors["base_logits.1"] = base(input_ids=torch.tensor([documents[1]["tokens"]])).logits[0]
        loss, n_labels, n_correct = _loss(model, documents)
        loss.backward()
        for n, p in _trainable(model).items():
            tensors[f"grad.{n}"] = p.grad.clone()
            p.grad = None
        batches = [[(step * 2 + j) % len(documents) for j in range(3)] for step in range(N_STEPS)]
        golden = {
            "documents": documents,
            "loss": loss.item(),
            "n_label_tokens": n_labels,
            "n_correct": n_correct,
            "greedy": _greedy_prompt([base, model], generator, vocab),
            "runs": _runs(model, documents, batches, 1e-3, 0.5),
        }
        save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(folder, "golden.safetensors"))
        _write_json(os.path.join(folder, "golden.json"), golden)


# --- SmolLM2-135M-Instruct: the adapter is a formula and the results are slices, so that little needs to be committed.

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
        for k, (name, p) in enumerate(sorted(_trainable(model).items())):
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


def make_smollm2(out, cache):
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
    loss, n_labels, n_correct = _loss(model, documents)
    loss.backward()
    gradients = {}
    for n, p in sorted(_trainable(model).items()):
        g = p.grad
        step = max(1, g.numel() // 16)
        gradients[n] = {"norm": g.norm().item(), "projections": _projections(g), "stride": step, "slice": g.flatten()[::step][:16].tolist()}
        p.grad = None
    prompt = _chat_ids(tokenizer, *SMOL_PROMPT, None)
    (base_tokens, m0), (tuned_tokens, m1) = _greedy(base, prompt), _greedy(model, prompt)
    print("greedy:", tokenizer.decode(base_tokens), "|", tokenizer.decode(tuned_tokens), f"(margins {m0:.4f}, {m1:.4f})")
    assert min(m0, m1) > MIN_GREEDY_MARGIN and base_tokens != tuned_tokens, "choose another prompt"
    batches = [[step % 4, (step + 1) % 4] for step in range(N_STEPS)]
    runs = _runs(model, documents, batches, 5e-4, 1.0)[:2]
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
