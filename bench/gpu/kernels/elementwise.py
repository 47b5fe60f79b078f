"""Checks the kernels that are not products or attention against f64, and measures their bandwidth.

Needs a GPU, torch, cupy and the cubins that engine/kernels/build makes. Every case: fresh random inputs, outputs poisoned before,
padding that has to stay as it was, two runs with the same bits. GB/s count each input and each output once, over inputs
that do not fit the cache; "of copy" is that over a device copy in the same run.

Usage: python3 bench/gpu/kernels/elementwise.py [WORD …]     only cases with a WORD in their name
"""

import math
import os
import statistics
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

START = time.time()

import cupy
import numpy as np
import torch

BUILT = Path(__file__).resolve().parents[3] / "engine/kernels/built"
DEVICE = torch.device("cuda")
BF16, F32, F64, I32 = torch.bfloat16, torch.float32, torch.float64, torch.int32
GENERATOR = torch.Generator(DEVICE)
GENERATOR.seed()
CARD = cupy.cuda.Device()
# What a block may have beside its fixed part.
MAX_SHARED = CARD.attributes["MaxSharedMemoryPerBlockOptin"] - 1024
BYTES_OF_SETS = 256 << 20
# Graphs are recorded on it.
SIDE = torch.cuda.Stream()
STREAMS = {0: cupy.cuda.Stream.null, SIDE.cuda_stream: cupy.cuda.ExternalStream(SIDE.cuda_stream)}

FILES = {
    "norm": "norm_forward norm_backward norm_backward_rows norm_factors norm_add norm_backward_in_place round_rows",
    "rope": "rope_rotate rope_angles qk_norm_forward qk_norm_backward",
    "glu": "glu_forward glu_backward",
    "rows": "embed fill_zero copy_columns add_bf16_to_stream",
    "cross_entropy": "cross_entropy_f32 cross_entropy_bf16 cross_entropy_sums",
    "adamw": "adamw_squares adamw_norm adamw_update adamw_publish",
    "quant": "dequantize_nf4 dequantize_int8 dequantize_fp8 dequantize_q8_0",
}
KERNELS = {}


def load_kernels():
    sm = {8: "80", 9: "90a", 12: "120"}[torch.cuda.get_device_capability()[0]]
    for file, names in FILES.items():
        module = cupy.RawModule(path=str(BUILT / f"{file}.sm_{sm}.cubin"))
        for name in names.split():
            KERNELS[name] = module.get_function(name)
            if name in ("cross_entropy_f32", "cross_entropy_bf16"):
                KERNELS[name].max_dynamic_shared_size_bytes = MAX_SHARED


def run(name, grid, threads, *args, shared=0):
    """Launches on torch's current stream."""

    def argument(x):
        if x is None:
            return np.uint64(0)
        if isinstance(x, torch.Tensor):
            return np.uint64(x.data_ptr())
        if isinstance(x, (bool, int)):
            return np.int32(x)
        return np.float32(x) if isinstance(x, float) else x

    grid = grid if isinstance(grid, tuple) else (grid,)
    with STREAMS[torch.cuda.current_stream().cuda_stream]:
        KERNELS[name](grid, (threads,), tuple(map(argument, args)), shared_mem=shared)


# Launch shapes, as the engine has them.


