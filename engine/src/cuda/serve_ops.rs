//! Owns how the kernels of generation are started. Each gives a row the same bits whatever rows are beside it.

use super::gpu::{CudaError, Gpu, Launch, launch};
use super::memory::{Format, Matrix};
use super::ops::{HEAD_DIMS, int};
use crate::config::ModelConfig;

/// Rows that `skinny_linear` takes at most.
const MOST_ROWS: usize = 64;

/// `linear_ROWS`, its rows and its dynamic shared memory in bytes.
static CLUSTER_LINEARS: [(&str, usize, u32); 5] = [
    ("linear_8", 8, 104_448),
    ("linear_16", 16, 110_592),
    ("linear_32", 32, 102_400),
    ("linear_64", 64, 98_304),
    ("linear_128", 128, 196_608),
];

/// Rows of W that a cluster of `linear_*` has.
const CLUSTER_ROWS: usize = 128;

/// How many blocks share the columns of a W of so many tiles. Two of them fit a multiprocessor of a Hopper card, which has 132, in groups that large
/// clusters do not fill; one that has nearly a block for each place is divided once more, so that none ends much later. No card's own
/// number: all are to give the same bits.
fn blocks_of_cluster(n_tiles: usize) -> usize {
    match n_tiles {
        0..192 => (192 / n_tiles.max(1)).clamp(1, 6),
        192..512 => 2,
        _ => 1,
    }
}

/// Numbers of W from which `linear_*` is faster than `skinny_linear`.
const CLUSTER_NUMBERS: usize = 1 << 22;

/// Dynamic shared memory of `skinny_linear`. Bytes.
const LINEAR_SHARED: u32 = 98304;

/// Keys that one block of the attention has at a time.
const CHUNK: usize = 256;

/// Tokens of a page.
pub(super) const PAGE: usize = 64;

/// Rows whose attention is computed at once: what its parts take of memory.
pub(super) const ATTENTION_ROWS: usize = 64;

/// Rows of a segment of `grouped_lora_*`.
pub(super) const SEGMENT_ROWS: usize = 16;

/// Dynamic shared memory of `grouped_lora_shrink`. Bytes.
const SHRINK_SHARED: u32 = 24576;

static LINEARS: [[&str; 2]; 4] = [
    ["skinny_linear_8_16", "skinny_linear_8_32"],
    ["skinny_linear_16_16", "skinny_linear_16_32"],
    ["skinny_linear_32_16", "skinny_linear_32_32"],
    ["skinny_linear_64_16", "skinny_linear_64_32"],
];

static ATTENTIONS: [[&str; 2]; 4] = [
    ["decode_attention_64", "decode_attention_64_wide"],
    ["decode_attention_96", "decode_attention_96_wide"],
    ["decode_attention_128", "decode_attention_128_wide"],
    ["decode_attention_256", "decode_attention_256_wide"],
];

/// Dynamic shared memory of an attention, by its channels and whether its groups are wide. Bytes.
fn attention_shared(variant: usize, is_wide: bool) -> u32 {
    match (HEAD_DIMS[variant], is_wide) {
        (96, _) => 73728,
        (256, true) => 66560,
        _ => 65536,
    }
}

/// Every kernel here that takes more than 48 KiB of dynamic shared memory, which has to be asked for.
pub(super) fn large() -> Vec<(&'static str, u32)> {
    let linears = LINEARS.iter().flatten().map(|name| (*name, LINEAR_SHARED));
    let clusters = CLUSTER_LINEARS
        .iter()
        .map(|&(name, _, shared)| (name, shared));
    let attentions = ATTENTIONS.iter().enumerate().flat_map(|(variant, names)| {
        let shared = [false, true].map(|is_wide| attention_shared(variant, is_wide));
        names.iter().copied().zip(shared)
    });
    linears.chain(clusters).chain(attentions).collect()
}

/// Where a product goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    Become,
    /// An f32 result is added to what is there.
    Add,
}

