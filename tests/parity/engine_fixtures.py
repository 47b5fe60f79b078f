"""Writes engine/tests/fixtures/tiny_*: what transformers and PEFT compute for tiny random models of every family."""

import json
import math
import os
import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import goldens
from tiny_models import TINY

# Below this distance between the last chosen expert and the first other one rounding may choose another.
MIN_ROUTER_MARGIN = 1e-4


def _write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1)
        f.write("\n")


def _randomise(model, norm_mean, generator):
    # Larger than the usual 0.02, so that attention and the gates are far from linear and logits differ clearly.
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(norm_mean + 0.2 * torch.randn(p.shape, generator=generator))
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


def _tiny_model(folder, spec):
    generator = torch.Generator().manual_seed(spec["seed"])
    model = AutoModelForCausalLM.from_config(spec["config"])
    _randomise(model, spec["norm_mean"], generator)
    # Under the names of the hub: transformers 5 splits the experts again when it saves.
    model.to(spec["dtype"]).save_pretrained(folder, max_shard_size=spec["shard"])
    generation = os.path.join(folder, "generation_config.json")
    if os.path.exists(generation):
        os.remove(generation)
    if spec["old_config"]:
        _rewrite_config_in_the_older_style(folder)
    return generator


def _load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def _is_all_linear(folder, targets):
    """Whether `targets` are the modules that PEFT takes for `all-linear`."""
    model = get_peft_model(_load(folder), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    config = model.peft_config["default"]
    return {name.rsplit(".", 1)[-1] for name in config.target_modules} == set(targets) and not config.target_parameters


def _tiny_adapter(folder, spec, generator):
    """A PEFT folder whose B is not zero, so that every gradient and every path of the forward shows."""
    model = get_peft_model(_load(folder), LoraConfig(**spec["lora"], lora_dropout=0.0, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, p in sorted(goldens.trainable(model).items()):
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 / math.sqrt(p.shape[-1])))
    model.peft_config["default"].base_model_name_or_path = os.path.basename(folder)
    path = os.path.join(folder, "adapter")
    model.save_pretrained(path)
    os.remove(os.path.join(path, "README.md"))
    return path


def _watch_routers(*models):
    """Collects how clearly each token's experts were chosen; empty for a model without experts."""
    margins = []

    def watch(router, _inputs, outputs):
        best = outputs[0].detach().softmax(-1).topk(router.top_k + 1).values
        margins.append((best[:, -2] - best[:, -1]).min().item())

    for module in (module for model in models for module in model.modules()):
        if type(module).__name__.endswith("TopKRouter"):
            module.register_forward_hook(watch)
    return margins


def _tensors(base, model, documents):
    tensors = {}
    with torch.no_grad():
        for i, d in enumerate(documents):
            ids = torch.tensor([d["tokens"]])
            tensors[f"logits.{i}"] = model(input_ids=ids).logits[0]
            logits, labels = goldens.label_logits(model, d)
            tensors[f"label_logprobs.{i}"] = logits.log_softmax(-1)[range(len(labels)), labels]
        tensors["base_logits.1"] = base(input_ids=torch.tensor([documents[1]["tokens"]])).logits[0]
    return tensors


def make(out, name):
    torch.set_num_threads(1)
    print(name)
    spec, folder = TINY[name], os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    generator = _tiny_model(folder, spec)
    assert _is_all_linear(folder, spec["lora"]["target_modules"]) == spec["all_linear"]
    adapter = _tiny_adapter(folder, spec, generator)
    base, model = _load(folder), PeftModel.from_pretrained(_load(folder), adapter, is_trainable=True).eval()
    margins = _watch_routers(base, model)
    vocab = spec["config"].vocab_size
    documents = goldens.make_documents(generator, vocab, spec["lengths"])
    tensors = _tensors(base, model, documents)
    loss, n_labels, n_correct = goldens.mean_loss(model, documents)
    loss.backward()
    for n, p in goldens.trainable(model).items():
        tensors[f"grad.{n}"] = p.grad.clone()
        p.grad = None
    batches = [[(step * 2 + j) % len(documents) for j in range(3)] for step in range(goldens.N_STEPS)]
    golden = {
        "documents": documents,
        "loss": loss.item(),
        "n_label_tokens": n_labels,
        "n_correct": n_correct,
        "greedy": goldens.greedy_prompt([base, model], generator, vocab),
        "runs": goldens.train_runs(model, documents, batches, 1e-3, 0.5, spec["runs"]),
    }
    assert all(margin > MIN_ROUTER_MARGIN for margin in margins), f"choose another seed: {min(margins)}"
    save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(folder, "golden.safetensors"))
    _write_json(os.path.join(folder, "golden.json"), golden)
