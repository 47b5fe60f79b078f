"""Checks the kernels of generation against f64 and measures their bandwidth.

Needs a GPU, torch, cupy and the cubins that engine/kernels/build makes. Every check: fresh random inputs, outputs poisoned before,
padding that has to stay as it was, two runs with the same bits, a row alone with the bits it has among others. Timings take turns
with copies of what is read, so that the cache does not serve it; "of copy" is bytes a second over those of a device copy in the same run.

Usage: python3 bench/gpu/kernels/decode.py [WORD …]     only cases with a WORD in their name
"""

import ctypes
import math
import os
import statistics
import sys
import time
import traceback
from pathlib import Path

START = time.time()

import cupy
import numpy as np
import torch

BUILT = Path(__file__).resolve().parents[3] / "engine/kernels/built"
DEVICE = torch.device("cuda")
BF16, F32, I32 = torch.bfloat16, torch.float32, torch.int32
GENERATOR = torch.Generator(DEVICE)
GENERATOR.seed()
BYTES_OF_SETS = 256 << 20
PAGE = 64
# Graphs are recorded on it.
SIDE = torch.cuda.Stream()
STREAMS = {0: cupy.cuda.Stream.null, SIDE.cuda_stream: cupy.cuda.ExternalStream(SIDE.cuda_stream)}
torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

LINEAR_SHARED = 98304
# Of `linear_ROWS`, for sm_90a: rows of W that a cluster of blocks has, and dynamic shared memory by its rows.
CLUSTER_ROWS = 128
CLUSTER_SHARED = {8: 104448, 16: 110592, 32: 102400, 64: 98304, 128: 196608}
SHRINK_SHARED = 24576
ATTENTION_SHARED = {64: 65536, 96: 73728, 128: 65536, 256: 65536}
KERNELS, FAILURES, CHECKS, TABLES, COPY = {}, [], {}, {}, [1.0]


def attention_shared(C, wide):
    return 66560 if wide and C == 256 else ATTENTION_SHARED[C]


def load_kernels():
    sm = {8: "80", 9: "90a", 12: "120"}[torch.cuda.get_device_capability()[0]]
    module = cupy.RawModule(path=str(BUILT / f"decode.sm_{sm}.cubin"))
    names = {"kv_append": 0, "decode_attention_combine": 0, "draw_token": 0}
    names |= {f"skinny_linear_{m}_{rows}": LINEAR_SHARED for m in (8, 16, 32, 64) for rows in (16, 32)}
    names |= {f"decode_attention_{C}{w}": attention_shared(C, bool(w)) for C in ATTENTION_SHARED for w in ("", "_wide")}
    if sm == "90a":
        clusters = cupy.RawModule(path=str(BUILT / "linear.sm_90a.cubin"))
        of_clusters = {f"linear_{rows}": shared for rows, shared in CLUSTER_SHARED.items()}
    else:
        clusters, of_clusters = None, {}
    lora = cupy.RawModule(path=str(BUILT / f"grouped_lora.sm_{sm}.cubin"))
    of_lora = {"grouped_lora_shrink": SHRINK_SHARED, "grouped_lora_expand": 0, "grouped_lora_expand_f32": 0}
    for of, some in ((module, names), (clusters, of_clusters), (lora, of_lora)):
        for name, shared in some.items():
            KERNELS[name] = of.get_function(name)
            if shared > 48 << 10:
                KERNELS[name].max_dynamic_shared_size_bytes = shared


def argument(x):
    if x is None:
        return np.uint64(0)
    if isinstance(x, torch.Tensor):
        return np.uint64(x.data_ptr())
    if isinstance(x, (bool, int)):
        return np.int32(x)
    return np.float32(x) if isinstance(x, float) else x


def run(name, grid, threads, *args, shared=0):
    """Launches on torch's current stream."""
    with STREAMS[torch.cuda.current_stream().cuda_stream]:
        KERNELS[name](grid, (threads,), tuple(map(argument, args)), shared_mem=shared)


class Attribute(ctypes.Structure):
    """CUlaunchAttribute."""

    _fields_ = [("id", ctypes.c_uint), ("pad", ctypes.c_uint), ("value", ctypes.c_uint * 16)]


class Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint), ("stream", ctypes.c_void_p),
                ("attributes", ctypes.POINTER(Attribute)), ("n_attributes", ctypes.c_uint)]


CLUSTER_DIMENSION, PROGRAMMATIC_STREAM_SERIALIZATION = 4, 6