/// What a product multiplies with.
#[derive(Clone, Copy)]
pub(super) struct Weights {
    /// (n, k)
    pub w: Matrix,
    /// (n) in the format of what the product gives, or 0.
    pub bias: u64,
    /// Whether the kernel before wrote `w`: the products ask for it before they wait.
    pub is_fresh: bool,
}

/// What adapters change of a product.
#[derive(Clone, Copy)]
pub(super) struct Change {
    pub segments: Segments,
    /// Those of one fused linear.
    pub adapters: u64,
    /// Room for x·s·Aᵀ, (rows, ranks) in f32.
    pub h: Matrix,
}

/// As [`linear`], with what adapters change added.
pub(super) fn changed_linear(
    gpu: &Gpu,
    x: Matrix,
    weights: Weights,
    change: Option<Change>,
    y: Matrix,
    to: To,
) -> Result<(), CudaError> {
    linear(gpu, x, weights, y, to)?;
    let Some(change) = change else {
        return Ok(());
    };
    // It runs beside the product, on multiprocessors that have room for it: it reads x without waiting, which only the kernel before it makes sure of.
    grouped_lora_shrink(gpu, change, x)?;
    grouped_lora_expand(gpu, change, y)
}

/// y = x·Wᵀ + bias, or added to y. Shapes: `x` (rows, k), `y` (rows, n) in bf16 or f32.
pub(super) fn linear(
    gpu: &Gpu,
    x: Matrix,
    weights: Weights,
    y: Matrix,
    to: To,
) -> Result<(), CudaError> {
    let Weights { w, bias, is_fresh } = weights;
    let mode = match (y.format, to) {
        (Format::Bf16, _) => 0,
        (Format::F32, To::Become) => 1,
        (Format::F32, To::Add) => 2,
    };
    // Chosen by the shape of W alone: row i of y has the same bits whatever rows are beside it.
    if gpu.capability() == (9, 0) && w.rows * w.columns >= CLUSTER_NUMBERS {
        return cluster_linear(gpu, x, weights, y, mode);
    }
    let is_tall = w.rows >= 4096;
    let of_block = if is_tall { 32 } else { 16 };
    for first in (0..x.rows).step_by(MOST_ROWS) {
        let end = x.rows.min(first + MOST_ROWS);
        let (x, y) = (x.rows(first, end), y.rows(first, end));
        // 8, 16, 32 or 64 rows.
        let size = x.rows.div_ceil(8).next_power_of_two().trailing_zeros() as usize;
        let how = Launch {
            grid: (w.rows.div_ceil(of_block) as u32, 1, 1),
            block: 256,
            shared: LINEAR_SHARED,
            cluster: 1,
            waits: is_fresh,
        };
        launch!(
            gpu, LINEARS[size][usize::from(is_tall)], how;
            x.at, int(x.pitch), w.at, int(w.pitch), bias, y.at, int(y.pitch), mode, int(x.rows), int(w.rows), int(w.columns)
        )?;
    }
    Ok(())
}

/// The same by clusters of blocks that share the columns of W.
fn cluster_linear(
    gpu: &Gpu,
    x: Matrix,
    weights: Weights,
    y: Matrix,
    mode: i32,
) -> Result<(), CudaError> {
    let Weights { w, bias, is_fresh } = weights;
    let fits = CLUSTER_LINEARS.iter().find(|(_, rows, _)| x.rows <= *rows);
    let &(name, rows, shared) = fits.unwrap_or(&CLUSTER_LINEARS[CLUSTER_LINEARS.len() - 1]);
    let n_tiles = w.rows.div_ceil(CLUSTER_ROWS);
    let cluster = blocks_of_cluster(n_tiles);
    let how = Launch {
        grid: (x.rows.div_ceil(rows) as u32, (n_tiles * cluster) as u32, 1),
        block: 256,
        shared,
        cluster: cluster as u32,
        waits: is_fresh,
    };
    launch!(
        gpu, name, how;
        x.at, int(x.pitch), w.at, int(w.pitch), bias, y.at, int(y.pitch), mode, int(x.rows), int(w.rows), int(w.columns)
    )
}

