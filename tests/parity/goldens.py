"""What transformers and PEFT compute for a model with an adapter: losses, training runs, greedy tokens."""

import math

import torch

N_STEPS = 10
GREEDY_TOKENS = 32
# Below this distance between the best two logits another summation order may choose the other token.
MIN_GREEDY_MARGIN = 2e-3
# By name: schedule, warm-up steps, whether gradients are clipped, weight decay.
RUNS = {
    "constant": ("constant", 0, False, 0.0),
    "linear_clip_decay": ("linear", 0, True, 0.1),
    "linear_warmup": ("linear", 3, False, 0.0),
    "cosine_warmup_clip": ("cosine", 2, True, 0.0),
}


def make_documents(generator, vocab, lengths):
    documents = []
    for k, n in enumerate(lengths):
        tokens = torch.randint(3, vocab - 3, (n,), generator=generator).tolist()
        # Labels come in runs, as assistant turns do; the first token of a document can be marked and counts for nothing.
        mask = [(i // 5 + k) % 2 == 1 or i == n - 1 for i in range(n)]
        documents.append({"tokens": tokens, "mask": mask})
    return documents


def label_logits(model, document):
    """Logits that predict the labels (N, V), and the labels (N)."""
    tokens = torch.tensor(document["tokens"])
    logits = model(input_ids=tokens[None], use_cache=False).logits[0].float()
    at = [i for i in range(1, len(tokens)) if document["mask"][i]]
    return logits[[i - 1 for i in at]], tokens[at]


def mean_loss(model, documents):
    """Mean cross-entropy over all label tokens of all documents together; each document alone, so no padding."""
    total, n, n_correct = 0.0, 0, 0
    for document in documents:
        logits, labels = label_logits(model, document)
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


def trainable(model):
    return {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}


def _train(model, documents, batches, config):
    """Ten steps of torch.optim.AdamW; the adapter is put back afterwards."""
    before = {n: p.detach().clone() for n, p in trainable(model).items()}
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=config["learning_rate"], weight_decay=config["weight_decay"])
    out = {"losses": [], "grad_norms": [], "learning_rates": [], "n_correct": []}
    for step, batch in enumerate(batches):
        lr = config["learning_rate"] * _factor(config["schedule"], step, config["warmup_steps"], len(batches))
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss, _, n_correct = mean_loss(model, [documents[i] for i in batch])
        loss.backward()
        limit = config["max_grad_norm"] if config["max_grad_norm"] is not None else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(trainable(model).values(), limit)
        optimizer.step()
        optimizer.zero_grad()
        for key, value in zip(out, (loss.item(), norm.item(), lr, n_correct)):
            out[key].append(value)
    with torch.no_grad():
        for n, p in trainable(model).items():
            p.copy_(before[n])
    return out


def train_runs(model, documents, batches, learning_rate, clip, names=tuple(RUNS)):
    runs = []
    for name in names:
        schedule, warmup, is_clipped, decay = RUNS[name]
        max_norm = clip if is_clipped else None
        config = dict(learning_rate=learning_rate, schedule=schedule, warmup_steps=warmup, max_grad_norm=max_norm, weight_decay=decay)
        result = _train(model, documents, batches, config)
        print(f"  {name}: {result['losses'][0]:.4f} -> {result['losses'][-1]:.4f}, gradient norm {result['grad_norms'][0]:.3f}")
        runs.append({"name": name, "total_steps": len(batches), **config, "batches": batches, **result})
    return runs


@torch.no_grad()
def greedy(model, prompt):
    tokens, margin = list(prompt), float("inf")
    for _ in range(GREEDY_TOKENS):
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
        best = logits.topk(2).values
        margin = min(margin, (best[0] - best[1]).item())
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt):], margin


def greedy_prompt(models, generator, vocab):
    for _ in range(200):
        prompt = torch.randint(3, vocab - 3, (9,), generator=generator).tolist()
        outputs = [greedy(m, prompt) for m in models]
        if min(margin for _, margin in outputs) > MIN_GREEDY_MARGIN:
            return {"prompt": prompt, "base": outputs[0][0], "adapter": outputs[1][0]}
    raise RuntimeError("no prompt with clear margins")
