//! Owns how each kernel is started: its arguments in order, and how many blocks of how many threads. What a kernel computes stands
//! beside it in `engine/kernels`.

use super::base::{QkNormWeights, Rotation};
use super::gpu::{CudaError, Gpu, Launch, launch};
use super::memory::{Format, Matrix};
use super::room::Tables;
use crate::config::{self, ModelConfig};

/// Channels that a head may have.
pub(super) const HEAD_DIMS: [usize; 4] = [64, 96, 128, 256];

/// Numbers of a row that the norms can read: 16 a thread.
pub(super) const MOST_WIDTH: usize = 16384;

/// Rows of a matrix.
#[derive(Clone, Copy)]
pub(super) enum Rows {
    All,
    /// Those that a list on the GPU names.
    Named(u64),
}

impl Rows {
    fn at(self) -> u64 {
        match self {
            Rows::All => 0,
            Rows::Named(at) => at,
        }
    }
}

pub(super) fn int(n: usize) -> i32 {
    i32::try_from(n).expect("sizes fit 31 bits — the model's or the pass's would not")
}

/// Threads of a block that has one row of `width` numbers.
fn row_threads(width: usize) -> u32 {
    (width.div_ceil(8).next_multiple_of(32) as u32).clamp(64, 1024)
}

fn of_rows(n_rows: usize, width: usize) -> Launch {
    Launch::blocks(n_rows, row_threads(width))
}

/// Blocks for work on `n` items in any grid.
fn of_items(gpu: &Gpu, n: usize) -> Launch {
    let most = 8 * gpu.n_multiprocessors() as usize;
    Launch::blocks(n.div_ceil(256).min(most), 256)
}

/// Uniform numbers in ±amplitude.
pub(super) fn fill_uniform(
    gpu: &Gpu,
    out: Matrix,
    amplitude: f32,
    seed: u32,
) -> Result<(), CudaError> {
    let how = of_items(gpu, out.rows * out.columns);
    let (rows, columns, pitch) = (int(out.rows), int(out.columns), int(out.pitch));
    launch!(gpu, "fill_uniform", how; out.at, rows, columns, pitch, amplitude, seed)
}

/// Random bits. Bytes.
pub(super) fn fill_bits(gpu: &Gpu, at: u64, n: usize, seed: u32) -> Result<(), CudaError> {
    launch!(gpu, "fill_bits", of_items(gpu, n.div_ceil(4)); at, n.div_ceil(4) as u64, seed)
}

fn unpacking(gpu: &Gpu, to: Matrix) -> Launch {
    let threads = (to.columns.div_ceil(8).next_multiple_of(32) as u32).clamp(64, 512);
    let most = (gpu.n_multiprocessors() * 2048 / threads) as usize;
    Launch::blocks(to.rows.min(most), threads)
}

/// NF4 → bf16; with scales in 8 bits `scales` is 0 and `double` has their codes, their own scales and their mean.
pub(super) fn dequantize_nf4(
    gpu: &Gpu,
    codes: u64,
    scales: u64,
    (differences, absmax, offset): (u64, u64, f32),
    to: Matrix,
) -> Result<(), CudaError> {
    launch!(
        gpu, "dequantize_nf4", unpacking(gpu, to);
        codes, scales, differences, absmax, offset, to.at, int(to.pitch), int(to.rows), int(to.columns)
    )
}

/// Codes with a scale for each row → bf16, by the kernel of their kind: `dequantize_int8`, `dequantize_fp8`.
pub(super) fn dequantize_row_wise(
    gpu: &Gpu,
    kernel: &'static str,
    codes: u64,
    scales: u64,
    to: Matrix,
) -> Result<(), CudaError> {
    launch!(
        gpu, kernel, unpacking(gpu, to);
        codes, scales, to.at, int(to.pitch), int(to.rows), int(to.columns)
    )
}

/// A bf16 matrix becomes 0.
pub(super) fn clear_matrix(gpu: &Gpu, out: Matrix) -> Result<(), CudaError> {
    fill_uniform(gpu, out, 0.0, 0)
}