/// Where the rows of a step belong.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Rows {
    pub n: usize,
    /// The sequence of each row, and its position there.
    pub sequences: u64,
    pub positions: u64,
    /// The pages of each sequence, (sequences, `max_pages`).
    pub page_table: u64,
    pub max_pages: usize,
    /// Tokens of the longest sequence, with those of this step; see [`rounded_length`].
    pub longest: usize,
}

/// The longest length is rounded up, so that a step differs in its tokens alone from those before it. Tokens.
pub(super) fn rounded_length(longest: usize) -> usize {
    longest.next_multiple_of(CHUNK)
}

/// Keys and values of a layer, each (pages, K, 64, C).
#[derive(Clone, Copy)]
pub(super) struct LayerPages {
    pub keys: u64,
    pub values: u64,
}

/// Puts keys and values of the step's rows where they belong.
pub(super) fn append(
    gpu: &Gpu,
    config: &ModelConfig,
    rows: Rows,
    pages: LayerPages,
    qkv: Matrix,
) -> Result<(), CudaError> {
    launch!(
        gpu, "kv_append", Launch::blocks(rows.n, 128);
        qkv.at, int(qkv.pitch), rows.sequences, rows.positions, rows.page_table, int(rows.max_pages), pages.keys,
        pages.values, int(rows.n), int(config.num_attention_heads), int(config.num_key_value_heads), int(config.head_dim)
    )
}

/// What the attention's parts take for the longest sequence: numbers of their sums, and pairs of largest and total.
pub(super) fn attention_scratch(config: &ModelConfig, longest: usize) -> (usize, usize) {
    let parts = ATTENTION_ROWS * config.num_attention_heads * longest.div_ceil(CHUNK);
    (parts * config.head_dim, parts)
}

