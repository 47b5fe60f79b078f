"""Greedy decoding by peers with a model of random weights: one JSON line for each peer and batch.

    python decode.py --peer transformers+compile,transformers+graph,vllm --model 8b --batch 1,64

Each peer and batch is a process of its own. transformers: a static cache, the step captured in a CUDA graph, with or without torch.compile before.
"""

import argparse
import gc
import json
import os
import statistics
import time

import cases

PEERS = ["transformers+compile", "transformers+graph", "transformers+eager", "vllm"]


def measure(case):
    name, *extras = case["peer"].split("+")
    return decode_vllm(case) if name == "vllm" else decode_transformers(case, extras)


def decode_transformers(case, extras):
    import torch
    import transformers

    from shapes import random_model, vocabulary

    transformers.logging.set_verbosity_error()
    cuda, device, batch, prompt, new = case["device"] == "cuda", case["device"], case["batch"], case["prompt"], case["new"]
    sync = torch.cuda.synchronize if cuda else lambda: None
    began = time.perf_counter()
    model = random_model(case["model"], device).eval()
    length = prompt + new
    torch.manual_seed(case["seed"])
    prompts = torch.randint(8, vocabulary(case["model"]), (batch, prompt), device=device)
    cache = transformers.StaticCache(config=model.config, max_cache_len=length)
    token = torch.zeros((batch, 1), dtype=torch.long, device=device)
    position = torch.zeros((1, 1), dtype=torch.long, device=device)
    places = torch.arange(length, device=device)

    def forward(token, position):
        # What a step attends to is what the cache holds by then.
        mask = (places <= position)[None, None]
        logits = model(input_ids=token, position_ids=position, attention_mask=mask, past_key_values=cache, use_cache=True).logits
        return logits[:, -1].argmax(-1, keepdim=True)

    if "compile" in extras:
        forward = torch.compile(forward, fullgraph=True, dynamic=False)

    def prefill():
        cache.reset()
        causal = (places[None] <= places[:prompt, None])[None, None]
        positions = places[None, :prompt]
        out = model(input_ids=prompts, position_ids=positions, attention_mask=causal, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token.copy_(out.logits[:, -1].argmax(-1, keepdim=True))
        position.fill_(prompt)

    def step():
        token.copy_(forward(token, position))
        position.add_(1)

    rates, prefills = [], []
    with torch.inference_mode() if "compile" not in extras else torch.no_grad():
        prefill()
        for _ in range(3):
            step()
        sync()
        replay = step
        if cuda and "eager" not in extras:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                step()
            torch.cuda.current_stream().wait_stream(side)
            sync()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            replay = graph.replay
        setup = time.perf_counter() - began
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(1 + case["rounds"]):
            sync()
            start = time.perf_counter()
            prefill()
            sync()
            middle = time.perf_counter()
            for _ in range(new - 1):
                replay()
            sync()
            prefills.append(batch * prompt / (middle - start))
            rates.append(batch * (new - 1) / (time.perf_counter() - middle))
    if int(position) != prompt + new - 1:
        raise RuntimeError(f"position {int(position)}")
    out = {"tokens_per_s": round(statistics.median(rates[1:]), 1), "rounds_tokens_per_s": [round(rate, 1) for rate in rates[1:]],
           "prefill_tokens_per_s": round(statistics.median(prefills[1:]), 1), "setup_s": round(setup, 2), "last_tokens": token[:4, 0].tolist(),
           "versions": {"torch": torch.__version__, "transformers": transformers.__version__}}
    if cuda:
        out |= {"device": torch.cuda.get_device_name(), "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / (1 << 30), 2)}
    return out


def decode_vllm(case):
    try:
        import vllm
    except ImportError as error:
        return {"error": f"not run: {error}"}
    import random

    import torch

    from shapes import checkpoint, vocabulary

    folder = checkpoint(case["model"], case["device"])
    gc.collect()
    torch.cuda.empty_cache()
    engine = vllm.LLM(model=folder, dtype="bfloat16", skip_tokenizer_init=True, max_model_len=case["prompt"] + case["new"], max_num_seqs=case["batch"],
                      enable_prefix_caching=False, gpu_memory_utilization=0.9)
    draw = random.Random(case["seed"])
    numbers = range(8, vocabulary(case["model"]))
    prompts = [{"prompt_token_ids": draw.choices(numbers, k=case["prompt"])} for _ in range(case["batch"])]

    def seconds(new):
        how = vllm.SamplingParams(temperature=0.0, max_tokens=new, min_tokens=new, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        engine.generate(prompts, how, use_tqdm=False)
        return time.perf_counter() - start

    seconds(case["new"])
    # Prefill, measured by itself, does not count.
    rates = [case["batch"] * (case["new"] - 1) / (seconds(case["new"]) - seconds(1)) for _ in range(case["rounds"])]
    return {"tokens_per_s": round(statistics.median(rates), 1), "rounds_tokens_per_s": [round(rate, 1) for rate in rates],
            "device": torch.cuda.get_device_name(), "versions": {"torch": torch.__version__, "vllm": vllm.__version__}}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", default="transformers+compile,transformers+graph,vllm", help=f"comma-separated: {', '.join(PEERS)}")
    parser.add_argument("--model", default="8b", help="comma-separated: 0.5b, 1.5b, 8b, tiny, tiny-llama")
    parser.add_argument("--batch", default="1,64", help="comma-separated")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=int, default=150, help="seconds for a case")
    parser.add_argument("--log", help="file for what the peers print")
    parser.add_argument("--cases", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cases:
        return cases.serve(json.loads(args.cases), measure)
    shared = {name: getattr(args, name) for name in ("prompt", "new", "rounds", "seed", "device")}
    groups = [
        [{"peer": peer, "model": model, "batch": int(batch), **shared}]
        for model in args.model.split(",")
        for peer in args.peer.split(",")
        for batch in args.batch.split(",")
    ]
    cases.run_all(os.path.abspath(__file__), groups, args.limit, args.log)


if __name__ == "__main__":
    main()
