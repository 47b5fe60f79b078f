"""Writes engine/tests/fixtures/preference: what TRL computes for training by preference on a tiny model, every loss and a run of DPO."""

import os
import shutil
import tempfile
from types import SimpleNamespace

import torch
import trl.trainer.utils
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from engine_fixtures import _write_json

MODEL, VOCAB, N_PAIRS, BATCH_SIZE, N_STEPS = "tiny_llama_tied", 512, 12, 4, 30
BETA, SMOOTHING, GAMMA = 0.3, 0.1, 0.5
# Of which a gradient is kept whole; of all others their norm together.
KEPT = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
# Plain DPO has no smoothing in TRL.
WITH_REFERENCE = ["sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero", "apo_down"]
WITHOUT = ["orpo", "simpo", "cpo"]


class _OnCpu:
    """TRL takes log p by a kernel for GPUs; here by torch."""

    @staticmethod
    def apply(hidden, weight, bias, labels, temperature, _chunk, _softcap, scale, _outputs):
        logits = torch.nn.functional.linear(hidden, weight, bias) * scale / temperature
        logps = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        # What is only logged counts for nothing here.
        unused = torch.zeros_like(logps)
        return logps, unused, unused, unused, unused.bool()


trl.trainer.utils._ChunkedLogProbFunction = _OnCpu


def _tokenizer():
    vocab = {f"t{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="t2", pad_token="t1")


def _dataset(generator):
    words = lambda n: " ".join(f"t{i}" for i in torch.randint(3, VOCAB, (n,), generator=generator).tolist())  # noqa: E731
    rows = [{"prompt": words(5 + i), "chosen": " " + words(3 + 2 * (i % 5)), "rejected": " " + words(2 + 3 * (i % 4))} for i in range(N_PAIRS)]
    return Dataset.from_list(rows)


class _InOrder(DPOTrainer):
    """Keeps the order of the data, and every step's loss."""

    def _get_train_sampler(self, dataset=None):
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, *args, **kwargs):
        out = super().compute_loss(*args, **kwargs)
        self.losses.append((out[0] if isinstance(out, tuple) else out).item())
        return out


def _trainer(folder, adapter, rows, out, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    config = DPOConfig(
        out, beta=BETA, per_device_train_batch_size=BATCH_SIZE, max_steps=N_STEPS, learning_rate=1e-3, lr_scheduler_type="linear",
        warmup_steps=3, weight_decay=0.0, max_grad_norm=1.0, gradient_checkpointing=False, bf16=False, use_cpu=True, report_to=[],
        logging_steps=1, log_level="error", save_strategy="no", disable_dropout=True, disable_tqdm=True, dataloader_pin_memory=False, max_length=None, **options)
    trainer = _InOrder(model, args=config, train_dataset=rows, processing_class=_tokenizer())
    trainer.losses = []
    return trainer


def _logps(model, example, side):
    """log p of an answer's tokens."""
    prompt, answer = example["prompt_ids"], example[f"{side}_ids"]
    ids = torch.tensor([prompt + answer])
    logps = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
    return logps[torch.arange(len(prompt) - 1, ids.shape[1] - 1), ids[0, len(prompt):]]


def _without_reference(name, chosen, rejected):
    """The mean loss of TRL's trainers without a reference, of log p of the tokens of each answer."""
    mean = lambda answers: torch.stack([logps.mean() for logps in answers])  # noqa: E731
    total = lambda answers: torch.stack([logps.sum() for logps in answers])  # noqa: E731
    of = SimpleNamespace(alpha=0.0, beta=BETA, label_smoothing=0.0, simpo_gamma=GAMMA, accelerator=SimpleNamespace(device="cpu"))
    # −log p over the better answer's own tokens, pair by pair.
    nll = -mean(chosen)
    if name == "orpo":
        odds, *_ = ORPOTrainer.odds_ratio_loss(of, mean(chosen), mean(rejected))
        return (nll - odds).mean()
    if name == "simpo":
        of.loss_type = "simpo"
        return CPOTrainer.cpo_loss(of, mean(chosen), mean(rejected))[0].mean()
    of.loss_type = "sigmoid"
    return (CPOTrainer.cpo_loss(of, total(chosen), total(rejected))[0] + nll).mean()


def _gradients(model):
    grads = {n.replace(".default", ""): p.grad for n, p in model.named_parameters() if p.requires_grad and ".ref." not in n}
    norm = torch.stack([g.norm() for g in grads.values()]).norm().item()
    kept = grads[KEPT].clone()
    model.zero_grad()
    return norm, kept


def make(out):
    torch.set_num_threads(1)
    folder = os.path.join(out, MODEL)
    adapter = os.path.join(folder, "adapter")
    to = os.path.join(out, "preference")
    shutil.rmtree(to, ignore_errors=True)
    os.makedirs(to)
    rows = _dataset(torch.Generator().manual_seed(7))
    golden, tensors = {"model": MODEL, "beta": BETA, "label_smoothing": SMOOTHING, "gamma": GAMMA, "kept": KEPT, "losses": []}, {}
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(folder, adapter, rows, scratch, loss_type=["sigmoid"])
        examples = list(trainer.train_dataset)
        golden["pairs"] = [{k: e[f"{k}_ids"] for k in ("prompt", "chosen", "rejected")} for e in examples]
        # One adapter as it is, the other one moved away from it, so that no ratio is 1.
        for name in WITH_REFERENCE:
            smoothing = {"label_smoothing": SMOOTHING} if name in ("exo_pair", "robust") else {}
            trainer = _trainer(folder, adapter, rows, scratch, loss_type=[name], **smoothing)
            model = trainer.model
            with torch.no_grad():
                for n, p in model.named_parameters():
                    if ".default." in n:
                        p.mul_(1.25)
            model.train()
            inputs = trainer._prepare_inputs(trainer.data_collator(examples))
            loss = trainer.compute_loss(model, inputs)
            loss.backward()
            norm, tensors[f"{name}.grad"] = _gradients(model)
            golden["losses"].append({"name": name, "loss": loss.item(), "grad_norm": norm})
        with torch.no_grad():
            model.set_adapter("ref")
            golden["references"] = [[_logps(model, e, side).sum().item() for side in ("chosen", "rejected")] for e in examples]
            model.set_adapter("default")
        for name in WITHOUT:
            chosen, rejected = ([_logps(model, e, side) for e in examples] for side in ("chosen", "rejected"))
            loss = _without_reference(name, chosen, rejected)
            loss.backward()
            norm, tensors[f"{name}.grad"] = _gradients(model)
            golden["losses"].append({"name": name, "loss": loss.item(), "grad_norm": norm})
        trainer = _trainer(folder, adapter, rows, scratch, loss_type=["sigmoid"])
        trainer.train()
        at = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
        golden["run"] = {
            "learning_rate": 1e-3, "warmup_steps": 3, "max_grad_norm": 1.0, "batch_size": BATCH_SIZE, "losses": trainer.losses,
            "grad_norms": [float(e["grad_norm"]) for e in at], "accuracies": [e["rewards/accuracies"] for e in at],
            "margins": [e["rewards/margins"] for e in at],
        }
    for loss in golden["losses"]:
        print(f"  {loss['name']}: {loss['loss']:.4f}, gradient norm {loss['grad_norm']:.3f}")
    print(f"  run: {golden['run']['losses'][0]:.4f} -> {golden['run']['losses'][-1]:.4f}")
    save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(to, "golden.safetensors"))
    _write_json(os.path.join(to, "golden.json"), golden)