def run_clusters(name, grid, threads, cluster, *args, shared=0):
    """As `run`, in clusters of blocks along y, and perhaps before the kernel before has ended."""
    attributes = (Attribute * 2)()
    attributes[0].id, attributes[1].id = CLUSTER_DIMENSION, PROGRAMMATIC_STREAM_SERIALIZATION
    attributes[0].value[:3] = [1, cluster, 1]
    attributes[1].value[0] = 1
    stream = torch.cuda.current_stream().cuda_stream
    config = Config((ctypes.c_uint * 3)(*grid, 1), (ctypes.c_uint * 3)(threads, 1, 1), shared, stream, attributes, 2 if has_clusters() else 0)
    values = [(ctypes.c_char * a.itemsize).from_buffer_copy(a.tobytes()) for a in map(argument, args)]
    pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    kernel = ctypes.c_void_p(KERNELS[name].kernel.ptr)
    status = ctypes.CDLL("libcuda.so.1").cuLaunchKernelEx(ctypes.byref(config), kernel, pointers, None)
    if status:
        raise RuntimeError(f"{name}: CUDA error {status}")


def up(x, n):
    return -(-x // n) * n


def normal(*shape, dtype=F32, scale=1.0):
    return (torch.randn(shape, generator=GENERATOR, device=DEVICE) * scale).to(dtype)


def poisoned(*shape, dtype=F32):
    return torch.full(shape, float("nan") if dtype.is_floating_point else -77, dtype=dtype, device=DEVICE)


def pitched(x, pad=8):
    full = poisoned(x.shape[0], up(x.shape[1] + pad, 8), dtype=x.dtype)
    full[:, : x.shape[1]] = x
    return full


def ints(x):
    return torch.tensor(x, dtype=I32, device=DEVICE)


def bits(x):
    return x.contiguous().view({1: torch.uint8, 2: torch.int16, 4: I32, 8: torch.int64}[x.element_size()])


class Wrong(Exception):
    pass


def compare(what, out, ref, most):
    """‖out − ref‖ / ‖ref‖, which has to be below `most`, and no number may be far off."""
    out, ref = out.double(), ref.double()
    if not bool(torch.isfinite(out).all()):
        raise Wrong(f"{what}: {int((~torch.isfinite(out)).sum())} of {out.numel()} not finite")
    relative = float((out - ref).norm() / (ref.norm() + 1e-300))
    worst = float((out - ref).abs().max() / (ref.abs().max() + 1e-300))
    if not (relative < most and worst < 8 * most):
        raise Wrong(f"{what}: relative error {relative:.3g}, worst {worst:.3g}, allowed {most:.3g}")
    return relative


def same_bits(what, out, ref):
    differ = int((bits(out) != bits(ref)).sum())
    if differ:
        raise Wrong(f"{what}: {differ} of {out.numel()} differ")
    return 0.0


def guarded(name, what):
    """Runs `what()`, which returns an error to note or None."""
    if len(sys.argv) > 1 and not any(word in name for word in sys.argv[1:]):
        return
    try:
        relative = what()
        torch.cuda.synchronize()
        if relative is not None:
            CHECKS.setdefault(name.split(",")[0], []).append(relative)
    except Exception as error:
        FAILURES.append(f"{name}: {type(error).__name__}: {error}")
        if not isinstance(error, Wrong):
            traceback.print_exc()
        try:
            torch.cuda.synchronize()
        except Exception:  # An error of the card: nothing runs after it.
            report("the card is lost after this failure")


def seconds(launch, n_sets):
    """Of one `launch(i)`, i < n_sets: the median of replays of a graph over all sets."""
    n = max(n_sets, 8)
    with torch.cuda.stream(SIDE):
        launch(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(SIDE):
        graph.capture_begin()
        for i in range(n):
            launch(i % n_sets)
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


def row(table, *cells):
    TABLES.setdefault(table, []).append("| " + " | ".join(str(c) for c in cells) + " |")


def speed(took, n_bytes):
    return f"{took * 1e6:.1f} | {n_bytes / took / COPY[0]:.2f}"


def report(lost=None):
    lines = [f"{lost or torch.cuda.get_device_name()}; device copy {COPY[0] / 1e9:.0f} GB/s", ""]
    for head, rows in TABLES.items():
        lines += [head, "|---" * (head.count("|") - 1) + "|", *rows, ""]
    lines += [f"{name}: {len(all)} checks, relative error up to {max(all):.1e}" for name, all in CHECKS.items()]
    lines += [f"FAILED {failure}" for failure in FAILURES]
    lines += [f"{sum(map(len, CHECKS.values()))} passed, {len(FAILURES)} failed, {time.time() - START:.0f} s"]
    print("\n".join(lines))
    if "OUT" in os.environ:
        Path(os.environ["OUT"], "decode.md").write_text("\n".join(lines) + "\n")
    if lost:
        sys.exit(2)


def measure_copy():
    a = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device=DEVICE)
    b = torch.empty_like(a)
    COPY[0] = 2 * (1 << 30) / seconds(lambda i: b.copy_(a), 1)


# Products with few rows.

MODES = {"bf16": 0, "f32": 1, "add": 2}


def bucket(M, buckets):
    return next(b for b in buckets if M <= b)


def has_clusters():
    return "linear_8" in KERNELS


def blocks_of_cluster(n_tiles):
    """As `serve_ops` has it."""
    if n_tiles < 192:
        return min(max(192 // n_tiles, 1), 6)
    return 2 if n_tiles < 512 else 1


def rows_of_block(N, K):
    """As `serve_ops::linear` chooses."""
    if has_clusters() and N * K >= 1 << 22:
        return CLUSTER_ROWS
    return 32 if N >= 4096 else 16


def linear(x, ld_x, w, ld_w, bias, y, ld_y, mode, M, N, K, rows=None, most=None):
    rows = rows or rows_of_block(N, K)
    args = x, ld_x, w, ld_w, bias, y, ld_y, MODES[mode], M, N, K
    if rows == CLUSTER_ROWS:
        most = most or bucket(min(M, max(CLUSTER_SHARED)), CLUSTER_SHARED)
        tiles = -(-N // rows)
        cluster = blocks_of_cluster(tiles)
        run_clusters(f"linear_{most}", (-(-M // most), tiles * cluster), 256, cluster, *args, shared=CLUSTER_SHARED[most])
    else:
        run(f"skinny_linear_{most or bucket(M, (8, 16, 32, 64))}_{rows}", (-(-N // rows),), 256, *args, shared=LINEAR_SHARED)


def linear_check(M, N, K, mode, with_bias, with_clusters=False):
    w, x = pitched(normal(N, K, dtype=BF16, scale=0.05)), pitched(normal(M, K, dtype=BF16), 16)
    bias = normal(N, dtype=BF16 if mode == "bf16" else F32) if with_bias else None
    dtype = BF16 if mode == "bf16" else F32
    before = poisoned(M, up(N, 8) + 8, dtype=dtype)
    if mode == "add":
        before[:, :N] = normal(M, N)
    forms = [(CLUSTER_ROWS, most) for most in CLUSTER_SHARED] if with_clusters else [(r, m) for r in (16, 32) for m in (8, 16, 32, 64) if m >= M]

    def result(rows, most):
        y = before.clone()
        linear(x, x.shape[1], w, w.shape[1], bias, y, y.shape[1], mode, M, N, K, rows, most)
        return y

    y = result(*forms[0])
    ref = x[:, :K].double() @ w[:, :K].double().T
    if with_bias:
        ref += bias.double()
    if mode == "add":
        ref += before[:, :N].double()
    relative = compare("y", y[:, :N], ref, 3e-3 if mode == "bf16" else 2e-5)
    same_bits("padding", y[:, N:], before[:, N:])
    same_bits("second run", result(*forms[0]), y)
    for rows, most in forms[1:]:
        same_bits(f"{most} rows at most, {rows} of W", result(rows, most), y)
    for i in range(min(M, 64)):
        alone = before[i].clone()
        linear(x[i], x.shape[1], w, w.shape[1], bias, alone, y.shape[1], mode, 1, N, K, forms[0][0])
        same_bits(f"row {i} alone", alone, y[i])
    return relative


def linear_timing(label, N, K, pool):
    n_bytes = 2 * N * K
    n_sets = max(2, min(160, BYTES_OF_SETS // n_bytes, pool.numel() // (N * K)))
    weights = [pool[i * N * K : (i + 1) * N * K].view(N, K) for i in range(n_sets)]
    for M in (1, 8, 64, 128, 512):
        x, y = normal(M, K, dtype=BF16), poisoned(M, N, dtype=BF16)
        all_bytes = n_bytes + 2 * M * (N + K)
        cells = []
        for rows in (16, 32, CLUSTER_ROWS):
            if has_clusters() if rows == CLUSTER_ROWS else M <= 64:
                took = seconds(lambda i: linear(x, K, weights[i], K, None, y, N, "bf16", M, N, K, rows), n_sets)
                cells.append(speed(took, all_bytes))
            else:
                cells.append(" | ")
        took = seconds(lambda i: torch.mm(x, weights[i].T, out=y), n_sets)
        row("| linear | M | rows 16, µs | of copy | rows 32, µs | of copy | clusters, µs | of copy | torch, µs | of copy |", f"{label} {N}×{K}", M, *cells,
            speed(took, all_bytes))
    if N == 4096:
        x, y = normal(1, K, dtype=BF16), normal(1, N)
        took = seconds(lambda i: linear(x, K, weights[i], K, None, y, N, "add", 1, N, K), n_sets)
        row("| linear, others | M | µs | of copy |", f"{label} {N}×{K} added to f32", 1, speed(took, n_bytes))


def linears():
    for M in (1, 2, 5, 8, 9, 16, 17, 32, 33, 64):
        guarded(f"linear, M={M} 896×896", lambda: linear_check(M, 896, 896, "bf16", True))
        guarded(f"linear, M={M} 200×136 f32", lambda: linear_check(M, 200, 136, "f32", False))
        guarded(f"linear, M={M} 1003×1000 added", lambda: linear_check(M, 1003, 1000, "add", True))
    guarded("linear, 64×8", lambda: linear_check(3, 64, 8, "f32", True))
    guarded("linear, 7×520", lambda: linear_check(3, 7, 520, "bf16", True))
    guarded("linear, 4096×14336", lambda: linear_check(64, 4096, 14336, "add", False))
    guarded("linear, 6144×4096", lambda: linear_check(8, 6144, 4096, "bf16", True))
    if not has_clusters():
        return
    for M in (1, 8, 9, 33, 64, 65, 128, 129, 300):
        guarded(f"linear in clusters, M={M} 896×896", lambda: linear_check(M, 896, 896, "bf16", True, True))
        guarded(f"linear in clusters, M={M} 200×136 f32", lambda: linear_check(M, 200, 136, "f32", False, True))
        guarded(f"linear in clusters, M={M} 1003×1000 added", lambda: linear_check(M, 1003, 1000, "add", True, True))
    guarded("linear in clusters, 64×8", lambda: linear_check(3, 64, 8, "f32", True, True))
    guarded("linear in clusters, 7×520", lambda: linear_check(3, 7, 520, "bf16", True, True))
    guarded("linear in clusters, 4096×14336", lambda: linear_check(64, 4096, 14336, "add", False, True))
    guarded("linear in clusters, 6144×4096", lambda: linear_check(200, 6144, 4096, "bf16", True, True))
    guarded("linear in clusters, 28672×4096", lambda: linear_check(16, 28672, 4096, "bf16", False, True))


def linear_timings():
    pool = torch.empty(2 * 128256 * 4096, dtype=BF16, device=DEVICE).normal_(0, 0.05, generator=GENERATOR)
    big = [("8B o", 4096, 4096), ("8B qkv", 6144, 4096), ("8B gate_up", 28672, 4096), ("8B down", 4096, 14336), ("8B head", 128256, 4096)]
    small = [("0.5B o", 896, 896), ("0.5B qkv", 1152, 896), ("0.5B gate_up", 9728, 896), ("0.5B down", 896, 4864)]
    for label, N, K in big + small:
        guarded(f"linear timing {label}", lambda: linear_timing(label, N, K, pool))


# Attention.


def attention(t, C, H, K, chunk, scale, cap, window, grid_x=None, rows=None):
    """Of the rows `rows`, in a launch of their own."""
    rows = rows if rows is not None else slice(0, t["n"])
    n = rows.stop - rows.start
    sequences, positions, qkv, out = (t[k][rows] for k in ("sequences", "positions", "qkv", "out"))
    G, splits = H // K, t["splits"]
    wide = G > 8
    blocks = K * -(-G // (16 if wide else 8))
    run(f"decode_attention_{C}{'_wide' if wide else ''}", (min(grid_x or splits, splits), blocks, n), 128, qkv, t["qkv"].shape[1],
        sequences, positions, t["table"], t["table"].shape[1], t["k"], t["v"], t["partial"], t["stats"], splits, chunk, scale, cap,
        window, H, K, out, t["out"].shape[1], shared=attention_shared(C, wide))
    # With one chunk the first kernel has written all.
    if splits > 1:
        run("decode_attention_combine", (H, n), 256, t["partial"], t["stats"], splits, chunk, window, sequences, positions, out,
            t["out"].shape[1], H, C)


def attention_check(C, H, K, cap, window, chunk, lengths, pad_rows=1):
    n, width = len(lengths) + pad_rows, (H + 2 * K) * C
    scale = C**-0.5
    max_pages = -(-max(lengths) // PAGE) + 2
    n_pages = sum(-(-l // PAGE) for l in lengths) + 5
    order = torch.randperm(n_pages, generator=GENERATOR, device=DEVICE).to(I32)
    table = torch.full((len(lengths), max_pages), 1 << 29, dtype=I32, device=DEVICE)
    k_pages, v_pages = poisoned(n_pages, K, PAGE, C, dtype=BF16), poisoned(n_pages, K, PAGE, C, dtype=BF16)
    qkv = pitched(normal(n, width, dtype=BF16))
    # Row i of the batch is not sequence i, and one row is padding.
    sequences = list(range(len(lengths)))[::-1]
    sequences[1:1] = [-1] * pad_rows
    keys, values, used = [], [], 0
    for s, l in enumerate(lengths):
        k, v = normal(l, K, C, dtype=BF16), normal(l, K, C, dtype=BF16)
        r = sequences.index(s)
        k[-1] = qkv[r, H * C : (H + K) * C].view(K, C)
        v[-1] = qkv[r, (H + K) * C : width].view(K, C)
        keys.append(k), values.append(v)
        for p in range(-(-l // PAGE)):
            page = int(order[used])
            used += 1
            table[s, p] = page
            part = slice(p * PAGE, min(l, p * PAGE + PAGE))
            k_pages[page, :, : part.stop - part.start] = k[part].transpose(0, 1)
            v_pages[page, :, : part.stop - part.start] = v[part].transpose(0, 1)
            if part.stop == l:  # kv_append writes it.
                k_pages[page, :, part.stop - part.start - 1] = v_pages[page, :, part.stop - part.start - 1] = float("nan")
    expected_k, expected_v = k_pages.clone(), v_pages.clone()
    for s, l in enumerate(lengths):
        page = int(table[s, (l - 1) // PAGE])
        expected_k[page, :, (l - 1) % PAGE], expected_v[page, :, (l - 1) % PAGE] = keys[s][-1], values[s][-1]
    if window:  # Pages that no query sees any more are not the sequence's.
        for s, l in enumerate(lengths):
            table[s, : max(0, l - window) // PAGE] = 1 << 29
    positions = [0 if s < 0 else lengths[s] - 1 for s in sequences]
    splits = max(-(-l // chunk) for l in lengths) + 1
    t = dict(n=n, sequences=ints(sequences), positions=ints(positions), qkv=qkv, table=table, k=k_pages, v=v_pages, splits=splits,
             out=poisoned(n, H * C + 8, dtype=BF16), partial=poisoned(n, H, splits, C), stats=poisoned(n, H, splits, 2))
    run("kv_append", (n + 1,), 128, qkv, qkv.shape[1], t["sequences"], t["positions"], table, max_pages, k_pages, v_pages, n, H, K, C)
    same_bits("pages of keys", k_pages, expected_k)
    same_bits("pages of values", v_pages, expected_v)
    before = t["out"].clone()
    args = (C, H, K, chunk, scale, cap, window)
    attention(t, *args)
    first = t["out"].clone()
    refs, outs = [], []
    for r, s in enumerate(sequences):
        if s < 0:
            if bool((first[r, : H * C] != 0).any()):
                raise Wrong("a row of padding is not zero")
            continue
        k, v, q = keys[s].double(), values[s].double(), qkv[r, : H * C].double().view(K, H // K, C)
        if window:
            k, v = k[-window:], v[-window:]
        scores = torch.einsum("kgc,lkc->kgl", q, k) * scale
        if cap:
            scores = cap * torch.tanh(scores / cap)
        refs.append(torch.einsum("kgl,lkc->kgc", scores.softmax(-1), v).reshape(-1))
        outs.append(first[r, : H * C])
    relative = max(compare(f"row {i}", o, ref, 6e-3) for i, (o, ref) in enumerate(zip(outs, refs)))
    same_bits("padding", first[:, H * C :], before[:, H * C :])
    for grid_x in (splits, 1, 2):
        t["out"].copy_(before), t["partial"].fill_(float("nan")), t["stats"].fill_(float("nan"))
        attention(t, *args, grid_x=grid_x)
        same_bits(f"grid of {grid_x}", t["out"], first)
    t["splits"] += 3
    t["partial"], t["stats"] = poisoned(n, H, splits + 3, C), poisoned(n, H, splits + 3, 2)
    t["out"].copy_(before)
    for r in range(n):
        attention(t, *args, rows=slice(r, r + 1))
    same_bits("rows alone", t["out"], first)
    return relative


def attentions():
    lengths = [1, 16, 17, 63, 64, 65, 255, 256, 257, 300, 1000, 2049]
    for C in (64, 96, 128, 256):
        for H, K in ((8, 2), (7, 1), (3, 3), (32, 2), (20, 1)):
            guarded(f"attention, C={C} {H}/{K}", lambda: attention_check(C, H, K, 0.0, 0, 256, lengths))
        guarded(f"attention, C={C} capped", lambda: attention_check(C, 8, 4, 30.0, 0, 256, lengths))
        for window in (1, 50, 200, 512):
            guarded(f"attention, C={C} window {window}", lambda: attention_check(C, 8, 4, 0.0, window, 256, lengths))
        for chunk in (64, 128, 512, 2048):
            guarded(f"attention, C={C} chunk {chunk}", lambda: attention_check(C, 4, 2, 50.0, 300, chunk, lengths + [4500]))


def attention_timing(label, C, H, K, k_pages, v_pages, batch, context):
    per_page = K * PAGE * C
    k, v = k_pages[: k_pages.numel() // per_page * per_page], v_pages[: v_pages.numel() // per_page * per_page]
    n_pages = k.numel() // per_page
    pages = context // PAGE
    n_bytes = 2 * 2 * batch * context * K * C
    n_sets = max(1, min(64, n_pages // (batch * pages), BYTES_OF_SETS // n_bytes + 1))
    order = torch.randperm(n_pages, generator=GENERATOR, device=DEVICE).to(I32)
    tables = [order[i * batch * pages : (i + 1) * batch * pages].view(batch, pages).contiguous() for i in range(n_sets)]
    most = 32768 // 128
    t = dict(n=batch, sequences=ints(list(range(batch))), positions=ints([context - 1] * batch), k=k, v=v,
             qkv=normal(batch, (H + 2 * K) * C, dtype=BF16), out=poisoned(batch, H * C, dtype=BF16),
             partial=poisoned(batch * H * most * C), stats=poisoned(batch * H * most * 2))
    cells = []
    # With a grid for this context; then for one of 32768, whole or no larger than four blocks a processor need.
    whole, few = 32768 // 256, max(1, -(-4 * 132 // (K * batch)))
    for chunk, grid_x in ((128, None), (256, None), (512, None), (256, whole), (256, few)):
        splits = t["splits"] = -(-context // chunk) if grid_x is None else whole

        def launch(i):
            attention(dict(t, table=tables[i]), C, H, K, chunk, C**-0.5, 0.0, 0, grid_x=grid_x or splits)

        took = seconds(launch, n_sets)
        cells.append(speed(took, n_bytes))
    row("| attention and combine | batch | context | chunk 128, µs | of copy | 256, µs | of copy | 512, µs | of copy | 256 of a grid for "
        "32768, µs | of copy | small grid, µs | of copy |", label, batch, context, *cells)


def attention_timings():
    n = 8192 * 8 * PAGE * 128
    k, v = (torch.empty(n, dtype=BF16, device=DEVICE).normal_(generator=GENERATOR) for _ in range(2))
    for batch in (1, 8, 64):
        for context in (512, 2048, 8192):
            guarded(f"attention timing {batch} {context}", lambda: attention_timing("8B 32/8·128", 128, 32, 8, k, v, batch, context))
    for label, C, H, K in (("0.5B 14/2·64", 64, 14, 2), ("32/32·96", 96, 32, 32), ("16/8·256", 256, 16, 8), ("16/1·128", 128, 16, 1)):
        for batch, context in ((1, 2048), (16, 2048)):
            guarded(f"attention timing {label} {batch}", lambda: attention_timing(label, C, H, K, k, v, batch, context))


# Changes of low rank.

PART = np.dtype([("b", "u8"), ("ld_b", "i4"), ("column", "i4"), ("n_columns", "i4"), ("rank", "i4"), ("n_ranks", "i4"), ("unused", "i4")])
ADAPTER = np.dtype([("a", "u8"), ("ld_a", "i4"), ("n_ranks", "i4"), ("n_parts", "i4"), ("unused", "i4"), ("parts", PART, 3)])
assert PART.itemsize == 32 and ADAPTER.itemsize == 120


def adapter_table(adapters):
    """`adapters`: (A, [(first column, B)])."""
    table = np.zeros(len(adapters), ADAPTER)
    for entry, (a, parts) in zip(table, adapters):
        entry["a"], entry["ld_a"], entry["n_ranks"], entry["n_parts"] = a.data_ptr(), a.stride(0), a.shape[0], len(parts)
        rank = 0
        for to, (column, b) in zip(entry["parts"], parts):
            to["b"], to["ld_b"], to["column"], to["n_columns"] = b.data_ptr(), b.stride(0), column, b.shape[0]
            to["rank"], to["n_ranks"] = rank, b.shape[1]
            rank += b.shape[1]
        assert rank == a.shape[0]
    return torch.from_numpy(table.view(np.uint8).copy()).to(DEVICE)


def segments_of(of_row):
    """(rows, segments) of rows whose adapters are `of_row`, −1: none."""
    rows, segments = [], []
    for adapter in sorted(set(of_row) - {-1}):
        mine = [r for r, a in enumerate(of_row) if a == adapter]
        for i in range(0, len(mine), 16):
            segments.append((len(rows), len(mine[i : i + 16]), adapter))
            rows += mine[i : i + 16]
    return rows, segments


def lora_grids(adapters):
    ranks = max(a.shape[0] for a, _ in adapters)
    blocks = max(sum(-(-b.shape[0] // 256) for _, b in parts) for _, parts in adapters)
    return ranks // 8, blocks


def shrink(grid_x, most_segments, *args):
    run_clusters("grouped_lora_shrink", (grid_x, most_segments), 256, 1, *args, shared=SHRINK_SHARED)


def lora(x, ld_x, table, segments, n_segments, rows, h, y, K, grids, most_segments):
    shrink(grids[0], most_segments, x, ld_x, table, segments, n_segments, rows, h, h.shape[1], K)
    name = "grouped_lora_expand" + ("" if y.dtype == BF16 else "_f32")
    run(name, (grids[1], most_segments), 128, y, y.shape[1], h, h.shape[1], table, segments, n_segments, rows)


def lora_check(M, K, widths, ranks, dtype):
    """`ranks`: for each adapter those of its parts, 0: no such part."""
    N = sum(widths)
    adapters = []
    for of in ranks:
        a = pitched(normal(sum(of), K, dtype=BF16, scale=K**-0.5))[:, :K]
        parts, column = [], 0
        for width, r in zip(widths, of):
            if r:
                parts.append((column, pitched(normal(width, r, dtype=BF16), 0 if r % 16 else 8)[:, :r]))
            column += width
        adapters.append((a, parts))
    table, grids = adapter_table(adapters), lora_grids(adapters)
    of_row = torch.randint(-1, len(ranks), (M,)).tolist()
    of_row[: min(M, 19)] = [0] * min(M, 19)  # More than a segment.
    rows, segments = segments_of(of_row)
    x = pitched(normal(M, K, dtype=BF16))
    y = pitched(normal(M, N, dtype=dtype))
    ld_h = max(sum(of) for of in ranks) + 8

    def result(rows, segments):
        h, out = poisoned(M, ld_h), y.clone()
        data = ints([s for segment in segments for s in segment] + [0, 99, 0])
        lora(x, x.shape[1], table, data, ints([len(segments)]), ints(rows), h, out, K, grids, len(segments) + 2)
        return h, out

    h, out = result(rows, segments)
    ref_h, ref_y = poisoned(M, ld_h).double(), y.double()
    for r, adapter in enumerate(of_row):
        if adapter < 0:
            continue
        a, parts = adapters[adapter]
        ref_h[r, : a.shape[0]] = x[r, :K].double() @ a.double().T
        rank = 0
        for column, b in parts:
            share = h[r, rank : rank + b.shape[1]].to(BF16).double()
            ref_y[r, column : column + b.shape[0]] += share @ b.double().T
            rank += b.shape[1]
    written = ~ref_h.isnan()
    if bool((h.isnan() == written).any()):
        raise Wrong("h: written elsewhere, or not everywhere")
    relative = compare("h", h[written], ref_h[written], 1e-5)
    relative = max(relative, compare("y", out[:, :N], ref_y[:, :N], 3e-3 if dtype == BF16 else 1e-5))
    same_bits("padding", out[:, N:], y[:, N:])
    none = [r for r, a in enumerate(of_row) if a < 0]
    same_bits("rows without an adapter", out[none], y[none])
    again_h, again = result(rows, segments)
    same_bits("h, second run", again_h, h), same_bits("y, second run", again, out)
    for r in range(M):
        if of_row[r] >= 0:
            h1, y1 = result([r], [(0, 1, of_row[r])])
            same_bits(f"h, row {r} alone", h1[r], h[r]), same_bits(f"y, row {r} alone", y1[r], out[r])
    return relative


def lora_timing(label, K, widths, r, dtype, pool, n_adapters, n_rows):
    N, R = sum(widths), r * len(widths)
    size = R * K + N * r
    n_sets = max(1, min(64, pool.numel() // (size * n_adapters), BYTES_OF_SETS // (2 * size * n_adapters) + 1))
    adapters, at = [], 0

    def take(n, m):
        nonlocal at
        at += n * m
        return pool[at - n * m : at].view(n, m)

    for _ in range(n_sets * n_adapters):
        a, column, parts = take(R, K), 0, []
        for width in widths:
            parts.append((column, take(width, r)))
            column += width
        adapters.append((a, parts))
    table, grids = adapter_table(adapters), lora_grids(adapters)
    x, y, h = normal(n_rows, K, dtype=BF16), normal(n_rows, N, dtype=dtype), poisoned(n_rows, R)
    sets = []
    for i in range(n_sets):
        rows, segments = segments_of([i * n_adapters + m % n_adapters for m in range(n_rows)])
        sets.append((ints([s for segment in segments for s in segment]), ints([len(segments)]), ints(rows), len(segments)))
    n_bytes = 2 * size * sets[0][3] + n_rows * (2 * K + 8 * R + 2 * N * y.element_size())

    def launch(i):
        data, n_segments, rows, most = sets[i]
        lora(x, K, table, data, n_segments, rows, h, y, K, grids, most)

    def shrink_alone(i):
        data, n_segments, rows, most = sets[i]
        shrink(grids[0], most, x, K, table, data, n_segments, rows, h, R, K)

    both, one = seconds(launch, n_sets), seconds(shrink_alone, n_sets)
    row("| grouped LoRA | rank | adapters | rows | shrink, µs | expand, µs | both, of copy | floor, µs |", label, r, n_adapters, n_rows,
        f"{one * 1e6:.1f}", f"{(both - one) * 1e6:.1f}", f"{n_bytes / both / COPY[0]:.2f}", f"{n_bytes / COPY[0] * 1e6:.1f}")


def loras():
    for dtype in (BF16, F32):
        name = "lora, bf16" if dtype == BF16 else "lora, f32"
        guarded(name, lambda: lora_check(64, 896, [896, 128, 128], [(16, 16, 16), (8, 0, 8), (64, 32, 8), (0, 0, 24)], dtype))
        guarded(name + " one", lambda: lora_check(1, 1000, [264], [(8,)], dtype))
        guarded(name + " deep", lambda: lora_check(33, 4864, [896], [(16,), (8,), (128,)], dtype))
        guarded(name + " wide", lambda: lora_check(40, 136, [4864, 4864], [(16, 16), (40, 0)], dtype))


def lora_timings():
    pool = torch.empty(384 << 20, dtype=BF16, device=DEVICE).normal_(0, 0.02, generator=GENERATOR)
    for label, K, widths, dtype in (("8B qkv", 4096, [4096, 1024, 1024], BF16), ("8B gate_up", 4096, [14336, 14336], BF16),
                                    ("8B down", 14336, [4096], F32), ("8B o", 4096, [4096], F32)):
        for n_adapters, n_rows in ((1, 1), (1, 16), (8, 64), (64, 64)):
            guarded(f"lora timing {label}", lambda: lora_timing(label, K, widths, 16, dtype, pool, n_adapters, n_rows))
    guarded("lora timing r64", lambda: lora_timing("8B qkv", 4096, [4096, 1024, 1024], 64, BF16, pool, 8, 64))


# The best token.


def draw(n, logits, ld, V, cap, inverse, random, ids, logprobs):
    run("draw_token", (n,), 1024, logits, ld, V, float(cap), inverse, random, ids, logprobs)


def draw_check(n, V, ties, temperature, cap):
    """`temperature` 0: the first of the largest."""
    ld = up(V, 8) + 8
    logits = poisoned(n, ld)
    logits[:, :V] = normal(n, V, scale=3.0)
    if ties:
        logits[:, :V] = logits[:, :V].round()
        logits[:, : V // 3] = -math.inf
    inverse = torch.full((n,), 1 / temperature if temperature else 0.0, device=DEVICE)
    random = torch.rand(n, dtype=torch.float64, generator=GENERATOR, device=DEVICE)
    random[0] = 0.0
    ids, logprobs = poisoned(n + 1, dtype=I32), poisoned(n + 1)
    draw(n, logits, ld, V, cap, inverse, random, ids, logprobs)
    if int(ids[n]) != -77:
        raise Wrong("ids: written beyond the rows")
    x = logits[:, :V].double()
    if cap:
        x = cap * torch.tanh(x / cap)
    if temperature:
        # Where the token begins and ends in the weights end to end, but for rounding.
        weights = (x / temperature).softmax(-1)
        end = weights.cumsum(-1).gather(-1, ids[:n].long()[:, None])[:, 0]
        own = weights.gather(-1, ids[:n].long()[:, None])[:, 0]
        if not bool(((own > 0) & (random > end - own - 1e-5) & (random < end + 1e-5)).all()):
            raise Wrong(f"ids: {random.tolist()} are not in {(end - own).tolist()} to {end.tolist()}")
    elif not cap:
        top = x.max(-1, keepdim=True).values
        same_bits("ids", ids[:n], torch.where(x == top, torch.arange(V, device=DEVICE), V).min(-1).values.to(I32))
    ref = x.log_softmax(-1).gather(-1, ids[:n].long()[:, None])[:, 0]
    relative = compare("log p", logprobs[:n], ref, 3e-5)
    again, again_p = poisoned(n + 1, dtype=I32), poisoned(n + 1)
    draw(n, logits, ld, V, cap, inverse, random, again, again_p)
    same_bits("second run", again[:n], ids[:n])
    same_bits("log p, second run", again_p[:n], logprobs[:n])
    draw(1, logits[n - 1], ld, V, cap, inverse[n - 1 :], random[n - 1 :], again, again_p)
    same_bits("row alone", again[:1], ids[n - 1 : n])
    same_bits("log p, row alone", again_p[:1], logprobs[n - 1 : n])
    logits[0, V // 2] = math.nan
    draw(n, logits, ld, V, cap, inverse, random, again, again_p)
    if int(again[0]) != -1:
        raise Wrong("ids: a token of logits that are no numbers")
    same_bits("beside a row without numbers", again[1:n], ids[1:n])
    return relative


def draw_timing(V, n, temperature):
    n_sets = max(2, min(64, BYTES_OF_SETS // (4 * V * n)))
    logits, ids, p = normal(n_sets, n, V), poisoned(n, dtype=I32), poisoned(n)
    inverse = torch.full((n,), 1 / temperature if temperature else 0.0, device=DEVICE)
    random = torch.rand(n, dtype=torch.float64, generator=GENERATOR, device=DEVICE)
    took = seconds(lambda i: draw(n, logits[i], V, V, 0.0, inverse, random, ids, p), n_sets)
    row("| draw | rows | temperature | µs | of copy |", V, n, temperature, speed(took, 4 * V * n))


def draws():
    for n, V in ((5, 128256), (3, 151936), (2, 50257), (4, 5), (3, 1003), (64, 4096), (2, 262144)):
        for ties in (False, True):
            for temperature, cap in ((0, 0.0), (1.0, 0.0), (0.7, 30.0), (1.5, 0.0)):
                guarded(f"draw, {n}×{V} at {temperature}", lambda: draw_check(n, V, ties, temperature, cap))
    for n in (1, 8, 64):
        for temperature in (0, 1.0):
            guarded("draw timing", lambda: draw_timing(128256, n, temperature))


def main():
    load_kernels()
    measure_copy()
    linears()
    attentions()
    loras()
    draws()
    torch.cuda.empty_cache()
    linear_timings()
    torch.cuda.empty_cache()
    attention_timings()
    torch.cuda.empty_cache()
    lora_timings()
    report()
    sys.exit(1 if FAILURES else 0)


main()
