"""PyTorch + PEFT training steps on request: prints `{"ready": ...}`, then one JSON line for each line `step` on standard input.

The model has random weights of the given shape; every token is a label. SDPA attention, torch.optim.AdamW. Modes: eager; compile
(torch.compile); packed (the batch's documents end to end in one row, positions restarting with each).
"""

import argparse
import json
import sys
import time

from shapes import SHAPES
from torch_on import torch_on
from usage import cpu_s, peak_mib


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], required=True)
    parser.add_argument("--mode", choices=["eager", "compile", "packed"], default="eager")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--seq", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch, transformers = torch_on(args.threads)
    import peft

    hidden, layers, heads, kv_heads, feed_forward, vocab = SHAPES[args.shape]
    config = transformers.LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=feed_forward, vocab_size=vocab, tie_word_embeddings=True, max_position_embeddings=8192,
    )
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    lora = peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    # Adapter in the base's dtype: the faster choice for PEFT.
    model = peft.get_peft_model(model, lora, autocast_adapter_dtype=False)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)
    ids = torch.randint(1, vocab, (args.batch, args.seq))
    inputs = {"input_ids": ids, "labels": ids}
    if args.mode == "packed":
        positions = torch.arange(args.seq).repeat(args.batch)
        inputs = {"input_ids": ids.reshape(1, -1), "labels": ids.reshape(1, -1), "position_ids": positions[None]}
    forward = torch.compile(model) if args.mode == "compile" else model

    def step():
        loss = forward(**inputs, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    step()
    print(json.dumps({"ready": f"torch {torch.__version__}, peft {peft.__version__}"}), flush=True)
    for line in sys.stdin:
        if line.strip() != "step":
            break
        wall, cpu = time.perf_counter(), cpu_s()
        loss = step()
        out = {"wall_s": time.perf_counter() - wall, "cpu_s": cpu_s() - cpu, "loss": loss, "peak_mib": peak_mib()}
        print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main()
