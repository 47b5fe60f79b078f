"""Writes engine/tests/fixtures/adapters: what PEFT computes for each kind of adapter, on the tiny models beside it."""

import contextlib
import json
import math
import os
import shutil

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from engine_fixtures import _write_json
from goldens import N_STEPS, label_logits, mean_loss, trainable

ATTENTION, QV = ["q_proj", "k_proj", "v_proj", "o_proj"], ["q_proj", "v_proj"]
# name → base model, what LoraConfig gets, what differs in the run.
VARIANTS = {
    "rslora": ("tiny_llama_tied", dict(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_rslora=True), {}),
    "patterns": (
        "tiny_llama_tied",
        dict(r=4, lora_alpha=8, target_modules=QV + ["up_proj", "gate_proj"],
             # The first key that matches counts; a key is a regex on the end of the path.
             rank_pattern={r"layers\.1\.self_attn\.q_proj": 2, "q_proj": 3, "mlp.up_proj": 6},
             alpha_pattern={"v_proj": 2, r"layers\.[02]\.mlp\..*": 5}),
        {},
    ),
    "regex": ("tiny_llama_tied", dict(r=3, lora_alpha=6, target_modules=r"model\.layers\.(0\.self_attn\.[qk]|1\.mlp\.up|2\..*\.down)_proj"), {}),
    "layers": ("tiny_llama_tied", dict(r=3, lora_alpha=6, target_modules=["self_attn.o_proj", "gate_proj"], layers_to_transform=[1, 2],
                                       exclude_modules=["layers.2.mlp.gate_proj"]), {}),
    "loraplus": ("tiny_llama_tied", dict(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"]), dict(loraplus_lr_ratio=8.0)),
    "pissa": ("tiny_llama_tied", dict(r=4, lora_alpha=6, target_modules=["k_proj", "o_proj", "up_proj", "down_proj"],
                                      rank_pattern={"k_proj": 2}, init_lora_weights="pissa"), {}),
    "dora": ("tiny_llama_tied", dict(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_dora=True), {}),
    "dora_dropout": ("tiny_llama_tied", dict(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_dora=True, lora_dropout=0.25), {}),
    "dropout": ("tiny_llama_tied", dict(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], lora_dropout=0.25), {}),
    "dora_bias": ("tiny_qwen2", dict(r=2, lora_alpha=4, target_modules=["v_proj", "o_proj"], use_dora=True, bias="lora_only"), {}),
    "bias_all": ("tiny_qwen2", dict(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], bias="all"), {}),
    "bias_lora_only": ("tiny_qwen2", dict(r=2, lora_alpha=4, target_modules=["v_proj", "down_proj"], bias="lora_only"), {}),
    "save_head": ("tiny_llama_untied", dict(r=2, lora_alpha=4, target_modules=QV, modules_to_save=["lm_head"]), {}),
    # The head is tied to the embeddings, and stays as it is.
    "save_embeddings": ("tiny_llama_tied", dict(r=2, lora_alpha=4, target_modules=QV, modules_to_save=["embed_tokens"]), {}),
    # Embeddings that the model scales, under both soft caps.
    "save_scaled_embeddings": ("tiny_gemma2", dict(r=2, lora_alpha=4, target_modules=QV, modules_to_save=["embed_tokens"]), {}),
    # Linears that the model keeps as one.
    "dora_fused": ("tiny_phi3", dict(r=2, lora_alpha=4, target_modules=["qkv_proj", "gate_up_proj"], use_dora=True), {}),
}
RUN = dict(learning_rate=1e-3, schedule="constant", warmup_steps=0, max_grad_norm=None, weight_decay=0.1)
# Of the documents of the base's golden.json, the one whose logits are kept: five tokens.
LOGITS_OF = 0


# The engine's random numbers, `engine/src/rng.rs` and `engine/src/nn/dropout.rs`: its masks can be drawn here.
GOLDEN, DROPOUT = np.uint64(0x9E3779B97F4A7C15), np.uint64(4)
FUSED = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "gate_proj": 2, "up_proj": 2, "down_proj": 3}


def _mix(x):
    z = x + GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class GivenDropout(torch.nn.Module):
    """Dropout with the masks of a run with seed 0: functions of step, example of the step, position and place."""

    step, member = 0, 0

    def __init__(self, path, p):
        super().__init__()
        parts = path.split(".")
        self.place, self.p = 4 * int(parts[parts.index("layers") + 1]) + FUSED[parts[-1]], p

    def forward(self, x):
        n, width = x.shape[-2:]
        with np.errstate(over="ignore"):
            lane = np.uint64((GivenDropout.step << 24) | self.place)
            key = _mix(_mix(_mix(np.zeros(1, np.uint64)) ^ DROPOUT) + lane)
            rows = (np.uint64(GivenDropout.member) << np.uint64(24)) | np.arange(n, dtype=np.uint64)
            index = (rows[:, None] << np.uint64(20)) | np.arange(width, dtype=np.uint64)[None]
            bits = _mix(key ^ _mix(index * GOLDEN)) >> np.uint64(40)
        return x * torch.from_numpy(bits >= math.ceil(self.p * 2**24)) / (1 - self.p)