/// stream[i] = table[tokens[i]]·scale.
pub(super) fn embed(
    gpu: &Gpu,
    tokens: u64,
    table: Matrix,
    scale: f32,
    stream: Matrix,
) -> Result<(), CudaError> {
    let (n, width) = (stream.rows, stream.columns);
    launch!(gpu, "embed", of_rows(n, 2 * width); tokens, table.at, int(table.pitch), scale, stream.at, int(n), int(width))
}

/// Copies a bf16 matrix.
pub(super) fn copy(gpu: &Gpu, from: Matrix, to: Matrix) -> Result<(), CudaError> {
    if from.columns == 0 || from.rows == 0 {
        return Ok(());
    }
    let how = of_items(gpu, from.rows * from.columns.div_ceil(8));
    launch!(
        gpu, "copy_columns", how;
        from.at, int(from.pitch), to.at, int(to.pitch), int(from.rows), int(from.columns)
    )
}

/// Copies a stream.
pub(super) fn copy_stream(gpu: &Gpu, from: Matrix, to: Matrix) -> Result<(), CudaError> {
    // f32 without room between rows: as many pairs of bf16 in one row each.
    let pairs = |stream: Matrix| Matrix {
        format: Format::Bf16,
        columns: 2 * stream.columns,
        pitch: 2 * stream.columns,
        ..stream
    };
    copy(gpu, pairs(from), pairs(to))
}

/// out = bf16 of the normed rows of a stream, or of the rows themselves where `weight` is 0.
pub(super) fn norm_forward(
    gpu: &Gpu,
    x: Matrix,
    rows: Rows,
    weight: u64,
    eps: f32,
    out: Matrix,
    rstd: u64,
) -> Result<(), CudaError> {
    let (n, width) = (out.rows, x.columns);
    launch!(
        gpu, "norm_forward", of_rows(n, width);
        x.at, rows.at(), weight, eps, out.at, int(out.pitch), rstd, int(n), int(width)
    )
}

/// stream += the gradient of what was normed; `rounded` becomes bf16 of the new stream.
pub(super) fn norm_backward(
    gpu: &Gpu,
    d: Matrix,
    x: Matrix,
    weight: u64,
    rstd: u64,
    stream: Matrix,
    rounded: Matrix,
) -> Result<(), CudaError> {
    let (n, width) = (x.rows, x.columns);
    launch!(
        gpu, "norm_backward", of_rows(n, width);
        d.at, int(d.pitch), x.at, weight, rstd, stream.at, rounded.at, int(rounded.pitch), int(n), int(width)
    )
}

/// Named rows of `stream` become the gradients of those rows of `x`.
pub(super) fn norm_backward_rows(
    gpu: &Gpu,
    d: Matrix,
    x: Matrix,
    rows: u64,
    weight: u64,
    rstd: u64,
    stream: Matrix,
) -> Result<(), CudaError> {
    let (n, width) = (d.rows, x.columns);
    launch!(
        gpu, "norm_backward_rows", of_rows(n, width);
        d.at, x.at, rows, weight, rstd, stream.at, int(n), int(width)
    )
}

/// The factors of the norm of each row of a bf16 matrix.
pub(super) fn norm_factors(gpu: &Gpu, y: Matrix, eps: f32, rstd: u64) -> Result<(), CudaError> {
    let (n, width) = (y.rows, y.columns);
    launch!(gpu, "norm_factors", of_rows(n, width); y.at, int(y.pitch), eps, rstd, int(n), int(width))
}

/// stream += the normed rows.
pub(super) fn norm_add(
    gpu: &Gpu,
    y: Matrix,
    weight: u64,
    rstd: u64,
    stream: Matrix,
) -> Result<(), CudaError> {
    let (n, width) = (y.rows, y.columns);
    launch!(
        gpu, "norm_add", of_rows(n, width);
        y.at, int(y.pitch), weight, rstd, stream.at, int(n), int(width)
    )
}