/// Each row attends to what its sequence has up to its position. `scratch` is as large as [`attention_scratch`] says.
#[allow(clippy::too_many_arguments)]
pub(super) fn attention(
    gpu: &Gpu,
    config: &ModelConfig,
    layer: usize,
    rows: Rows,
    pages: LayerPages,
    qkv: Matrix,
    out: Matrix,
    (partial, stats): (u64, u64),
) -> Result<(), CudaError> {
    let (n_heads, n_kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
    let variant = HEAD_DIMS.iter().position(|&dim| dim == config.head_dim);
    let variant =
        variant.expect("a base was brought here that the kernels do not know — a bug in `base`");
    let group = n_heads / n_kv_heads;
    let is_wide = group > 8;
    let n_parts = n_kv_heads * group.div_ceil(if is_wide { 16 } else { 8 });
    let n_splits = rows.longest.div_ceil(CHUNK);
    let softcap = config.attn_logit_softcapping.unwrap_or(0.0);
    let window = int(config.layers[layer].sliding_window.unwrap_or(0));
    for first in (0..rows.n).step_by(ATTENTION_ROWS) {
        let end = rows.n.min(first + ATTENTION_ROWS);
        let (qkv, out) = (qkv.rows(first, end), out.rows(first, end));
        let at = 4 * first as u64;
        let (sequences, positions) = (rows.sequences + at, rows.positions + at);
        let how = Launch {
            grid: (n_splits as u32, n_parts as u32, (end - first) as u32),
            block: 128,
            shared: attention_shared(variant, is_wide),
            cluster: 1,
            waits: false,
        };
        launch!(
            gpu, ATTENTIONS[variant][usize::from(is_wide)], how;
            qkv.at, int(qkv.pitch), sequences, positions, rows.page_table, int(rows.max_pages), pages.keys, pages.values,
            partial, stats, int(n_splits), int(CHUNK), config.attention_scale, softcap, window, int(n_heads),
            int(n_kv_heads), out.at, int(out.pitch)
        )?;
        // One chunk is all of it.
        if n_splits == 1 {
            continue;
        }
        let how = Launch {
            grid: (n_heads as u32, (end - first) as u32, 1),
            block: 256,
            shared: 0,
            cluster: 1,
            waits: false,
        };
        launch!(
            gpu, "decode_attention_combine", how;
            partial, stats, int(n_splits), int(CHUNK), window, sequences, positions, out.at, int(out.pitch), int(n_heads),
            int(config.head_dim)
        )?;
    }
    Ok(())
}

/// A token of each row of `logits` (rows, V), and its log p: i32, −1 where the logits are no numbers, and f32. `draws`: inverse temperatures in f32, 0
/// for the likeliest, and random numbers of [0, 1) in f64.
pub(super) fn draw(
    gpu: &Gpu,
    logits: Matrix,
    vocab: usize,
    softcap: f32,
    (inverse, random): (u64, u64),
    (tokens, logprobs): (u64, u64),
) -> Result<(), CudaError> {
    launch!(
        gpu, "draw_token", Launch::blocks(logits.rows, 1024);
        logits.at, int(logits.pitch), int(vocab), softcap, inverse, random, tokens, logprobs
    )
}

/// A part of an adapter's change of a fused linear: the layout of the kernels' `Part`.
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct AdapterPart {
    pub b: u64,
    pub b_pitch: i32,
    pub first_column: i32,
    pub n_columns: i32,
    pub first_rank: i32,
    pub n_ranks: i32,
    pub unused: i32,
}

/// An adapter's change of a fused linear: the layout of the kernels' `Adapter`.
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct AdapterLinear {
    pub a: u64,
    pub a_pitch: i32,
    pub n_ranks: i32,
    pub n_parts: i32,
    pub unused: i32,
    pub parts: [AdapterPart; 3],
}

/// Rows that adapters change, in segments of up to 16 of one adapter.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Segments {
    pub n: usize,
    /// {first, rows, adapter} each; the number of them; what `first` counts in.
    pub segments: u64,
    pub n_segments: u64,
    pub rows: u64,
    /// The largest rank, and the most blocks of an expansion, over the adapters that are there.
    pub most_ranks: usize,
    pub most_blocks: usize,
}

/// Columns that a block of `grouped_lora_expand` has.
pub(super) const EXPAND_COLUMNS: usize = 256;

/// h = x·s·Aᵀ for the rows of the segments, (rows, ranks) in f32, with `adapters` those of one fused linear.
fn grouped_lora_shrink(gpu: &Gpu, change: Change, x: Matrix) -> Result<(), CudaError> {
    let Change {
        segments,
        adapters,
        h,
    } = change;
    let how = Launch {
        grid: (segments.most_ranks.div_ceil(8) as u32, segments.n as u32, 1),
        block: 256,
        shared: SHRINK_SHARED,
        cluster: 1,
        waits: false,
    };
    launch!(
        gpu, "grouped_lora_shrink", how;
        x.at, int(x.pitch), adapters, segments.segments, segments.n_segments, segments.rows, h.at, int(h.pitch),
        int(x.columns)
    )
}

/// y += h·Bᵀ for the rows of the segments.
fn grouped_lora_expand(gpu: &Gpu, change: Change, y: Matrix) -> Result<(), CudaError> {
    let Change {
        segments,
        adapters,
        h,
    } = change;
    let name = match y.format {
        Format::Bf16 => "grouped_lora_expand",
        Format::F32 => "grouped_lora_expand_f32",
    };
    let how = Launch {
        grid: (segments.most_blocks as u32, segments.n as u32, 1),
        block: 128,
        shared: 0,
        cluster: 1,
        waits: false,
    };
    launch!(
        gpu, name, how;
        y.at, int(y.pitch), h.at, int(h.pitch), adapters, segments.segments, segments.n_segments, segments.rows
    )
}
