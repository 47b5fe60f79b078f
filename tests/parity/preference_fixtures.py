"""Writes engine/tests/fixtures/preference: what TRL computes for training by preference on a tiny model, every loss in float64, and a run
of DPO and one of KTO."""

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
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from engine_fixtures import _write_json

MODEL, VOCAB, N_PAIRS, BATCH_SIZE, N_STEPS = "tiny_llama_tied", 512, 12, 4, 30
BETA, SMOOTHING, GAMMA = 0.3, 0.1, 0.5
DESIRABLE, UNDESIRABLE = 0.75, 1.5
# Of which a gradient is kept whole; of all others their norm together.
KEPT = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
# Plain DPO has no smoothing in TRL.
SMOOTHED = ["exo_pair", "robust", "aot", "aot_unpaired"]
WITH_REFERENCE = ["sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", *SMOOTHED]
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


def _judged(rows):
    """Of each pair one answer: two of three times the better one."""
    sides = ["chosen" if i % 3 != 1 else "rejected" for i in range(len(rows))]
    return Dataset.from_list([{"prompt": r["prompt"], "completion": r[side], "label": side == "chosen"} for r, side in zip(rows, sides)])


class _InOrder:
    """Keeps the order of the data, and every step's loss."""

    losses = ()

    def _get_train_sampler(self, dataset=None):
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, *args, **kwargs):
        out = super().compute_loss(*args, **kwargs)
        self.losses = [*self.losses, (out[0] if isinstance(out, tuple) else out).item()]
        return out


class _InOrderDPO(_InOrder, DPOTrainer):
    pass


class _InOrderKTO(_InOrder, KTOTrainer):
    pass


def _trainer(kind, config, folder, adapter, rows, out, batch_size=BATCH_SIZE, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    config = config(
        out, beta=BETA, per_device_train_batch_size=batch_size, max_steps=N_STEPS, learning_rate=1e-3, lr_scheduler_type="linear",
        warmup_steps=3, weight_decay=0.0, max_grad_norm=1.0, gradient_checkpointing=False, bf16=False, use_cpu=True, report_to=[],
        logging_steps=1, log_level="error", save_strategy="no", disable_dropout=True, disable_tqdm=True, dataloader_pin_memory=False, max_length=None, **options)
    return kind(model, args=config, train_dataset=rows, processing_class=_tokenizer())


def _dpo(*args, **options):
    return _trainer(_InOrderDPO, DPOConfig, *args, **options)


def _kto(*args, **options):
    return _trainer(_InOrderKTO, KTOConfig, *args, **options)


def _moved_away(trainer):
    """The model in float64, its adapter moved away from the reference's, so that no ratio is 1."""
    model = trainer.model.double()
    with torch.no_grad():
        for n, p in model.named_parameters():
            if ".default." in n:
                p.mul_(1.25)
    return model.train()


def _loss_of_all(trainer):
    """Of all rows as one batch: the loss, its gradients' norm and the kept one."""
    model = _moved_away(trainer)
    loss = trainer.compute_loss(model, trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset))))
    loss.backward()
    return loss.item(), *_gradients(model)


def _run(trainer):
    trainer.train()
    at = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return {
        "learning_rate": 1e-3, "warmup_steps": 3, "max_grad_norm": 1.0, "batch_size": BATCH_SIZE, "losses": trainer.losses,
        "grad_norms": [float(e["grad_norm"]) for e in at],
        **{name: [e[key] for e in at] for name, key in [("accuracies", "rewards/accuracies"), ("margins", "rewards/margins")] if key in at[0]},
    }


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
    golden = {
        "model": MODEL, "beta": BETA, "label_smoothing": SMOOTHING, "gamma": GAMMA, "desirable_weight": DESIRABLE,
        "undesirable_weight": UNDESIRABLE, "kept": KEPT, "losses": [],
    }
    tensors = {}

    def keep(name, loss, norm, gradient):
        golden["losses"].append({"name": name, "loss": loss, "grad_norm": norm})
        tensors[f"{name}.grad"] = gradient.float().contiguous()
        print(f"  {name}: {loss:.4f}, gradient norm {norm:.3f}")

    with tempfile.TemporaryDirectory() as scratch:
        at = (folder, adapter, rows, scratch)
        for name in WITH_REFERENCE:
            smoothing = {"label_smoothing": SMOOTHING} if name in SMOOTHED else {}
            trainer = _dpo(*at, loss_type=[name], **smoothing)
            keep(name, *_loss_of_all(trainer))
        examples, model = list(trainer.train_dataset), trainer.model
        golden["pairs"] = [{k: e[f"{k}_ids"] for k in ("prompt", "chosen", "rejected")} for e in examples]
        with torch.no_grad():
            model.set_adapter("ref")
            golden["references"] = [[_logps(model, e, side).sum().item() for side in ("chosen", "rejected")] for e in examples]
            model.set_adapter("default")
        for name in WITHOUT:
            chosen, rejected = ([_logps(model, e, side) for e in examples] for side in ("chosen", "rejected"))
            loss = _without_reference(name, chosen, rejected)
            loss.backward()
            keep(name, loss.item(), *_gradients(model))
        golden["run"] = _run(_dpo(*at, loss_type=["sigmoid"]))

        at = (folder, adapter, _judged(rows), scratch)
        weights = {"desirable_weight": DESIRABLE, "undesirable_weight": UNDESIRABLE}
        # Answers are mismatched within a batch when the data are prepared.
        trainer = _kto(*at, batch_size=N_PAIRS, **weights)
        keep("kto", *_loss_of_all(trainer))
        golden["kto_z"] = trainer._metrics["train"]["kl"][-1]
        golden["judged"] = [{"prompt": e["prompt_ids"], "completion": e["completion_ids"], "label": e["label"]} for e in trainer.train_dataset]
        golden["kto_run"] = _run(_kto(*at, **weights))
    for name in ("run", "kto_run"):
        print(f"  {name}: {golden[name]['losses'][0]:.4f} -> {golden[name]['losses'][-1]:.4f}")
    print(f"  z of kto: {golden['kto_z']:.4f}")
    save_file(tensors, os.path.join(to, "golden.safetensors"))
    _write_json(os.path.join(to, "golden.json"), golden)
