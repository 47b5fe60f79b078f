"""LoRA training steps of PyTorch peers: one JSON line for each peer, model, workload and checkpointing.

    python train.py --peer trl,unsloth --model 1.5b --workload packed2048x8,alpaca --checkpointing default,off

Each peer and model is a process of its own. See README.md for what each peer is.
"""

import argparse
import contextlib
import ctypes
import gc
import glob
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
import time

import cases
from workloads import documents, rows_of

PEERS = ["trl", "trl+liger", "trl+compile", "peft-raw", "peft-raw+liger", "peft-raw+compile", "unsloth", "unsloth+padding-free", "unsloth+padded"]
LORA = dict(r=16, lora_alpha=32, lora_dropout=0.0)


def versions(*names):
    found = {}
    for name in ("torch", "transformers", *names):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


class Clock:
    """When each step had ended on the device, and what went in."""

    def __init__(self, torch, device):
        self.torch, self.device = torch, device
        self.ends, self.losses, self.norms = [], [], []
        self.tokens, self.padded, self.labels = [], [], []
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        self.began = time.perf_counter()

    def batch(self, examples, tensors):
        self.tokens.append(sum(len(example["input_ids"]) for example in examples))
        self.padded.append(tensors["input_ids"].numel())
        self.labels.append(int((tensors["labels"] != -100).sum()))

    def step(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def result(self, warmup, steps):
        if len(self.ends) < warmup + steps:
            raise RuntimeError(f"{len(self.ends)} steps of {warmup + steps}")
        times = [end - begin for begin, end in zip(self.ends[warmup - 1 :], self.ends[warmup : warmup + steps], strict=False)]
        tokens = self.tokens[warmup : warmup + steps]
        out = {
            "tokens_per_s": round(statistics.median(count / spent for count, spent in zip(tokens, times, strict=True)), 1),
            "tokens_per_s_total": round(sum(tokens) / sum(times), 1),
            "step_s": [round(spent, 4) for spent in times],
            "step_tokens": tokens,
            "step_padded": self.padded[warmup : warmup + steps],
            "step_labels": self.labels[warmup : warmup + steps],
            "warmup_s": round(self.ends[warmup - 1] - self.began, 2),
        }
        if self.losses:
            out |= {"loss_first": round(self.losses[warmup], 4), "loss_last": round(self.losses[warmup + steps - 1], 4)}
        if self.norms:
            out["gradient_norm_last"] = str(round(self.norms[warmup + steps - 1], 4))
        if self.device == "cuda":
            gib = 1 << 30
            out |= {
                "allocated_before_gib": round(self.before / gib, 2),
                "peak_allocated_gib": round(self.torch.cuda.max_memory_allocated() / gib, 2),
                "peak_reserved_gib": round(self.torch.cuda.max_memory_reserved() / gib, 2),
            }
        return out


def compile_layers(model, case):
    """torch.compile of each decoder layer in place; they share their code, so it compiles once."""
    for module in model.modules():
        if type(module).__name__.endswith("DecoderLayer"):
            module.compile(dynamic=True if case["workload"] == "alpaca" else None)


def measure(case):
    os.chdir(tempfile.mkdtemp(prefix="luthier-peers-"))
    parts = case["peer"].split("+")
    if parts[0] == "unsloth":
        import_unsloth(case)
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch._dynamo.reset()
    gc.collect()
    if case["device"] == "cuda":
        torch.cuda.empty_cache()
    began = time.perf_counter()
    run = {"trl": train_trl, "unsloth": train_unsloth, "peft-raw": train_raw}[parts[0]]
    clock, notes = run(case, parts[1:], torch)
    device = torch.cuda.get_device_name() if case["device"] == "cuda" else "cpu"
    return {**clock.result(case["warmup"], case["steps"]), "setup_s": round(clock.began - began, 2), "device": device, **notes}


def data(case):
    from shapes import vocabulary

    # One more step than is run: loaders read ahead.
    return documents(case["workload"], case["warmup"] + case["steps"] + 1, vocabulary(case["model"]), case["batch"], case["seed"])


def fit(trainer_class, config_class, case, torch, model, tokenizer, config_extra, **trainer_extra):
    """SFTTrainer over the documents, in their order."""
    import datasets
    import transformers

    config = config_class(
        output_dir="out", per_device_train_batch_size=rows_of(case["workload"], case["batch"])[0], gradient_accumulation_steps=1,
        max_steps=case["warmup"] + case["steps"], max_length=2048, dataset_num_proc=1, logging_steps=1, logging_first_step=True,
        report_to="none", save_strategy="no", disable_tqdm=True, seed=case["seed"], bf16=True, use_cpu=case["device"] == "cpu", **config_extra,
    )
    clock = None

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            clock.step()

        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "loss" in logs:
                clock.losses.append(float(logs["loss"]))
                clock.norms.append(float(logs.get("grad_norm", "nan")))

    trainer = trainer_class(
        model=model, args=config, train_dataset=datasets.Dataset.from_list(data(case)), processing_class=tokenizer, callbacks=[Watch()],
        **trainer_extra,
    )
    trainer._get_train_sampler = lambda *args, **kwargs: torch.utils.data.SequentialSampler(trainer.train_dataset)
    collator = trainer.data_collator

    class Counting(type(collator)):
        def __call__(self, examples, *args, **kwargs):
            tensors = super().__call__(examples, *args, **kwargs)
            clock.batch(examples, tensors)
            return tensors

    collator.__class__ = Counting
    layers = [module for module in trainer.model.modules() if type(module).__name__.endswith("DecoderLayer")]
    notes = {
        "checkpoints": any(getattr(layer, "gradient_checkpointing", False) for layer in layers) or bool(trainer.args.gradient_checkpointing),
        "padding_free": bool(getattr(collator, "padding_free", False) or getattr(trainer.args, "padding_free", False)),
        "collator": type(collator).__mro__[1].__name__,
        "accumulation": trainer.args.gradient_accumulation_steps,
        "optimizer": str(getattr(trainer.args.optim, "value", trainer.args.optim)),
        "adapter": str(next(p.dtype for n, p in trainer.model.named_parameters() if "lora_A" in n)),
    }
    clock = Clock(torch, case["device"])
    trainer.train()
    return clock, notes


def train_trl(case, extras, torch):
    import peft
    from trl import SFTConfig, SFTTrainer

    from shapes import LINEARS, random_model, tokenizer

    model = random_model(case["model"], case["device"])
    config = {}
    if case["checkpointing"] != "default":
        config["gradient_checkpointing"] = case["checkpointing"] == "on"
    if "liger" in extras:
        config["use_liger_kernel"] = True
    if "compile" in extras:
        if case["compile"] == "layer":
            compile_layers(model, case)
        else:
            config["torch_compile"] = True
    lora = peft.LoraConfig(**LORA, target_modules=LINEARS, task_type="CAUSAL_LM")
    clock, notes = fit(SFTTrainer, SFTConfig, case, torch, model, tokenizer(), config, peft_config=lora)
    return clock, {**notes, "attention": model.config._attn_implementation, "versions": versions("trl", "peft", "accelerate", "liger-kernel")}


def train_raw(case, extras, torch):
    """The loop that one would write by hand: adapters in bf16, no autocast, no metrics."""
    import peft

    from shapes import LINEARS, random_model

    cuda = case["device"] == "cuda"
    model = random_model(case["model"], case["device"])
    if "liger" in extras:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(model=model)
    lora = peft.LoraConfig(**LORA, target_modules=LINEARS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, lora, autocast_adapter_dtype=False)
    model.train()
    checkpoints = case["checkpointing"] != "off"
    if checkpoints:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    forward = model
    if "compile" in extras:
        if case["compile"] == "layer":
            compile_layers(model, case)
        else:
            forward = torch.compile(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-5, weight_decay=0.0, fused=cuda)
    docs = data(case)
    rows = rows_of(case["workload"], case["batch"])[0]
    clock = Clock(torch, case["device"])
    for step in range(case["warmup"] + case["steps"]):
        batch = docs[step * rows : (step + 1) * rows]
        width = max(len(doc["input_ids"]) for doc in batch)
        padded = {
            name: torch.tensor([doc[name] + [fill] * (width - len(doc[name])) for doc in batch]) for name, fill in (("input_ids", 3), ("labels", -100))
        }
        if any(len(doc["input_ids"]) < width for doc in batch):
            padded["attention_mask"] = torch.tensor([[1] * len(doc["input_ids"]) + [0] * (width - len(doc["input_ids"])) for doc in batch])
        clock.batch(batch, padded)
        inputs = {name: tensor.to(case["device"], non_blocking=True) for name, tensor in padded.items()}
        loss = forward(**inputs, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.losses.append(loss.detach())
        clock.step()
    clock.losses = [loss.item() for loss in clock.losses]
    return clock, {"checkpoints": checkpoints, "padding_free": False, "optimizer": "AdamW", "adapter": "torch.bfloat16",
                   "attention": model.config._attn_implementation, "versions": versions("peft", "liger-kernel")}


def import_unsloth(case):
    """Unsloth comes before whatever it patches."""
    if "+" in case["peer"]:
        os.environ["UNSLOTH_PADDING_CHOICE"] = case["peer"].split("+")[1].replace("-", "_")
    if case["attention"] == "sdpa":
        sys.modules["xformers"] = None
    else:
        # xformers' wheel is built against CUDA 12's runtime library, which a PyTorch for CUDA 13 does not load.
        for path in sys.path:
            for library in glob.glob(os.path.join(path, "nvidia/cuda_runtime/lib/libcudart.so.12")):
                with contextlib.suppress(OSError):
                    ctypes.CDLL(library)
    import unsloth  # noqa: F401


def train_unsloth(case, extras, torch):
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel
    from unsloth.utils import attention_dispatch

    from shapes import LINEARS, checkpoint

    folder = checkpoint(case["model"], case["device"])
    if case["device"] == "cuda":
        torch.cuda.empty_cache()
    checkpointing = {"default": "unsloth", "on": True, "off": False}[case["checkpointing"]]
    model, tokenizer = FastLanguageModel.from_pretrained(
        folder, max_seq_length=2048, dtype=torch.bfloat16, load_in_4bit=case["base"] == "nf4", use_gradient_checkpointing=checkpointing
    )
    model = FastLanguageModel.get_peft_model(
        model, **LORA, target_modules=LINEARS, bias="none", use_gradient_checkpointing=checkpointing, random_state=case["seed"]
    )
    config = {"gradient_checkpointing": False} if checkpointing is False else {}
    clock, notes = fit(SFTTrainer, SFTConfig, case, torch, model, tokenizer, config)
    notes["attention"] = attention_dispatch.select_attention_backend(bool(notes["padding_free"]))
    notes["checkpoints"] = str(checkpointing)
    return clock, {**notes, "versions": versions("unsloth", "unsloth_zoo", "trl", "peft", "xformers", "bitsandbytes")}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", default="trl", help=f"comma-separated: {', '.join(PEERS)}")
    parser.add_argument("--model", default="0.5b", help="comma-separated: 0.5b, 1.5b, 8b, tiny, tiny-llama")
    parser.add_argument("--workload", default="packed2048x8", help="comma-separated: alpaca, packed<length>x<rows>")
    parser.add_argument("--checkpointing", default="default", help="comma-separated: default, on, off")
    parser.add_argument("--base", choices=["bf16", "nf4"], default="bf16", help="nf4: QLoRA, unsloth only")
    parser.add_argument("--attention", choices=["default", "sdpa"], default="default", help="sdpa: unsloth without xformers")
    parser.add_argument("--compile", choices=["layer", "model"], default="layer", help="what +compile gives to torch.compile")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--batch", type=int, help="documents in a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=int, default=150, help="seconds for a case")
    parser.add_argument("--log", help="file for what the peers print")
    parser.add_argument("--cases", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cases:
        return cases.serve(json.loads(args.cases), measure)
    shared = {name: getattr(args, name) for name in ("base", "attention", "compile", "steps", "warmup", "batch", "seed", "device")}
    groups = [
        [
            {"peer": peer, "model": model, "workload": workload, "checkpointing": checkpointing, **shared}
            for workload in args.workload.split(",")
            for checkpointing in args.checkpointing.split(",")
        ]
        for model in args.model.split(",")
        for peer in args.peer.split(",")
    ]
    cases.run_all(os.path.abspath(__file__), groups, args.limit, args.log)


if __name__ == "__main__":
    main()
