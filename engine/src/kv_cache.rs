//! Owns the keys and values of one sequence, as panels, so that both are read as they lie.

use std::ops::Range;

use crate::config::ModelConfig;
use crate::cpu::buffer::{Buffer, OutOfMemory};
use crate::cpu::gemm::{Left, PANEL, Right};
use crate::cpu::pool::{Pool, SharedMut};
use crate::nn::attention::{self, BLOCK, Heads, Queries};

/// Invariant: `n_cached` ≤ `capacity`, which is a multiple of the panel width.
pub(crate) struct KvCache {
    /// For each (block, kv head): panels of keys (C, capacity), then panels of values (capacity, C).
    words: Buffer<u32>,
    capacity: usize,
    /// What the sequence can come to.
    pub n_tokens: usize,
    heads: Heads,
    pub n_cached: usize,
}

impl KvCache {
    /// Room for `n_tokens`.
    /// Errors: `OutOfMemory`.
    pub fn new(config: &ModelConfig, n_tokens: usize) -> Result<Self, OutOfMemory> {
        let (heads, capacity) = (Heads::new(config, 0), n_tokens.next_multiple_of(PANEL));
        let len = config.num_hidden_layers * heads.n_kv_heads * pair_len(capacity, heads.head_dim);
        Ok(Self {
            words: Buffer::zeroed(len)?,
            capacity,
            n_tokens,
            heads,
            n_cached: 0,
        })
    }

    /// The panels of keys and those of values of one block and kv head.
    fn places(&self, layer: usize, kv: usize) -> [Range<usize>; 2] {
        let len = pair_len(self.capacity, self.heads.head_dim);
        let start = (layer * self.heads.n_kv_heads + kv) * len;
        let values = start + self.capacity * self.heads.head_dim;
        [start..values, values..start + len]
    }
}

/// Words of one head's keys and values. The columns of the values are rounded up to whole panels.
fn pair_len(capacity: usize, head_dim: usize) -> usize {
    capacity * (head_dim + head_dim.next_multiple_of(PANEL))
}

/// New rows of one sequence, at the positions after those it has cached.
pub(crate) struct Span<'a> {
    pub rows: Range<usize>,
    pub cache: &'a mut KvCache,
}

/// A piece of attention that one thread computes.
struct Piece {
    span: usize,
    /// First row, and how many.
    start: usize,
    n: usize,
    /// A kv head for a single row, whose query heads then go together; a query head for a block of rows.
    head: usize,
}

/// Appends the keys and values of every span to its cache, then attends from every row to what its own sequence has
/// within the layer's window.
/// Shapes: `qkv` (T, (H+2K)·C) rotated, `out` (T, H·C).
pub(crate) fn attend(
    pool: &Pool,
    heads: Heads,
    layer: usize,
    spans: &mut [Span<'_>],
    qkv: &[f32],
    out: &mut [f32],
) {
    append(pool, heads, layer, spans, qkv);
    let pieces = pieces(heads, spans);
    let (spans, out) = (&*spans, SharedMut::new(out));
    let (width, query_size, head_dim) = (heads.qkv_size(), heads.query_size(), heads.head_dim);
    pool.run(pieces.len(), |task| {
        let Piece {
            span,
            start,
            n,
            head,
        } = pieces[task];
        let Span { rows, cache } = &spans[span];
        let row = rows.start + start;
        let single = rows.len() == 1;
        let (kv, column) = if single {
            (head, head * heads.group() * head_dim)
        } else {
            (head / heads.group(), head * head_dim)
        };
        let [keys, values] = cache.places(layer, kv);
        let stride = if single { head_dim } else { width };
        let queries = Queries {
            q: Left::rows(&qkv[row * width + column..], stride),
            rows: if single { heads.group() } else { n },
            scores: heads.scores,
            first_seen: cache.n_cached + start + 1,
            seen_step: usize::from(!single),
            keys: Right::panels(&cache.words[keys], head_dim),
            values: Right::panels(&cache.words[values], cache.capacity),
        };
        let mut lse = vec![0.0; queries.rows];
        let out_stride = if single { head_dim } else { query_size };
        // SAFETY: each piece has its own rows and columns of `out`.
        unsafe {
            queries.attend(
                head_dim,
                out.skip(row * query_size + column),
                out_stride,
                &mut lse,
            )
        };
    });
}

fn append(pool: &Pool, heads: Heads, layer: usize, spans: &mut [Span<'_>], qkv: &[f32]) {
    let (width, head_dim) = (heads.qkv_size(), heads.head_dim);
    let caches: Vec<_> = spans
        .iter_mut()
        .map(|span| SharedMut::new(&mut span.cache.words))
        .collect();
    let spans = &*spans;
    pool.run(spans.len() * heads.n_kv_heads, |task| {
        let (span, kv) = (task / heads.n_kv_heads, task % heads.n_kv_heads);
        let Span { rows, cache } = &spans[span];
        // SAFETY: each (span, kv head) has its own keys and values.
        let [keys, values] = cache
            .places(layer, kv)
            .map(|place| unsafe { caches[span].slice(place) });
        for (i, row) in rows.clone().enumerate() {
            let (at, qkv) = (cache.n_cached + i, &qkv[row * width..(row + 1) * width]);
            attention::put_key(&qkv[heads.key_column(kv)..][..head_dim], at, keys);
            let value = &qkv[heads.value_column(kv)..][..head_dim];
            attention::put_value(value, at, cache.capacity, values);
        }
    });
}

fn pieces(heads: Heads, spans: &[Span<'_>]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (span, Span { rows, .. }) in spans.iter().enumerate() {
        if rows.len() == 1 && heads.group() <= BLOCK {
            pieces.extend((0..heads.n_kv_heads).map(|head| Piece {
                span,
                start: 0,
                n: 1,
                head,
            }));
            continue;
        }
        for start in (0..rows.len()).step_by(BLOCK) {
            let n = BLOCK.min(rows.len() - start);
            pieces.extend((0..heads.n_heads).map(|head| Piece {
                span,
                start,
                n,
                head,
            }));
        }
    }
    pieces
}
