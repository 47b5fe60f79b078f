"""Checks and times the attention kernels of engine/kernels/built on the card at hand, beside torch's own attention.

Usage: python3 bench/gpu/kernels/attention.py [check] [time]      both when neither is named
Needs torch, cupy and numpy. Ends with a table; exits with 1 if a check failed.
"""

import re
import statistics
import sys
import traceback
from pathlib import Path

import cupy
import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BUILT = Path(__file__).resolve().parents[3] / "engine/kernels/built"
HEAD_DIMS = [64, 96, 128, 256]
BF16 = torch.bfloat16


class Kernels:
    def __init__(self):
        major, minor = torch.cuda.get_device_capability()
        self.card = {8: "sm_80", 9: "sm_90a", 12: "sm_120"}[major]
        torch.zeros(1, device="cuda")
        self.modules = {f: cupy.RawModule(path=str(BUILT / f"attention_{f}.{self.card}.cubin")) for f in ("forward", "backward")}
        self.shapes = {
            "attention_forward": self.table("forward", "attention_forward_shapes"),
            "attention_backward_kv": self.table("backward", "attention_backward_kv_shapes"),
            "attention_backward_q": self.table("backward", "attention_backward_q_shapes"),
        }
        self.functions = {}

    def table(self, module, name):
        try:
            rows = cupy.ndarray((4, 4), dtype=np.int32, memptr=self.modules[module].get_global(name)).get()
        except Exception as e:  # the table in the source's head then
            print(f"{name}: {type(e).__name__}: {e}")
            text = (BUILT.parent / f"attention_{module}.cu").read_text()
            rows = [list(map(int, line[2:].split())) for line in text.splitlines() if re.fullmatch(r"//(\s+\d+){4,}\s*", line)]
            rows = [r[:1] + r[-3:] if name.endswith("q_shapes") else r[:4] for r in rows]
        return {int(r[0]): tuple(map(int, r[1:])) for r in rows}

    def function(self, name, shared=0):
        if name not in self.functions:
            module = self.modules["forward" if name.startswith("attention_forward") else "backward"]
            f = module.get_function(name)
            if shared > 48 * 1024:
                f.max_dynamic_shared_size_bytes = shared
            self.functions[name] = f
        return self.functions[name]

    def launch(self, name, grid, threads, shared, *args):
        values = []
        for x in args:
            if isinstance(x, torch.Tensor):
                values.append(np.uint64(x.data_ptr()))
            elif isinstance(x, int):
                values.append(np.int32(x))
            else:
                values.append(np.float32(x))
        f = self.function(name, shared)
        stream = torch.cuda.current_stream().cuda_stream
        with cupy.cuda.ExternalStream(stream) if stream else cupy.cuda.Stream.null:
            f(grid, (threads,), tuple(values), shared_mem=shared)