/// `d`, the gradient of normed rows, becomes that of `y`.
pub(super) fn norm_backward_in_place(
    gpu: &Gpu,
    y: Matrix,
    weight: u64,
    rstd: u64,
    d: Matrix,
) -> Result<(), CudaError> {
    let (n, width) = (y.rows, y.columns);
    launch!(
        gpu, "norm_backward_in_place", of_rows(n, width);
        y.at, int(y.pitch), weight, rstd, d.at, int(d.pitch), int(n), int(width)
    )
}

/// out = bf16 of a stream.
pub(super) fn round_rows(gpu: &Gpu, x: Matrix, out: Matrix) -> Result<(), CudaError> {
    let (n, width) = (x.rows, x.columns);
    launch!(gpu, "round_rows", of_rows(n, width); x.at, out.at, int(out.pitch), int(n), int(width))
}

/// Cosine and sine of rows at `positions`.
pub(super) fn rope_angles(
    gpu: &Gpu,
    positions: u64,
    rotation: Rotation,
    (cos, sin): (u64, u64),
    n_rows: usize,
    half: usize,
) -> Result<(), CudaError> {
    let how = of_items(gpu, n_rows * half);
    launch!(
        gpu, "rope_angles", how;
        positions, rotation.frequencies, rotation.factor, cos, sin, int(n_rows), int(half)
    )
}

/// Turns queries and keys in place; `direction` is 1, or −1 for gradients.
pub(super) fn rope_rotate(
    gpu: &Gpu,
    config: &ModelConfig,
    is_interleaved: bool,
    qkv: Matrix,
    (cos, sin): (u64, u64),
    direction: f32,
) -> Result<(), CudaError> {
    let n_rotated = config.num_attention_heads + config.num_key_value_heads;
    launch!(
        gpu, "rope_rotate", Launch::blocks(qkv.rows, 256);
        qkv.at, int(qkv.pitch), cos, sin, int(qkv.rows), int(n_rotated), int(config.head_dim),
        int(config.rotary_dim), i32::from(is_interleaved), direction
    )
}

/// The norms of queries and keys of a model.
#[derive(Debug, Clone, Copy)]
pub(super) struct QkNorm {
    /// Channels of one norm of q, and of k.
    q_span: usize,
    k_span: usize,
    query_size: usize,
    key_size: usize,
}

impl QkNorm {
    pub fn of(config: &ModelConfig) -> Option<Self> {
        let (query_size, key_size) = (config.query_size(), config.key_value_size());
        let (q_span, k_span) = match config.qk_norm {
            config::QkNorm::None => return None,
            config::QkNorm::PerHead => (config.head_dim, config.head_dim),
            config::QkNorm::Projection => (query_size, key_size),
        };
        Some(Self {
            q_span,
            k_span,
            query_size,
            key_size,
        })
    }

    /// Norms of a row.
    pub fn n_groups(&self) -> usize {
        self.query_size / self.q_span + self.key_size / self.k_span
    }

    /// Threads that share one norm, and the blocks for `n_rows`.
    fn launch(&self, n_rows: usize) -> (usize, Launch) {
        let team = self.q_span.div_ceil(8).next_power_of_two().min(32);
        (team, Launch::threads(n_rows * self.n_groups() * team, 256))
    }
}

/// Norms q and k in place; `raw` keeps what they were and `rstd` the factors.
pub(super) fn qk_norm_forward(
    gpu: &Gpu,
    norm: QkNorm,
    weights: QkNormWeights,
    eps: f32,
    qkv: Matrix,
    raw: Matrix,
    rstd: u64,
) -> Result<(), CudaError> {
    let (team, how) = norm.launch(qkv.rows);
    launch!(
        gpu, "qk_norm_forward", how;
        qkv.at, int(qkv.pitch), weights.q, int(norm.q_span), weights.k, int(norm.k_span), eps, raw.at,
        int(raw.pitch), rstd, int(qkv.rows), int(norm.query_size), int(norm.key_size), int(team)
    )
}