def up(x, n):
    return -(-x // n) * n


def norm_threads(D):
    return up(-(-D // (8 if D <= 8192 else 16)), 32)


def row_threads(n_columns, most=256):
    return min(most, up(-(-n_columns // 8), 32))


# Inputs and poisoned outputs.


def normal(*shape, dtype=F32, scale=1.0):
    return (torch.randn(shape, generator=GENERATOR, device=DEVICE) * scale).to(dtype)


def integers(low, high, *shape, dtype=I32):
    return torch.randint(low, high, shape, generator=GENERATOR, device=DEVICE, dtype=dtype)


def poisoned(*shape, dtype=F32):
    return torch.full(shape, float("nan") if dtype.is_floating_point else -77, dtype=dtype, device=DEVICE)


def pitched(x, pad=8):
    """x with `pad` columns or a few more beside it, to a pitch of a multiple of 8."""
    full = poisoned(x.shape[0], up(x.shape[1] + pad, 8), dtype=x.dtype)
    full[:, : x.shape[1]] = x
    return full


def bits(x):
    return x.contiguous().view({1: torch.uint8, 2: torch.int16, 4: I32, 8: torch.int64}[x.element_size()])


# Comparison.


class Wrong(Exception):
    pass


def compare(what, out, ref, floor=None):
    """(‖out − ref‖/‖ref‖, largest error in units of what is allowed): a rounding of each number and 1e-5 of their size."""
    unit = 1.01 * 2.0**-8 if out.dtype == BF16 else 1e-6
    out, ref = out.double(), ref.double()
    if not bool(torch.isfinite(out).all()):
        raise Wrong(f"{what}: {int((~torch.isfinite(out)).sum())} of {out.numel()} not finite")
    floor = floor if floor is not None else 1e-5 * float(ref.square().mean().sqrt())
    error = (out - ref).abs()
    worst = float((error / (unit * ref.abs() + floor + 1e-300)).max())
    relative = float(error.norm() / (ref.norm() + 1e-300))
    if not worst <= 1.0:
        raise Wrong(f"{what}: {worst:.3g} times the allowed error, relative {relative:.3g}")
    return relative, worst


def same_bits(what, out, ref):
    differ = int((bits(out) != bits(ref)).sum())
    if differ:
        raise Wrong(f"{what}: {differ} of {out.numel()} differ")
    return 0.0, 0.0


# Cases.

RESULTS, FAILURES, COPY = [], [], [1.0]


def tensors(t):
    return {name: x for name, x in vars(t).items() if isinstance(x, torch.Tensor) and name != "pointers"}


def copied(t, prepare):
    t = SimpleNamespace(**{name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in vars(t).items()})
    if prepare:
        prepare(t)
    return t


def seconds(launch, sets):
    """Of one launch: the median of replays of a graph over all sets."""
    n = max(len(sets), 4)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.stream(SIDE):
        graph.capture_begin()
        for i in range(n):
            launch(sets[i % len(sets)])
        graph.capture_end()
    times = []
    for i in range(9):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        graph.replay()
        b.record()
        b.synchronize()
        if i >= 2:
            times.append(a.elapsed_time(b) / 1e3 / n)
    return statistics.median(times)


def case(name, shape, make, launch, check, n_bytes=None, pads=(), variants=(), prepare=None):
    """`launch(t)` changes what `make()` returns; `check(before, after)` compares. `pads`: (tensor, columns that are used).
    `variants`: (name, launch) that have to pass the same check and are timed too. `prepare` follows every copy of what `make` gave."""
    if len(sys.argv) > 1 and not any(word in name for word in sys.argv[1:]):
        return
    try:
        before = make()
        for variant, launch in (("", launch), *variants):
            label = f"{name} {variant}".strip()
            runs = [copied(before, prepare), copied(before, prepare)]
            for t in runs:
                launch(t)
            torch.cuda.synchronize()
            relative, worst = check(before, runs[0])
            a, b = map(tensors, runs)
            for key in a:
                if not torch.equal(bits(a[key]), bits(b[key])):
                    raise Wrong(f"{key}: two runs, different bits")
            for key, used in pads:
                if not torch.equal(bits(a[key][:, used:]), bits(getattr(before, key)[:, used:])):
                    raise Wrong(f"{key}: written beyond column {used}")
            took = None
            if n_bytes:
                sets = runs + [copied(before, prepare) for _ in range(min(14, BYTES_OF_SETS // n_bytes - 1))]
                took = seconds(launch, sets)
                del sets
            RESULTS.append((label, shape, relative, worst, took, n_bytes))
            del runs, a, b
    except Exception as error:
        FAILURES.append(f"{name} {shape}: {type(error).__name__}: {error}")
        if not isinstance(error, Wrong):
            traceback.print_exc()
        try:
            torch.cuda.synchronize()
        except Exception:  # An error of the card: nothing runs after it.
            report("the card is lost after this failure")
    if torch.cuda.memory_reserved() > 30 << 30:
        torch.cuda.empty_cache()


def worse(*pairs):
    return max(p[0] for p in pairs), max(p[1] for p in pairs)


def report(lost=None):
    lines = [f"{lost or torch.cuda.get_device_name()}; device copy {COPY[0] / 1e9:.0f} GB/s", ""]
    lines += ["| kernel | shape | relative error | of allowed | µs | GB/s | of copy |", "|---|---|---|---|---|---|---|"]
    untimed = {}
    for name, shape, relative, worst, took, n_bytes in RESULTS:
        if took:
            speed = f"{took * 1e6:.1f} | {n_bytes / took / 1e9:.0f} | {n_bytes / took / COPY[0]:.2f}"
            lines.append(f"| {name} | {shape} | {relative:.1e} | {worst:.2f} | {speed} |")
        else:
            untimed.setdefault(name, []).append(relative)
    lines += ["", "Not timed: " + ", ".join(f"{name} ×{len(all)} {max(all):.1e}" for name, all in untimed.items())]
    lines += [f"FAILED {failure}" for failure in FAILURES]
    lines += [f"{len(RESULTS)} passed, {len(FAILURES)} failed, {time.time() - START:.0f} s"]
    print("\n".join(lines))
    if "OUT" in os.environ:
        Path(os.environ["OUT"], "elementwise.md").write_text("\n".join(lines) + "\n")
    if lost:
        sys.exit(2)


def measure_copy():
    a = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device=DEVICE)
    t = SimpleNamespace(a=a, b=torch.empty_like(a))
    COPY[0] = 2 * (1 << 30) / seconds(lambda t: t.b.copy_(t.a), [t])


# Norms.

EPS = 1e-6


def rstd_of(x):
    return 1.0 / (x.double().square().mean(-1, keepdim=True) + EPS).sqrt()


def norm_gradient(d, x, w, r):
    g = d.double() * w.double()
    return r * g - x.double() * r**3 * (g * x.double()).mean(-1, keepdim=True)


def norms(label, T, D, timed):
    threads, shape = norm_threads(D), f"{label} T={T} D={D}"
    size = lambda n: n * T * D if timed else None
    others = [norm_threads(D) // 2] if timed and D % 16 == 0 and norm_threads(D) >= 64 else []

    def with_threads(launch):
        return dict(launch=lambda t: launch(t, threads), variants=[(f"{n} threads", lambda t, n=n: launch(t, n)) for n in others])

    weight = lambda: 1.0 + normal(D, scale=0.2)
    stream = lambda rows=T: normal(rows, D) * torch.rand(rows, 1, device=DEVICE).mul(3).exp()

    def make():
        return SimpleNamespace(x=stream(), w=weight(), out=poisoned(T, D + 8, dtype=BF16), rstd=poisoned(T))

    def launch(t, threads):
        run("norm_forward", T, threads, t.x, None, t.w, EPS, t.out, D + 8, t.rstd, T, D)

    def check(b, a):
        r = rstd_of(b.x)
        return worse(compare("rstd", a.rstd, r[:, 0]), compare("out", a.out[:, :D], b.x.double() * r * b.w.double()))

    case("norm_forward", shape, make, check=check, n_bytes=size(6), pads=[("out", D)], **with_threads(launch))

    def make():
        rows = torch.randperm(2 * T, device=DEVICE)[:T].sort().values.to(I32)
        return SimpleNamespace(x=stream(2 * T), w=weight(), rows=rows, out=poisoned(T, D, dtype=BF16), rstd=poisoned(T))

    def launch(t):
        run("norm_forward", T, threads, t.x, t.rows, t.w, EPS, t.out, D, t.rstd, T, D)

    def check(b, a):
        x = b.x[b.rows.long()]
        r = rstd_of(x)
        return worse(compare("rstd", a.rstd, r[:, 0]), compare("out", a.out, x.double() * r * b.w.double()))

    case("norm_forward, gathered", shape, make, launch, check)

    def launch(t):
        run("norm_forward", T, threads, t.x, t.rows, None, EPS, t.out, D, None, T, D)

    check = lambda b, a: same_bits("out", a.out, b.x[b.rows.long()].to(BF16))
    case("norm_forward, no weight", shape, make, launch, check)

    def make():
        x = stream()
        return SimpleNamespace(
            d=pitched(normal(T, D, dtype=BF16)), x=x, w=weight(), rstd=rstd_of(x)[:, 0].float(), stream=normal(T, D),
            rounded=poisoned(T, D + 16, dtype=BF16),
        )

    def launch(t, threads):
        run("norm_backward", T, threads, t.d, D + 8, t.x, t.w, t.rstd, t.stream, t.rounded, D + 16, T, D)

    def check(b, a):
        ref = b.stream.double() + norm_gradient(b.d[:, :D], b.x, b.w, b.rstd.double()[:, None])
        return worse(compare("stream", a.stream, ref), compare("rounded", a.rounded[:, :D], ref))

    case("norm_backward", shape, make, check=check, n_bytes=size(16), pads=[("rounded", D)], **with_threads(launch))

    def launch(t):
        run("norm_backward", T, threads, t.d, D + 8, None, None, None, t.stream, t.rounded, D + 16, T, D)

    def check(b, a):
        ref = b.stream + b.d[:, :D].float()
        return worse(same_bits("stream", a.stream, ref), same_bits("rounded", a.rounded[:, :D], ref.to(BF16)))

    case("norm_backward, no weight", shape, make, launch, check, pads=[("rounded", D)])

    def make():
        rows = torch.randperm(2 * T, device=DEVICE)[:T].sort().values.to(I32)
        x = stream(2 * T)
        rstd = rstd_of(x[rows.long()])[:, 0].float()
        return SimpleNamespace(d=normal(T, D), x=x, w=weight(), rows=rows, rstd=rstd, stream=poisoned(2 * T, D))

    def launch(t):
        run("norm_backward_rows", T, threads, t.d, t.x, t.rows, t.w, t.rstd, t.stream, T, D)

    def check(b, a):
        rows = b.rows.long()
        if int(a.stream.isnan().sum()) != T * D:
            raise Wrong("stream: other rows were written")
        return compare("stream", a.stream[rows], norm_gradient(b.d, b.x[rows], b.w, b.rstd.double()[:, None]))

    case("norm_backward_rows", shape, make, launch, check, n_bytes=size(12))

    def make():
        y = normal(T, D, dtype=BF16)
        return SimpleNamespace(
            y=pitched(y), w=weight(), rstd=rstd_of(y)[:, 0].float(), found=poisoned(T), stream=normal(T, D),
            d=pitched(normal(T, D, dtype=BF16), 16),
        )

    launch = lambda t: run("norm_factors", T, threads, t.y, D + 8, EPS, t.found, T, D)
    case("norm_factors", shape, make, launch, lambda b, a: compare("rstd", a.found, rstd_of(b.y[:, :D])[:, 0]), n_bytes=size(2))

    launch = lambda t: run("norm_add", T, threads, t.y, D + 8, t.w, t.rstd, t.stream, T, D)

    def check(b, a):
        return compare("stream", a.stream, b.stream.double() + b.y[:, :D].double() * b.rstd.double()[:, None] * b.w.double())

    case("norm_add", shape, make, launch, check, n_bytes=size(10))

    def launch(t, threads):
        run("norm_backward_in_place", T, threads, t.y, D + 8, t.w, t.rstd, t.d, D + 16, T, D)

    def check(b, a):
        return compare("d", a.d[:, :D], norm_gradient(b.d[:, :D], b.y[:, :D], b.w, b.rstd.double()[:, None]))

    case("norm_backward_in_place", shape, make, check=check, n_bytes=size(6), pads=[("d", D)], **with_threads(launch))

    make = lambda: SimpleNamespace(x=stream(), out=poisoned(T, D + 8, dtype=BF16))
    launch = lambda t: run("round_rows", T, row_threads(D), t.x, t.out, D + 8, T, D)
    check = lambda b, a: same_bits("out", a.out[:, :D], b.x.to(BF16))
    case("round_rows", shape, make, launch, check, n_bytes=size(6), pads=[("out", D)])


# Rotary positions and the norms of queries and keys.


def angles_of(T, half):
    angle = (torch.arange(T, device=DEVICE) % 3000).float()[:, None] * (10000.0 ** -(torch.arange(half, device=DEVICE) / half))
    return angle.cos(), angle.sin()


def ropes(label, T, H, K, C, rotary, interleaved, timed):
    n, width, half = H + K, (H + 2 * K) * C, rotary // 2
    shape = f"{label} T={T} heads={n}·{C}, {rotary} turned" + (", neighbours" if interleaved else "")
    whole = C % 8 == 0 and (rotary if interleaved else half) % 8 == 0
    per_head = (rotary // 8 if interleaved else half // 8) if whole else half
    threads = min(256, up(n * per_head, 32))

    for direction in (1.0, -1.0):

        def make():
            cos, sin = angles_of(T, half)
            return SimpleNamespace(qkv=pitched(normal(T, width, dtype=BF16)), cos=cos, sin=sin)

        def launch(t, threads=threads):
            run("rope_rotate", T, threads, t.qkv, t.qkv.shape[1], t.cos, t.sin, T, n, C, rotary, interleaved, direction)

        def check(b, a):
            x = b.qkv[:, : n * C].double().view(T, n, C)
            ref = x.clone()
            cos, sin = b.cos.double()[:, None], b.sin.double()[:, None] * direction
            first, second = (slice(0, rotary, 2), slice(1, rotary, 2)) if interleaved else (slice(0, half), slice(half, rotary))
            p, q = x[..., first], x[..., second]
            ref[..., first], ref[..., second] = p * cos - q * sin, q * cos + p * sin
            return compare("qkv", a.qkv[:, : n * C], ref.reshape(T, n * C))

        n_bytes = 2 * 2 * T * n * rotary + 2 * 4 * T * half if timed and direction > 0 else None
        variants = [(f"{v} threads", lambda t, v=v: launch(t, v)) for v in (64, 128) if v < threads] if n_bytes else []
        case("rope_rotate" + (" back" if direction < 0 else ""), shape, make, launch, check, n_bytes, [("qkv", n * C)], variants)


def rope_angles(T, half):
    def make():
        inv_freq = 1.0 / 500000.0 ** (torch.arange(half, device=DEVICE, dtype=F32) / half)
        return SimpleNamespace(at=integers(0, 131072, T), f=inv_freq, cos=poisoned(T, half), sin=poisoned(T, half))

    launch = lambda t: run("rope_angles", 1024, 256, t.at, t.f, 1.25, t.cos, t.sin, T, half)

    def check(b, a):
        angle = (b.at.float()[:, None] * b.f).double()
        return worse(*[compare(k, getattr(a, k), f(angle).float().double() * 1.25, floor=2e-7) for k, f in
                       (("cos", torch.cos), ("sin", torch.sin))])

    case("rope_angles", f"T={T} {half} pairs", make, launch, check, n_bytes=8 * T * half)


def qk_norms(label, T, H, K, C, whole_row, timed):
    n, width = (H + K) * C, (H + 2 * K) * C
    q_span, k_span = (H * C, K * C) if whole_row else (C, C)
    groups = [(i, q_span, "q") for i in range(0, H * C, q_span)] + [(i, k_span, "k") for i in range(H * C, n, k_span)]
    team = min(32, 1 << max(0, math.ceil(math.log2(max(q_span // 8, 1)))))
    grid = -(-T * len(groups) * team // 256)
    shape = f"{label} T={T} heads={H}+{K}·{C}" + (", whole rows" if whole_row else "")

    def make():
        raw = normal(T, n, dtype=BF16)
        r = torch.cat([rstd_of(raw[:, i : i + s]) for i, s, _ in groups], 1).float()
        return SimpleNamespace(
            qkv=pitched(normal(T, width, dtype=BF16)), q=1 + normal(q_span, scale=0.2), k=1 + normal(k_span, scale=0.2),
            raw=poisoned(T, up(n, 8) + 8, dtype=BF16), rstd=poisoned(T, len(groups)), known=pitched(raw), known_rstd=r,
        )

    def launch(t):
        run("qk_norm_forward", grid, 256, t.qkv, t.qkv.shape[1], t.q, q_span, t.k, k_span, EPS, t.raw, t.raw.shape[1], t.rstd,
            T, H * C, K * C, team)

    def check(b, a):
        x = b.qkv[:, :n]
        parts = [(x[:, i : i + s].double(), getattr(b, w).double()) for i, s, w in groups]
        ref = torch.cat([v * rstd_of(v) * w for v, w in parts], 1)
        return worse(same_bits("raw", a.raw[:, :n], x), compare("qkv", a.qkv[:, :n], ref),
                     compare("rstd", a.rstd, torch.cat([rstd_of(v) for v, _ in parts], 1)))

    case("qk_norm_forward", shape, make, launch, check, 6 * T * n if timed else None, [("qkv", n), ("raw", n)])

    def launch(t):
        run("qk_norm_backward", grid, 256, t.qkv, t.qkv.shape[1], t.q, q_span, t.k, k_span, t.known, t.known.shape[1],
            t.known_rstd, T, H * C, K * C, team)

    def check(b, a):
        ref = torch.cat([norm_gradient(b.qkv[:, i : i + s], b.known[:, i : i + s], getattr(b, w), b.known_rstd.double()[:, j, None])
                         for j, (i, s, w) in enumerate(groups)], 1)
        return compare("d_qkv", a.qkv[:, :n], ref)

    case("qk_norm_backward", shape, make, launch, check, 6 * T * n if timed else None, [("qkv", n)])


# Gated units.


def glus(label, T, F, act, timed):
    def make():
        return SimpleNamespace(gate_up=pitched(normal(T, 2 * F, dtype=BF16, scale=2.0)), d=pitched(normal(T, F, dtype=BF16)),
                               inner=poisoned(T, up(F + 1, 8), dtype=BF16))

    def reference(gate_up, d=None):
        g, u = gate_up[:, :F].double().requires_grad_(), gate_up[:, F : 2 * F].double().requires_grad_()
        y = (torch.nn.functional.silu(g) if act == 0 else torch.nn.functional.gelu(g, approximate="tanh")) * u
        if d is not None:
            y.backward(d.double())
        return y.detach(), g.grad, u.grad

    shape, parts = f"{label} T={T} F={F} {('silu', 'gelu')[act]}", F // 8 if F % 8 == 0 else F

    def forward(t, threads=256):
        grid = (T, max(1, -(-parts // threads)))
        run("glu_forward", grid, threads, t.gate_up, t.gate_up.shape[1], t.inner, t.inner.shape[1], T, F, act)

    def check(b, a):
        return compare("inner", a.inner[:, :F], reference(b.gate_up)[0])

    variants = lambda launch: [(f"{n} threads", lambda t: launch(t, n)) for n in (128,)] if timed else []
    case("glu_forward", shape, make, forward, check, 6 * T * F if timed else None, [("inner", F)], variants(forward))

    def backward(t, threads=256, inner=True):
        grid = (T, max(1, -(-parts // threads)))
        run("glu_backward", grid, threads, t.d, t.d.shape[1], t.gate_up, t.gate_up.shape[1], t.inner if inner else None,
            t.inner.shape[1], T, F, act)

    def check(b, a, inner=True):
        y, g, u = reference(b.gate_up, b.d[:, :F])
        found = [compare("gate", a.gate_up[:, :F], g), compare("up", a.gate_up[:, F : 2 * F], u)]
        return worse(*found, compare("inner", a.inner[:, :F], y)) if inner else worse(*found)

    pads = [("gate_up", 2 * F), ("inner", F)]
    case("glu_backward", shape, make, backward, check, 12 * T * F if timed else None, pads, variants(backward))
    case("glu_backward, no product", shape, make, lambda t: backward(t, inner=False), lambda b, a: check(b, a, False),
         pads=[("gate_up", 2 * F), ("inner", 0)])


# Rows.


def rows(label, T, D, V, timed):
    shape = f"{label} T={T} D={D}"
    threads = row_threads(D)
    make = lambda: SimpleNamespace(tokens=integers(0, V, T), table=pitched(normal(V, D, dtype=BF16)), stream=poisoned(T, D))
    launch = lambda t: run("embed", T, threads, t.tokens, t.table, t.table.shape[1], 1.7, t.stream, T, D)

    def check(b, a):
        scale = torch.tensor(1.7, dtype=F32, device=DEVICE)
        return same_bits("stream", a.stream, b.table[b.tokens.long(), :D].float() * scale)

    case("embed", shape, make, launch, check, 6 * T * D if timed else None)

    make = lambda: SimpleNamespace(d=pitched(normal(T, D, dtype=BF16)), stream=normal(T, D))
    launch = lambda t: run("add_bf16_to_stream", T, threads, t.d, t.d.shape[1], t.stream, T, D)
    check = lambda b, a: same_bits("stream", a.stream, b.stream + b.d[:, :D].float())
    case("add_bf16_to_stream", shape, make, launch, check, 10 * T * D if timed else None)


def copies():
    for n_rows, n_columns, timed in ((4096, 4096, True), (4096, 64, True), (1000, 100, False), (3, 7, False)):

        def make():
            b = poisoned(n_rows, up(n_columns, 8) + 24, dtype=BF16)
            return SimpleNamespace(a=pitched(normal(n_rows, n_columns, dtype=BF16)), b=b)

        def launch(t):
            n = n_rows * (-(-n_columns // 8))
            run("copy_columns", min(2048, -(-n // 256)), 256, t.a, t.a.shape[1], t.b, t.b.shape[1], n_rows, n_columns)

        check = lambda b, a: same_bits("b", a.b[:, :n_columns], b.a[:, :n_columns])
        n_bytes = 4 * n_rows * n_columns if timed else None
        case("copy_columns", f"{n_rows}×{n_columns}", make, launch, check, n_bytes, [("b", n_columns)])

    n = (64 << 20) + 48
    make = lambda: SimpleNamespace(p=poisoned(1, n // 4 + 8))
    launch = lambda t: run("fill_zero", 1056, 512, t.p, np.uint64(n // 16))
    check = lambda b, a: same_bits("p", a.p[:, : n // 4], torch.zeros(1, n // 4, device=DEVICE))
    case("fill_zero", f"{n} bytes", make, launch, check, n, [("p", n // 4)])


# Cross entropy.


def cross_entropies(label, n_rows, V, dtype, cap, timed, in_place=False, scores_only=False):
    name = f"cross_entropy_{'bf16' if dtype == BF16 else 'f32'}" + (", in place" if in_place else "") + (", scores" if scores_only else "")
    ld, ld_d, scale = up(V, 8) + 16, up(V, 8) + (16 if in_place else 8), 1.0 / 700
    size = 2 if dtype == BF16 else 4

    def make():
        z = normal(n_rows, V) * (20.0 if cap else 2.0)
        z[0] *= 30.0
        if n_rows > 6 and not cap:
            z[5] = -z[5].abs() - 200.0
        labels = integers(0, V, n_rows)
        labels[::2] = z[::2].to(dtype).float().argmax(-1).to(I32)
        labels[min(3, n_rows - 1)] = V - 1
        if n_rows > 6:
            z[6, labels[6].long()] += 40.0
            labels[4] = -1
        full = poisoned(n_rows, ld, dtype=dtype)
        full[:, :V] = z
        d = torch.empty(0, device=DEVICE) if in_place or scores_only else poisoned(n_rows, ld_d, dtype=BF16)
        return SimpleNamespace(z=full, labels=labels, logprobs=poisoned(n_rows), correct=poisoned(n_rows, dtype=I32), d=d)

    def launch(t, threads=1024, shared=MAX_SHARED // 16 * 16):
        d = None if scores_only else t.z if in_place else t.d
        run(name.split(",")[0], n_rows, threads, t.z, ld, t.labels, cap, scale, t.logprobs, t.correct, d, ld_d, n_rows, V, shared=shared)

    def check(b, a):
        found, step = [], 256
        gradient = a.z if in_place else a.d
        for i in range(0, n_rows, step):
            z, labels = b.z[i : i + step, :V].double(), b.labels[i : i + step].long()
            z.requires_grad_()
            capped = cap * torch.tanh(z / cap) if cap else z
            counts = labels >= 0
            at = labels.clamp(min=0)[:, None]
            logprobs = capped.log_softmax(-1).gather(1, at)[:, 0] * counts
            right = (z.gather(1, at)[:, 0] == z.max(-1).values) & counts
            found.append(compare("logprobs", a.logprobs[i : i + step], logprobs.detach(), floor=3e-5))
            wrong = int((a.correct[i : i + step] != right.int()).sum())
            # Capped numbers can be equal that were not.
            if wrong > (len(labels) // 50 if cap else 0):
                raise Wrong(f"correct: {wrong} of {len(labels)} differ")
            if not scores_only:
                (-scale * logprobs.sum()).backward()
                d, ref = gradient[i : i + step, :V], z.grad
                found.append(compare("d_logits", d, ref, floor=(1e-5 if cap else 1e-6) * scale))
                others = torch.ones_like(ref, dtype=torch.bool).scatter_(1, at, False)
                relative = float((d.double() - ref)[others].norm() / ref[others].norm())
                if not relative < 3e-3:
                    raise Wrong(f"d_logits but the labels': relative error {relative:.3g}")
                if bool((gradient[i : i + step, V:ld_d] != 0).any()):
                    raise Wrong("d_logits: padding is not 0")
            del z
        return worse(*found)

    n_bytes = n_rows * V * (size + (0 if scores_only else 2)) if timed else None
    variants = [(f"{threads} threads, {shared} shared", lambda t, threads=threads, shared=shared: launch(t, threads, shared))
                for threads, shared in ((1024, 0), (512, 0), (512, (MAX_SHARED + 1024) // 2 // 1024 * 1024 - 2048))] if timed else []
    shape = f"{label} {n_rows}×{V}" + (f" cap {cap}" if cap else "")
    case(name, shape, make, launch, check, n_bytes, variants=variants)


def cross_entropy_sums():
    n = 5003
    make = lambda: SimpleNamespace(p=-normal(n).abs(), c=integers(0, 2, n), loss=torch.full((1,), 10.0, dtype=F64, device=DEVICE),
                                   hits=torch.full((1,), 1 << 40, dtype=torch.int64, device=DEVICE))
    launch = lambda t: run("cross_entropy_sums", 1, 1024, t.p, t.c, n, t.loss, t.hits)

    def check(b, a):
        if int(a.hits) != (1 << 40) + int(b.c.sum()):
            raise Wrong("n_correct")
        return compare("loss", a.loss, 10.0 - b.p.double().sum()[None], floor=1e-9)

    case("cross_entropy_sums", f"{n} rows", make, launch, check)


# AdamW.

TENSOR = np.dtype([("value", "u8"), ("m", "u8"), ("v", "u8"), ("grad", "u8"), ("out", "u8"), ("rows", "i4"), ("cols", "i4"),
                   ("ld_grad", "i4"), ("ld_out", "i4"), ("grad_scale", "f4"), ("out_scale", "f4"), ("lr_ratio", "f4"),
                   ("weight_decay", "f4"), ("unused", "u8")])
CHUNK = 4096


def adamw(label, shapes, timed):
    f = np.float32
    lr, beta1, beta2, eps, max_norm = f(3e-3), f(0.9), f(0.999), f(1e-8), 1.0
    correction1, v_scale = f(1 - float(beta1) ** 7), f(1 / math.sqrt(1 - float(beta2) ** 7))
    n_all = sum(r * c for r, c in shapes)

    def make():
        t = SimpleNamespace()
        for i, (r, c) in enumerate(shapes):
            pads = [(8 * i) % 24, 8 + (8 * i) % 16]
            for key, x in dict(value=normal(r, c), m=normal(r, c, scale=0.1), v=normal(r, c, scale=0.1).square(),
                               grad=poisoned(r, up(c, 8) + pads[0]), out=poisoned(r, up(c, 8) + pads[1], dtype=BF16)).items():
                setattr(t, f"{key}{i}", x)
            getattr(t, f"grad{i}")[:, :c] = normal(r, c, scale=0.01)
        t.step = torch.tensor([lr, beta1, beta2, eps, correction1, v_scale], dtype=F32, device=DEVICE)
        chunks = [(i, first) for i, (r, c) in enumerate(shapes) for first in range(0, r * c, CHUNK)]
        t.chunks = torch.tensor(chunks, dtype=I32, device=DEVICE)
        t.partial, t.result = poisoned(len(chunks), dtype=F64), poisoned(2)
        return t

    def scales(i):
        return f(0.25 if i % 2 else 0.7), f(1.7), f(1.0 if i % 3 else 4.0), f(0.01 if i % 2 else 0.0)

    def prepare(t):
        a = np.zeros(len(shapes), TENSOR)
        for i, (r, c) in enumerate(shapes):
            x = [getattr(t, f"{name}{i}") for name in ("value", "m", "v", "grad", "out")]
            out = 0 if i == 1 else x[4].data_ptr()
            a[i] = (*[p.data_ptr() for p in x[:4]], out, r, c, x[3].shape[1], x[4].shape[1], *scales(i), 0)
        t.pointers = torch.from_numpy(a.view(np.uint8)).to(DEVICE)

    def squares(t):
        run("adamw_squares", len(t.chunks), 256, t.pointers, t.chunks, t.partial)

    def norm(t):
        run("adamw_norm", 1, 1024, t.partial, len(t.chunks), max_norm, t.result)

    def update(t):
        run("adamw_update", len(t.chunks), 256, t.pointers, t.chunks, t.result, t.step)

    def publish(t):
        run("adamw_publish", len(t.chunks), 256, t.pointers, t.chunks)

    def all_of(t):
        squares(t), norm(t), update(t)

    def cpu(t, key, i):
        return getattr(t, f"{key}{i}")[:, : shapes[i][1]].cpu()

    def grads(b):
        return [cpu(b, "grad", i).numpy() * scales(i)[0] for i in range(len(shapes))]

    def check_norm(b, a):
        total = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in grads(b)))
        clip = min(1.0, max_norm / (total + 1e-6))
        ref = torch.tensor([total, clip], dtype=F64, device=DEVICE)
        return compare("norm and clip factor", a.result, ref)

    def check(b, a):
        found = [check_norm(b, a)]
        clip = f(a.result[1].item())
        for i, g in enumerate(grads(b)):
            _, out_scale, ratio, decay = scales(i)
            x, m, v = (cpu(b, key, i).numpy() for key in ("value", "m", "v"))
            rate = lr * ratio
            step_size, keep = f(float(rate) / float(correction1)), f(1) - rate * decay
            g = g * clip
            m = beta1 * m + (f(1) - beta1) * g
            v = beta2 * v + (f(1) - beta2) * g * g
            x = x * keep - step_size * m / (np.sqrt(v) * v_scale + eps)
            for key, ref in (("value", x), ("m", m), ("v", v)):
                assert ref.dtype == np.float32
                found.append(same_bits(f"{key} of tensor {i}", cpu(a, key, i), torch.from_numpy(ref)))
            if i != 1:
                found.append(same_bits(f"out of tensor {i}", cpu(a, "out", i), torch.from_numpy(x * out_scale).to(BF16)))
        return worse(*found)

    def check_published(b, a):
        return worse(*[same_bits(f"out of tensor {i}", cpu(a, "out", i), (cpu(a, "value", i) * torch.tensor(scales(i)[1])).to(BF16))
                       for i in range(len(shapes)) if i != 1])

    pads = [(f"out{i}", c if i != 1 else 0) for i, (_, c) in enumerate(shapes)]
    shape = f"{label} {len(shapes)} tensors, {n_all} values"
    if not timed:
        case("adamw, whole step", shape, make, all_of, check, pads=pads, prepare=prepare)
        case("adamw_publish", shape, make, publish, check_published, pads=pads, prepare=prepare)
        return

    def prepared():
        t = make()
        prepare(t)
        all_of(t)
        return t

    nothing = lambda b, a: (0.0, 0.0)
    case("adamw_squares + norm", shape, make, lambda t: (squares(t), norm(t)), check_norm, 4 * n_all, prepare=prepare)
    case("adamw_update", shape, prepared, update, nothing, 30 * n_all, pads, prepare=prepare)
    case("adamw_publish", shape, make, publish, check_published, 6 * n_all, pads, prepare=prepare)


# Quantised weights, packed as engine/src/quant packs them.

NF4 = np.array([-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0, 0.0795803, 0.1609302,
                0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0], np.float32)


def dynamic_map():
    f = np.float32
    table = np.zeros(256, np.float32)
    table[255] = 1.0

    def boundary(n, i):
        step = float(f(f(1.0) - f(0.1)) / f(n))
        return f(float(f(0.1)) + step * i) if i < (n + 1) // 2 else f(1.0 - step * (n - i))

    for decade, size in enumerate((1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)):
        n = 1 << decade
        for i in range(n):
            value = f(size) * ((boundary(n, i) + boundary(n, i + 1)) / f(2.0))
            table[127 + n + i], table[127 - n - i] = value, -value
    return torch.from_numpy(table).to(DEVICE)


def blocks_of(x, n):
    return torch.nn.functional.pad(x, (0, -len(x) % n)).view(-1, n)


def nearest(x, values):
    return torch.bucketize(x, (values[1:] + values[:-1]) / 2)


def quants(label, n_rows, n_columns, timed):
    n, shape = n_rows * n_columns, f"{label} {n_rows}×{n_columns}"
    ld = up(n_columns, 8) + 8
    threads = row_threads(n_columns, 512)
    grid = min(n_rows, CARD.attributes["MultiProcessorCount"] * 2048 // threads)
    nf4, dynamic = torch.from_numpy(NF4).to(DEVICE), dynamic_map()

    def result(**tensors):
        return SimpleNamespace(out=poisoned(n_rows, ld, dtype=BF16), **tensors)

    def quantised(name, make, launch, values, bits_per_weight, most):
        def check(b, a):
            ref = values(b).view(n_rows, n_columns)
            w = b.w.view(n_rows, n_columns).double()
            error = float((ref.double() - w).norm() / w.norm())
            if not error < most:
                raise Wrong(f"the packed weights are {error:.3g} from what was packed")
            return same_bits("out", a.out[:, :n_columns], ref.to(BF16))

        n_bytes = int(n * (2 + bits_per_weight / 8)) if timed else None
        variants = [(f"{v} blocks", lambda t, v=v: launch(t, v)) for v in (n_rows, grid // 2) if v != grid] if timed else []
        case(name, shape, make, lambda t: launch(t, grid), check, n_bytes, [("out", n_columns)], variants)

    for double in (False, True):

        def make():
            w = normal(n, scale=0.02)
            blocks = blocks_of(w, 64)
            scales = blocks.abs().amax(1)
            codes = nearest((blocks / scales[:, None]).view(-1), nf4)[:n].to(torch.uint8)
            pairs = blocks_of(codes, 2)
            offset = float(scales.mean())
            differences = blocks_of(scales - offset, 256)
            absmax = differences.abs().amax(1)
            small = nearest((differences / absmax[:, None].clamp(min=1e-30)).view(-1), dynamic)[: len(scales)].to(torch.uint8)
            return result(w=w, codes=codes, packed=pairs[:, 0] << 4 | pairs[:, 1], scales=scales, offset=offset, small=small, absmax=absmax)

        def scales_of(t):
            if not double:
                return t.scales
            offset = torch.tensor(t.offset, dtype=F32, device=DEVICE)
            return dynamic[t.small.long()] * t.absmax.repeat_interleave(256)[: len(t.small)] + offset

        def launch(t, grid):
            scales = (None, t.small, t.absmax) if double else (t.scales, None, None)
            run("dequantize_nf4", grid, threads, t.packed, *scales, t.offset, t.out, ld, n_rows, n_columns)

        values = lambda t: nf4[t.codes.long()] * scales_of(t).repeat_interleave(64)[:n]
        quantised("dequantize_nf4" + (" double" if double else ""), make, launch, values, 4.127 if double else 4.5, 0.12)

    def make():
        w = normal(n_rows, n_columns, scale=0.02)
        scales = w.abs().amax(1)
        codes = (w * (127.0 / scales)[:, None]).round().to(torch.int8)
        return result(w=w, codes=codes, scales=scales)

    seventh = torch.tensor(1.0, device=DEVICE) / torch.tensor(127.0, device=DEVICE)
    launch = lambda t, grid: run("dequantize_int8", grid, threads, t.codes, t.scales, t.out, ld, n_rows, n_columns)
    quantised("dequantize_int8", make, launch, lambda t: t.codes.float() * t.scales[:, None] * seventh, 8, 0.02)

    def make():
        w = normal(n_rows, n_columns, scale=0.02)
        scales = w.abs().amax(1) / 448.0
        return result(w=w, codes=(w / scales[:, None]).to(torch.float8_e4m3fn).view(torch.uint8), scales=scales)

    launch = lambda t, grid: run("dequantize_fp8", grid, threads, t.codes, t.scales, t.out, ld, n_rows, n_columns)
    quantised("dequantize_fp8", make, launch, lambda t: t.codes.view(torch.float8_e4m3fn).float() * t.scales[:, None], 8, 0.05)

    if n_columns % 32:
        return

    def make():
        w = normal(n, scale=0.02)
        d = w.view(-1, 32).abs().amax(1) / 127.0
        codes = (w.view(-1, 32) / d[:, None]).round().to(torch.int8)
        blocks = torch.cat([d.half()[:, None].contiguous().view(torch.uint8), codes.view(torch.uint8)], 1)
        return result(w=w, codes=codes, d=d.half(), blocks=blocks.contiguous())

    launch = lambda t, grid: run("dequantize_q8_0", grid, threads, t.blocks, t.out, ld, n_rows, n_columns)
    quantised("dequantize_q8_0", make, launch, lambda t: t.codes.float() * t.d.float()[:, None], 8.5, 0.02)


def main():
    load_kernels()
    measure_copy()
    big, small, odd = "8B", "0.5B", ""
    T = 4096
    norms(big, T, 4096, True)
    norms(small, T, 896, True)
    for D in (8, 264, 5120, 8200, 16384):
        norms(odd, 65, D, False)
    ropes(big, T, 32, 8, 128, 128, False, True)
    ropes(small, T, 14, 2, 64, 64, False, True)
    ropes(odd, 77, 32, 2, 128, 64, True, False)
    ropes(odd, 77, 5, 1, 80, 32, False, False)
    ropes(odd, 77, 3, 3, 12, 12, False, False)
    ropes(odd, 77, 3, 1, 20, 10, True, False)
    ropes(odd, 5, 40, 8, 256, 256, True, False)
    rope_angles(T, 64)
    qk_norms(big, T, 32, 8, 128, False, True)
    qk_norms(small, T, 16, 8, 128, False, True)
    qk_norms("7B", T, 32, 32, 128, True, True)
    qk_norms(odd, 33, 4, 1, 256, False, False)
    qk_norms(odd, 33, 3, 1, 12, False, False)
    qk_norms(odd, 33, 5, 2, 72, True, False)
    qk_norms(odd, 33, 3, 1, 8, False, False)
    for act in (0, 1):
        glus(big, T, 14336, act, True)
        glus(small, T, 4864, act, act == 0)
        glus(odd, 37, 344, act, False)
        glus(odd, 37, 101, act, False)
    rows(big, T, 4096, 128256, True)
    rows(small, T, 896, 151936, True)
    rows(odd, 33, 36, 100, False)
    copies()
    for dtype in (BF16, F32):
        cross_entropies(big, 1024, 128256, dtype, 0.0, True)
        cross_entropies(small, 1024, 151936, dtype, 0.0, True)
        cross_entropies(odd, 7, 1003, dtype, 0.0, False)
        cross_entropies(odd, 64, 50257, dtype, 30.0, False)
        cross_entropies(odd, 2, 5, dtype, 0.0, False)
    cross_entropies(big, 1024, 128256, BF16, 0.0, True, in_place=True)
    cross_entropies(odd, 9, 1003, BF16, 30.0, False, in_place=True)
    cross_entropies(small, 1024, 151936, F32, 0.0, True, scores_only=True)
    cross_entropies("Gemma", 512, 256000, BF16, 30.0, True)
    cross_entropy_sums()
    adamw(odd, [(16, 896), (64, 36), (5, 7), (4864, 16), (1, 1), (33, 130)], False)
    adamw(big, [(16, 4096), (4096, 16), (16, 14336), (14336, 16)] * 48, True)
    quants(big, 14336, 4096, True)
    quants(small, 4864, 896, True)
    quants(odd, 37, 96, False)
    quants(odd, 37, 72, False)
    quants(odd, 37, 33, False)
    report()
    sys.exit(1 if FAILURES else 0)


main()