def parts(H, K, T):
    """Parts of a group of query heads, as engine/src/cuda/ops.rs divides it."""
    group = H // K
    needed = min(group, -(-240 * torch.cuda.get_device_properties(0).multi_processor_count // (T * K)))
    return -(-group // (group // needed))


class Case:
    """Inputs and outputs of one attention over packed documents."""

    def __init__(self, kernels, lengths, H, K, C, window=0, softcap=0.0, pad=0, spread=1.0, seed=0, n_parts=None):
        g = torch.Generator(device="cuda").manual_seed(seed)
        self.k, self.lengths, self.H, self.K, self.C = kernels, lengths, H, K, C
        self.window, self.softcap, self.scale = window, softcap, C**-0.5
        self.T = T = sum(lengths)
        self.width, self.out_width = (H + 2 * K) * C, H * C
        self.qkv = self.matrix(T, self.width, pad)
        self.d_qkv = self.matrix(T, self.width, pad)
        self.out = self.matrix(T, self.out_width, 2 * pad)
        self.d_out = self.matrix(T, self.out_width, pad)
        self.qkv[:, : self.width] = torch.randn(T, self.width, device="cuda", generator=g)
        self.qkv[:, : (H + K) * C] *= spread
        self.d_out[:, : self.out_width] = torch.randn(T, self.out_width, device="cuda", generator=g)
        self.lse = torch.full((H, T), float("nan"), device="cuda")
        self.delta = torch.full((H, T), float("nan"), device="cuda")
        self.parts = parts(H, K, T) if n_parts is None else n_parts
        self.partial = torch.full((self.parts if self.parts > 1 else 0, T, 2 * K * C), float("nan"), device="cuda")
        self.tiles = {name: self.tile_list(name) for name in kernels.shapes}

    @staticmethod
    def matrix(rows, width, pad):
        return torch.full((rows, width + pad), float("nan"), device="cuda", dtype=BF16)

    def tile_list(self, name):
        n, starts = self.k.shapes[name][self.C][0], np.cumsum([0] + self.lengths)
        tiles = [(f, s, s + l, 0) for s, l in zip(starts, self.lengths) for f in range(s, s + l, n)]
        work = (lambda t: t[2] - t[0]) if name.endswith("kv") else (lambda t: t[0] - t[1])
        tiles.sort(key=work, reverse=True)
        return torch.tensor(np.array(tiles, dtype=np.int32), device="cuda")

    def forward(self):
        name = "attention_forward"
        _, threads, shared = self.k.shapes[name][self.C]
        tiles = self.tiles[name]
        self.k.launch(
            f"{name}_{self.C}", (len(tiles), self.H), threads, shared, self.qkv, self.qkv.stride(0), self.out, self.out.stride(0),
            self.lse, tiles, self.T, self.H, self.K, self.scale, float(self.softcap), self.window)

    def backward_delta(self):
        self.k.launch(
            "attention_backward_delta", ((self.T + 63) // 64, self.H), 256, 0, self.out, self.out.stride(0), self.d_out,
            self.d_out.stride(0), self.delta, self.T, self.H, self.C)

    def backward_of(self, which, heads):
        name = f"attention_backward_{which}"
        _, threads, shared = self.k.shapes[name][self.C]
        tiles = self.tiles[name]
        self.k.launch(
            f"{name}_{self.C}", (len(tiles), heads), threads, shared, self.qkv, self.qkv.stride(0), self.d_out, self.d_out.stride(0),
            self.lse, self.delta, self.d_qkv, self.d_qkv.stride(0), tiles, self.T, self.H, self.K, self.scale, float(self.softcap),
            self.window, self.partial)

    def backward_kv(self):
        self.backward_of("kv", self.K * self.parts)
        if self.parts > 1:
            n = self.T * 2 * self.K * self.C // 8
            self.k.launch(
                "attention_backward_sum", ((n + 255) // 256,), 256, 0, self.partial, self.parts, self.d_qkv, self.d_qkv.stride(0),
                self.T, self.H, self.K, self.C)

    def backward_q(self):
        self.backward_of("q", self.H)

    def backward(self):
        self.backward_delta()
        self.backward_kv()
        self.backward_q()

    def run(self):
        for x in (self.out, self.lse, self.delta, self.d_qkv, self.partial):
            x.fill_(float("nan"))
        self.forward()
        self.backward()
        torch.cuda.synchronize()

    def heads(self, x):
        """(rows, heads, C) of queries, keys and values."""
        H, K, C = self.H, self.K, self.C
        return (x[:, : H * C].unflatten(1, (H, C)), x[:, H * C : (H + K) * C].unflatten(1, (K, C)),
                x[:, (H + K) * C : self.width].unflatten(1, (K, C)))

    def results(self):
        dq, dk, dv = self.heads(self.d_qkv)
        return {"out": self.out[:, : self.out_width], "lse": self.lse, "dq": dq, "dk": dk, "dv": dv}

    def reference(self, dtype, own):
        """The same five by torch: spelled out in `dtype`, or its own attention."""
        found = {name: [] for name in ("out", "lse", "dq", "dk", "dv")}
        start = 0
        for length in self.lengths:
            rows = slice(start, start + length)
            q, k, v = (x[rows].transpose(0, 1).to(dtype).detach().requires_grad_() for x in self.heads(self.qkv))
            d_out = self.d_out[rows, : self.out_width].unflatten(1, (self.H, self.C)).transpose(0, 1).to(dtype)
            group = self.H // self.K
            kk, vv = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
            i = torch.arange(length, device="cuda")
            seen = i[None, :] <= i[:, None]
            if self.window:
                seen = seen & (i[:, None] - i[None, :] < self.window)
            if own:
                mask = None if not self.window else seen
                out = F.scaled_dot_product_attention(q[None], kk[None], vv[None], attn_mask=mask, is_causal=mask is None, scale=self.scale)[0]
                lse = torch.zeros(self.H, length, device="cuda")
            else:
                s = q @ kk.transpose(1, 2) * self.scale
                if self.softcap:
                    s = self.softcap * torch.tanh(s / self.softcap)
                s = s.masked_fill(~seen, float("-inf"))
                lse = torch.logsumexp(s, 2)
                out = torch.softmax(s, 2) @ vv
            dq, dk, dv = torch.autograd.grad(out, (q, k, v), d_out)
            found["out"].append(out.detach().transpose(0, 1).flatten(1))
            found["lse"].append(lse.detach())
            for name, x in (("dq", dq), ("dk", dk), ("dv", dv)):
                found[name].append(x.transpose(0, 1))
            start += length
        return {name: torch.cat(x, 1 if name == "lse" else 0) for name, x in found.items()}

    def flops(self):
        return 2 * 2 * self.C * self.H * sum(l * l for l in self.lengths) / 2


def relative(x, want):
    x, want = x.double(), want.double()
    return (torch.linalg.norm(x - want) / torch.linalg.norm(want).clamp(min=1e-30)).item()


def check(kernels, failures):
    mixed = [1, 77, 200, 128, 129, 333, 1, 64, 500, 2, 31]
    cases = []
    for C in HEAD_DIMS:
        cases += [
            (mixed, 4, 4, C, dict()),
            (mixed, 8, 2, C, dict(pad=64, window=100)),
            (mixed, 7, 1, C, dict(pad=8)),
            (mixed, 4, 1, C, dict(softcap=20.0, spread=2.0)),
            (mixed, 7, 1, C, dict(softcap=5.0, window=33, pad=8)),
        ]
    cases += [([3000], 8, 2, 128, dict()), ([2500], 7, 1, 64, dict(window=1024)), ([1] * 50, 4, 1, 128, dict(pad=8)), ([1100], 2, 1, 256, dict()),
              (mixed, 12, 2, 128, dict(n_parts=1)), (mixed, 12, 2, 128, dict(n_parts=4)), (mixed, 14, 2, 64, dict(n_parts=1)),
              ([2048, 2048], 14, 2, 64, dict(pad=8)), ([1000, 3, 1045], 12, 2, 128, dict()), ([2048] * 2, 8, 2, 128, dict())]
    names = ("out", "lse", "dq", "dk", "dv")
    print("relative error, ours (torch's own attention in bf16)")
    for i, (lengths, H, K, C, options) in enumerate(cases):
        title = f"C {C} heads {H}/{K} T {sum(lengths)} {options or ''}"
        try:
            case = Case(kernels, lengths, H, K, C, seed=i, **options)
            case.run()
            first = {n: x.clone() for n, x in case.results().items()}
            case.run()
            problems = []
            for n, x in case.results().items():
                bits = torch.int32 if x.dtype == torch.float32 else torch.int16
                if not torch.equal(x.contiguous().view(bits), first[n].contiguous().view(bits)):
                    problems.append(f"{n} differs between two runs")
                if not torch.isfinite(x).all():
                    problems.append(f"{n} has {(~torch.isfinite(x)).sum().item()} values that are not finite")
            for n, x, width in (("out", case.out, case.out_width), ("d_qkv", case.d_qkv, case.width)):
                if not torch.isnan(x[:, width:]).all():
                    problems.append(f"{n}: written beside the rows")
            want = case.reference(torch.float64, False)
            own = case.reference(BF16, True) if not case.softcap else None
            line = []
            ones = all(l == 1 for l in lengths)
            for n in names:
                error = relative(first[n], want[n])
                own_error = relative(own[n], want[n]) if own and n != "lse" else None
                line.append(f"{n} {error:.1e}" + (f" ({own_error:.1e})" if own_error is not None else ""))
                if ones and n in ("dq", "dk"):  # nothing but rounding
                    if first[n].abs().max().item() > 1e-3:
                        problems.append(f"{n} is not zero")
                    continue
                bound = 1e-4 if n == "lse" else 1e-2
                if own_error is not None and n != "lse" and own_error > 1e-4:
                    bound = min(bound, 1.5 * own_error)
                if not error <= bound:
                    problems.append(f"{n}: {error:.2e} is over {bound:.2e}")
            # A short document's errors must not drown in a long one's.
            start = 0
            for length in lengths:
                rows = slice(start, start + length)
                for n in ("out", "dv"):
                    error = relative(first[n][rows], want[n][rows])
                    if not error <= 2e-2:
                        problems.append(f"{n}: {error:.2e} in a document of {length} from row {start}")
                start += length
            print(f"{'FAIL' if problems else 'ok  '} {title}: {', '.join(line)}")
            for p in problems[:8]:
                print(f"       {p}")
            if problems:
                failures.append(title)
        except Exception as e:
            failures.append(title)
            print(f"FAIL {title}: {type(e).__name__}: {str(e)[:300]}")
            traceback.print_exc(limit=3)


def milliseconds(work, n=20):
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(n)]
    torch.cuda._sleep(20_000_000)  # so that launches queue up
    for a, b in events:
        a.record()
        work()
        b.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in events)


def torch_times(case, backend):
    """Milliseconds of forward and backward, and out, of torch's attention with documents as a batch."""
    B, L = len(case.lengths), case.lengths[0]
    q, k, v = (x.unflatten(0, (B, L)).transpose(1, 2).contiguous().requires_grad_() for x in (p.detach() for p in case.heads(case.qkv)))
    d_out = case.d_out[:, : case.out_width].reshape(B, L, case.H, case.C).transpose(1, 2).contiguous()

    def attend(q, k, v, **more):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=case.scale, **more)

    with sdpa_kernel(backend):
        try:
            forward = lambda: attend(q, k, v, enable_gqa=True)
            out = forward()
        except Exception:
            k, v = (x.detach().repeat_interleave(case.H // case.K, 1).requires_grad_() for x in (k, v))
            forward = lambda: attend(q, k, v)
            out = forward()

        def backward():
            q.grad = k.grad = v.grad = None
            torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True)

        return milliseconds(forward), milliseconds(backward), out.detach().transpose(1, 2).reshape(case.T, case.out_width)


def time(kernels, failures):
    table = []
    for lengths, H, K, C in [([2048] * 2, 14, 2, 64), ([2048] * 2, 12, 2, 128), ([2048] * 2, 32, 8, 128), ([2048] * 8, 32, 8, 128), ([2048] * 8, 14, 2, 64), ([2048] * 8, 12, 2, 128), ([8192] * 2, 32, 8, 128),
                             ([200] * 80, 32, 8, 128), ([2048] * 8, 8, 4, 256), ([2048] * 8, 32, 8, 96)]:
        title = f"{len(lengths)} x {lengths[0]}, {H}/{K}, C {C}"
        row = {"shape": title}
        try:
            case = Case(kernels, lengths, H, K, C)
            flops = case.flops()
            rate = lambda ms, times: f"{flops * times / ms / 1e9:.0f}"
            row["forward"] = rate(milliseconds(case.forward), 1)
            delta, kv, q = (milliseconds(w) for w in (case.backward_delta, case.backward_kv, case.backward_q))
            row["backward"] = rate(milliseconds(case.backward), 2.5)
            row["delta us"], row["kv us"], row["q us"] = (f"{x * 1e3:.0f}" for x in (delta, kv, q))
            row["fwd us"] = f"{flops / float(row['forward']) / 1e6:.0f}"
            for label, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
                try:
                    f, b, out = torch_times(case, backend)
                    row[f"{label} fwd"], row[f"{label} bwd"] = rate(f, 1), rate(b, 2.5)
                    error = relative(case.out[:, : case.out_width], out)
                    if label == "flash" and not error <= 1e-2:
                        failures.append(f"{title}: {error:.2e} from torch")
                    del out
                except Exception as e:
                    print(f"{label} at {title}: {type(e).__name__}: {str(e)[:200]}")
            del case
        except Exception as e:
            failures.append(title)
            print(f"FAIL {title}: {type(e).__name__}: {str(e)[:300]}")
        table.append(row)
    columns = ["shape", "forward", "flash fwd", "cudnn fwd", "backward", "flash bwd", "cudnn bwd", "fwd us", "delta us", "kv us", "q us"]
    print("\nTFLOP/s, causal (backward as 2.5 forwards), and microseconds; documents x tokens, heads, head dim")
    widths = [max(len(c), *(len(r.get(c, "-")) for r in table)) for c in columns]
    for r in [dict(zip(columns, columns)), *table]:
        print("  ".join(r.get(c, "-").rjust(w) for c, w in zip(columns, widths)))


def main():
    wanted = sys.argv[1:] or ["check", "time"]
    failures = []
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        kernels = Kernels()
        print(f"{torch.cuda.get_device_name()}, {kernels.card}, torch {torch.__version__}")
        if "check" in wanted:
            check(kernels, failures)
        if "time" in wanted:
            time(kernels, failures)
    except Exception:
        failures.append("setup")
        traceback.print_exc()
    print(f"{len(failures)} failed: {'; '.join(failures)}" if failures else "all checks passed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