/// The gradients of normed q and k become those of what they were.
pub(super) fn qk_norm_backward(
    gpu: &Gpu,
    norm: QkNorm,
    weights: QkNormWeights,
    raw: Matrix,
    rstd: u64,
    d_qkv: Matrix,
) -> Result<(), CudaError> {
    let (team, how) = norm.launch(d_qkv.rows);
    launch!(
        gpu, "qk_norm_backward", how;
        d_qkv.at, int(d_qkv.pitch), weights.q, int(norm.q_span), weights.k, int(norm.k_span), raw.at,
        int(raw.pitch), rstd, int(d_qkv.rows), int(norm.query_size), int(norm.key_size), int(team)
    )
}

fn glu_launch(n_rows: usize, inner: usize) -> Launch {
    let threads = (inner.div_ceil(8).next_multiple_of(32) as u32).clamp(64, 256);
    Launch {
        grid: (
            n_rows as u32,
            inner.div_ceil(8).div_ceil(threads as usize) as u32,
            1,
        ),
        block: threads,
        shared: 0,
        cluster: 1,
        waits: false,
    }
}

/// inner = act(gate) ∘ up.
pub(super) fn glu_forward(
    gpu: &Gpu,
    gate_up: Matrix,
    to: Matrix,
    inner: usize,
    act: i32,
) -> Result<(), CudaError> {
    launch!(
        gpu, "glu_forward", glu_launch(gate_up.rows, inner);
        gate_up.at, int(gate_up.pitch), to.at, int(to.pitch), int(gate_up.rows), int(inner), act
    )
}

/// Gate and up become their gradients; `product` becomes act(gate) ∘ up again.
pub(super) fn glu_backward(
    gpu: &Gpu,
    d: Matrix,
    gate_up: Matrix,
    product: Option<Matrix>,
    inner: usize,
    act: i32,
) -> Result<(), CudaError> {
    let (product, pitch) = product.map_or((0, 0), |product| (product.at, product.pitch));
    launch!(
        gpu, "glu_backward", glu_launch(gate_up.rows, inner);
        d.at, int(d.pitch), gate_up.at, int(gate_up.pitch), product, int(pitch), int(gate_up.rows), int(inner), act
    )
}

/// What the attention of a layer is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    scale: f32,
    /// 0: none.
    softcap: f32,
    /// 0: none.
    window: usize,
}

impl Heads {
    pub fn new(config: &ModelConfig, layer: usize) -> Self {
        Self {
            n_heads: config.num_attention_heads,
            n_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            scale: config.attention_scale,
            softcap: config.attn_logit_softcapping.unwrap_or(0.0),
            window: config.layers[layer].sliding_window.unwrap_or(0),
        }
    }

    /// Which of the kernels' variants it is.
    fn variant(&self) -> usize {
        let found = HEAD_DIMS.iter().position(|&dim| dim == self.head_dim);
        found.expect("a base was brought here that the kernels do not know — a bug in `base`")
    }
}

/// What a block of an attention kernel takes, by its channels.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AttentionShape {
    /// Rows of a document that one block has.
    pub tile: usize,
    pub threads: u32,
    pub shared: u32,
}

/// Pieces of documents, each as {first row, first row of its document, end of its document, 0}, those with most work first: of
/// queries, which see what lies before them, or of keys.
pub(super) fn tiles(
    documents: &[std::ops::Range<usize>],
    tile: usize,
    of_keys: bool,
) -> Vec<[i32; 4]> {
    let pieces = documents.iter().flat_map(|document| {
        let starts = document.clone().step_by(tile);
        starts.map(|first| [int(first), int(document.start), int(document.end), 0])
    });
    let mut tiles: Vec<_> = pieces.collect();
    tiles.sort_by_key(|&[first, start, end, _]| {
        std::cmp::Reverse(if of_keys { end - first } else { first - start })
    });
    tiles
}

/// Parts of each group of query heads that the gradients of keys and values are computed in, so that few heads and rows still
/// give work to every multiprocessor.
pub(super) fn kv_parts(gpu: &Gpu, n_heads: usize, n_kv_heads: usize, n_rows: usize) -> usize {
    let group = n_heads / n_kv_heads;
    let wanted = (240 * gpu.n_multiprocessors() as usize).div_ceil(n_rows.max(1) * n_kv_heads);
    group.div_ceil(group / wanted.clamp(1, group))
}