def _inject_dropout(model, p):
    for name, module in model.named_modules():
        if hasattr(module, "lora_dropout") and "default" in module.lora_dropout:
            module.lora_dropout["default"] = GivenDropout(name, p)


def _step_loss(model, documents, step):
    """As `mean_loss`, telling the dropout what is being read."""
    GivenDropout.step = step
    total, n, n_correct = 0.0, 0, 0
    for GivenDropout.member, document in enumerate(documents):
        logits, labels = label_logits(model, document)
        if len(labels):
            total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            n += len(labels)
            n_correct += int((logits.argmax(-1) == labels).sum())
    return total / n, n_correct


@contextlib.contextmanager
def _exact_svd():
    """torch.linalg.svd in f64: in f32 it turns singular vectors by more than the engine may differ from PEFT."""
    svd = torch.linalg.svd
    torch.linalg.svd = lambda w, **options: [part.to(w.dtype) for part in svd(w.double(), **options)]
    try:
        yield
    finally:
        torch.linalg.svd = svd


def _randomise(model, generator):
    """B not zero, magnitudes not the norms, biases and saved modules not the base's."""
    with torch.no_grad():
        for name, p in sorted(trainable(model).items()):
            noise = torch.randn(p.shape, generator=generator)
            if "lora_A" in name or "lora_B" in name:
                p.copy_(noise * (0.3 / math.sqrt(p.shape[-1])))
            elif "lora_magnitude_vector" in name:
                p.mul_(1 + 0.2 * noise)
            else:
                p.add_(0.05 * noise)


def _run(model, documents, changes):
    before = {n: p.detach().clone() for n, p in trainable(model).items()}
    lr, decay = RUN["learning_rate"], RUN["weight_decay"]
    if "loraplus_lr_ratio" in changes:
        optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=lr, loraplus_weight_decay=decay, **changes)
    else:
        # Biases do not decay.
        groups = [[p for n, p in trainable(model).items() if n.endswith("bias") == is_bias] for is_bias in (False, True)]
        optimizer = torch.optim.AdamW([{"params": groups[0], "weight_decay": decay}, {"params": groups[1], "weight_decay": 0.0}], lr=lr)
    batches = [[(step * 2 + j) % len(documents) for j in range(3)] for step in range(N_STEPS)]
    losses, norms, n_correct = [], [], []
    for step, batch in enumerate(batches):
        loss, correct = _step_loss(model, [documents[i] for i in batch], step)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trainable(model).values(), float("inf")).item())
        losses.append(loss.item())
        n_correct.append(correct)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        for n, p in trainable(model).items():
            p.copy_(before[n])
    return dict(name="run", total_steps=N_STEPS, **RUN, **changes, batches=batches, losses=losses, grad_norms=norms,
                learning_rates=[lr] * N_STEPS, n_correct=n_correct)


def _make(out, name, seed):
    base_name, config, changes = VARIANTS[name]
    base = os.path.join(out, base_name)
    folder = os.path.join(out, "adapters", name)
    load = lambda: AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    with open(os.path.join(base, "golden.json")) as f:
        documents = json.load(f)["documents"]
    with _exact_svd():
        model = get_peft_model(load(), LoraConfig(**config, task_type="CAUSAL_LM"))
    is_pissa = config.get("init_lora_weights") == "pissa"
    if not is_pissa:
        _randomise(model, torch.Generator().manual_seed(seed))
    saved = model.peft_config["default"]
    saved.base_model_name_or_path = base_name
    if isinstance(saved.target_modules, set):
        saved.target_modules = sorted(saved.target_modules)
    model.save_pretrained(folder, save_embedding_layers=False)
    os.remove(os.path.join(folder, "README.md"))
    if not is_pissa:
        # What is compared is what a reader of the files gets.
        model = PeftModel.from_pretrained(load(), folder, is_trainable=True)
    model.eval()
    with torch.no_grad():
        tensors = {"logits": model(input_ids=torch.tensor([documents[LOGITS_OF]["tokens"]])).logits[0]}
        golden = {"base": base_name, "loss": mean_loss(model, documents)[0].item()}
    if config.get("lora_dropout"):
        _inject_dropout(model, config["lora_dropout"])
        model.train()
    golden["run"] = _run(model, documents, changes)
    _step_loss(model, documents, 0)[0].backward()
    for n, p in trainable(model).items():
        tensors[f"grad.{n.removesuffix('.weight') if 'magnitude' in n else n.replace('.modules_to_save', '')}"] = p.grad
    save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(folder, "golden.safetensors"))
    _write_json(os.path.join(folder, "golden.json"), golden)
    losses = golden["run"]["losses"]
    print(f"{name}: {losses[0]:.4f} -> {losses[-1]:.4f}, {len(tensors) - 1} gradients")


def make(out):
    torch.set_num_threads(1)
    shutil.rmtree(os.path.join(out, "adapters"), ignore_errors=True)
    for seed, name in enumerate(VARIANTS):
        _make(out, name, 100 + seed)