/// What attention kernels are compiled for: one name for each number of channels.
macro_rules! variants {
    ($name:literal) => {
        [
            concat!($name, "_64"),
            concat!($name, "_96"),
            concat!($name, "_128"),
            concat!($name, "_256"),
        ]
    };
}

pub(super) static FORWARD: [&str; 4] = variants!("attention_forward");
pub(super) static BACKWARD_KV: [&str; 4] = variants!("attention_backward_kv");
pub(super) static BACKWARD_Q: [&str; 4] = variants!("attention_backward_q");

/// Attention within each document, causal.
pub(super) fn attention_forward(
    gpu: &Gpu,
    heads: Heads,
    tables: &Tables,
    qkv: Matrix,
    out: Matrix,
    lse: u64,
) -> Result<(), CudaError> {
    let variant = heads.variant();
    let AttentionShape {
        threads, shared, ..
    } = gpu.attention().forward[variant];
    let how = Launch {
        grid: (tables.tiles.forward.1 as u32, heads.n_heads as u32, 1),
        block: threads,
        shared,
        cluster: 1,
        waits: false,
    };
    launch!(
        gpu, FORWARD[variant], how;
        qkv.at, int(qkv.pitch), out.at, int(out.pitch), lse, tables.tiles.forward.0, int(qkv.rows),
        int(heads.n_heads), int(heads.n_kv_heads), heads.scale, heads.softcap, int(heads.window)
    )
}

/// The gradients of q, k and v, from that of what the attention gave. `partial` has room for so many numbers of f32.
#[allow(clippy::too_many_arguments)]
pub(super) fn attention_backward(
    gpu: &Gpu,
    heads: Heads,
    tables: &Tables,
    qkv: Matrix,
    out: Matrix,
    lse: u64,
    d_out: Matrix,
    delta: u64,
    (partial, n_partial): (u64, usize),
    d_qkv: Matrix,
) -> Result<(), CudaError> {
    let (variant, n_rows) = (heads.variant(), int(qkv.rows));
    let how = Launch {
        grid: (qkv.rows.div_ceil(64) as u32, heads.n_heads as u32, 1),
        block: 256,
        shared: 0,
        cluster: 1,
        waits: false,
    };
    launch!(
        gpu, "attention_backward_delta", how;
        out.at, int(out.pitch), d_out.at, int(d_out.pitch), delta, n_rows, int(heads.n_heads), int(heads.head_dim)
    )?;
    let kv_width = 2 * heads.n_kv_heads * heads.head_dim;
    let n_parts = kv_parts(gpu, heads.n_heads, heads.n_kv_heads, qkv.rows);
    assert!(
        n_parts == 1 || n_parts * qkv.rows * kv_width <= n_partial,
        "no room for {n_parts} parts of {} rows — a bug in `room`",
        qkv.rows
    );
    let shapes = gpu.attention();
    let kernels = [
        (
            BACKWARD_KV[variant],
            shapes.backward_kv[variant],
            tables.tiles.backward_kv,
            heads.n_kv_heads * n_parts,
        ),
        (
            BACKWARD_Q[variant],
            shapes.backward_q[variant],
            tables.tiles.backward_q,
            heads.n_heads,
        ),
    ];
    for (
        name,
        AttentionShape {
            threads, shared, ..
        },
        (tiles, n_tiles),
        n_heads,
    ) in kernels
    {
        let how = Launch {
            grid: (n_tiles as u32, n_heads as u32, 1),
            block: threads,
            shared,
            cluster: 1,
            waits: false,
        };
        launch!(
            gpu, name, how;
            qkv.at, int(qkv.pitch), d_out.at, int(d_out.pitch), lse, delta, d_qkv.at, int(d_qkv.pitch), tiles,
            n_rows, int(heads.n_heads), int(heads.n_kv_heads), heads.scale, heads.softcap, int(heads.window), partial
        )?;
    }
    if n_parts > 1 {
        let how = Launch::threads(qkv.rows * kv_width / 8, 256);
        launch!(
            gpu, "attention_backward_sum", how;
            partial, int(n_parts), d_qkv.at, int(d_qkv.pitch), n_rows, int(heads.n_heads), int(heads.n_kv_heads),
            int(heads.head_dim)
        )?;
    }
    Ok(())
}

/// log p of each row's label and whether it had the largest logit; with a scale and a matrix the gradient of −Σ log p·scale, too.
#[allow(clippy::too_many_arguments)]
pub(super) fn cross_entropy(
    gpu: &Gpu,
    logits: Matrix,
    labels: u64,
    cap: f32,
    gradient: Option<(f32, Matrix)>,
    (logprobs, correct): (u64, u64),
    vocab: usize,
) -> Result<(), CudaError> {
    let name = match logits.format {
        Format::F32 => "cross_entropy_f32",
        Format::Bf16 => "cross_entropy_bf16",
    };
    let how = Launch::blocks(logits.rows, 512);
    let (scale, d_logits, pitch) =
        gradient.map_or((0.0, 0, 0), |(scale, d)| (scale, d.at, d.pitch));
    launch!(
        gpu, name, how;
        logits.at, int(logits.pitch), labels, cap, scale, logprobs, correct, d_logits, int(pitch),
        int(logits.rows), int(vocab)
    )
}

/// Adds −Σ log p and the number of right ones to two numbers of eight bytes.
pub(super) fn cross_entropy_sums(
    gpu: &Gpu,
    logprobs: u64,
    correct: u64,
    n: usize,
    sums: u64,
) -> Result<(), CudaError> {
    launch!(gpu, "cross_entropy_sums", Launch::blocks(1, 1024); logprobs, correct, int(n), sums, sums + 8)
}

/// What `adamw_*` read of a tensor: the layout of the kernels' `Tensor`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct AdamTensor {
    pub value: u64,
    pub m: u64,
    pub v: u64,
    pub grad: u64,
    /// Where bf16 of value·`out_scale` goes; 0: nowhere.
    pub out: u64,
    pub rows: i32,
    pub columns: i32,
    pub grad_pitch: i32,
    pub out_pitch: i32,
    pub grad_scale: f32,
    pub out_scale: f32,
    pub lr_ratio: f32,
    pub weight_decay: f32,
    pub unused: [u32; 2],
}

/// Elements that one block of `adamw_*` has.
pub(super) const ADAM_CHUNK: usize = 4096;

/// The numbers of a step: the layout of the kernels' `Step`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct AdamStep {
    pub lr: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    /// 1 − β₁ᵗ
    pub correction1: f32,
    /// 1/√(1 − β₂ᵗ)
    pub v_scale: f32,
}

/// The tables of `adamw_*` on the GPU.
#[derive(Clone, Copy)]
pub(super) struct Adam {
    pub tensors: u64,
    pub chunks: u64,
    pub n_chunks: usize,
    /// Eight bytes for each chunk.
    pub partial: u64,
    /// The norm of all gradients, and the factor that clips them.
    pub result: u64,
    pub step: u64,
}

impl Adam {
    /// The norm of all gradients together, and the factor that clips it.
    pub fn norm(&self, gpu: &Gpu, max_norm: f32) -> Result<(), CudaError> {
        let how = Launch::blocks(self.n_chunks, 256);
        launch!(gpu, "adamw_squares", how; self.tensors, self.chunks, self.partial)?;
        launch!(gpu, "adamw_norm", Launch::blocks(1, 1024); self.partial, int(self.n_chunks), max_norm, self.result)
    }

    /// One update, and what the passes read of the new values.
    pub fn update(&self, gpu: &Gpu) -> Result<(), CudaError> {
        let how = Launch::blocks(self.n_chunks, 256);
        launch!(gpu, "adamw_update", how; self.tensors, self.chunks, self.result, self.step)
    }

    /// What the passes read of the values as they are.
    pub fn publish(&self, gpu: &Gpu) -> Result<(), CudaError> {
        let how = Launch::blocks(self.n_chunks, 256);
        launch!(gpu, "adamw_publish", how; self.tensors, self.chunks)
    }
}
