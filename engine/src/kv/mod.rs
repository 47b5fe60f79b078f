//! Owns the keys and values of sequences, in pages that sequences with a common beginning share, and attends to them.

mod pages;
mod prefixes;

use std::ops::Range;
use std::sync::Arc;

use crate::config::ModelConfig;
use crate::cpu::element::Element;
use crate::cpu::gemm::{Left, PANEL, Right};
use crate::cpu::pool::{Pool, SharedMut};
use crate::nn::attention::{self, BLOCK, Heads, KeyValues, Queries};
pub(crate) use pages::{Page, Pages};
pub(crate) use prefixes::Beginning;

/// Tokens of a page: what attention adds up at a time.
pub(crate) const PAGE: usize = BLOCK;

/// Where a page has what: for each (block, kv head) panels of keys (C, PAGE), then panels of values (PAGE, C).
#[derive(Clone, Copy)]
pub(crate) struct PageShape {
    n_layers: usize,
    n_kv_heads: usize,
    head_dim: usize,
    /// Numbers in a word.
    per_word: usize,
}

impl PageShape {
    /// Of keys and values in `E`.
    pub fn new<E: Element>(config: &ModelConfig) -> Self {
        Self {
            n_layers: config.num_hidden_layers,
            n_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            per_word: E::PER_WORD,
        }
    }

    /// Of pages whose keys and values lie on a GPU: nothing in memory but their number.
    pub fn elsewhere() -> Self {
        Self {
            n_layers: 0,
            n_kv_heads: 0,
            head_dim: 0,
            per_word: 1,
        }
    }

    /// Words of a page.
    fn len(self) -> usize {
        self.n_layers * self.n_kv_heads * self.pair_len()
    }

    /// Words of one head's keys and values. The columns of the values are rounded up to whole panels.
    fn pair_len(self) -> usize {
        self.keys_len() + PAGE / self.per_word * self.head_dim.next_multiple_of(PANEL)
    }

    /// Words of one head's keys.
    fn keys_len(self) -> usize {
        PAGE * self.head_dim.div_ceil(self.per_word)
    }

    /// The panels of keys and those of values of one block and kv head.
    fn places(self, layer: usize, kv: usize) -> [Range<usize>; 2] {
        let len = self.pair_len();
        let start = (layer * self.n_kv_heads + kv) * len;
        let values = start + self.keys_len();
        [start..values, values..start + len]
    }
}

/// The keys and values of one sequence.
/// Invariant: there are pages for `n_cached` tokens, and those that are not full are this sequence's alone.
pub(crate) struct KvCache {
    pub pages: Vec<Arc<Page>>,
    pub n_cached: usize,
    /// What the sequence can come to.
    pub n_tokens: usize,
}

impl KvCache {
    /// Without a page, for a sequence that can come to `n_tokens`.
    pub fn new(n_tokens: usize) -> Self {
        Self {
            pages: Vec::new(),
            n_cached: 0,
            n_tokens,
        }
    }

    /// Pages that `n` more tokens need beside those that are there.
    pub fn n_missing(&self, n: usize) -> usize {
        (self.n_cached + n)
            .div_ceil(PAGE)
            .saturating_sub(self.pages.len())
    }

    /// The memory of the pages from the one of the next token on.
    fn open_pages(&mut self) -> Vec<SharedMut<u32>> {
        let open = self.pages[self.n_cached / PAGE..].iter_mut();
        open.map(|page| {
            let page = Arc::get_mut(page).expect("an open page is one sequence's — a bug in kv");
            SharedMut::new(page.words_mut())
        })
        .collect()
    }
}

/// One head's part of a sequence's pages.
struct Head<'a> {
    pages: &'a [Arc<Page>],
    places: [Range<usize>; 2],
    head_dim: usize,
}

impl<E: Element> KeyValues<E> for Head<'_> {
    fn keys(&self, block: usize) -> Right<'_, E> {
        Right::panels(
            &self.pages[block].words()[self.places[0].clone()],
            self.head_dim,
        )
    }

    fn values(&self, block: usize) -> Right<'_, E> {
        Right::panels(&self.pages[block].words()[self.places[1].clone()], PAGE)
    }
}

/// New rows of one sequence, at the positions after those it has cached; there are pages for them.
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
pub(crate) fn attend<E: Element>(
    pool: &Pool,
    heads: Heads,
    shape: PageShape,
    layer: usize,
    spans: &mut [Span<'_>],
    qkv: &[E],
    out: &mut [E],
) {
    append(pool, heads, shape, layer, spans, qkv);
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
        let stride = if single { head_dim } else { width };
        let queries = Queries {
            q: Left::rows(&qkv[row * width + column..], stride),
            rows: if single { heads.group() } else { n },
            scores: heads.scores,
            first_seen: cache.n_cached + start + 1,
            seen_step: usize::from(!single),
        };
        let of_head = Head {
            pages: &cache.pages,
            places: shape.places(layer, kv),
            head_dim,
        };
        let mut lse = [0.0; BLOCK];
        let out_stride = if single { head_dim } else { query_size };
        // SAFETY: each piece has its own rows and columns of `out`.
        unsafe {
            queries.attend(
                &of_head,
                head_dim,
                out.skip(row * query_size + column),
                out_stride,
                &mut lse[..queries.rows],
            )
        };
    });
}

fn append<E: Element>(
    pool: &Pool,
    heads: Heads,
    shape: PageShape,
    layer: usize,
    spans: &mut [Span<'_>],
    qkv: &[E],
) {
    let (width, head_dim) = (heads.qkv_size(), heads.head_dim);
    let open: Vec<_> = spans
        .iter_mut()
        .map(|span| span.cache.open_pages())
        .collect();
    let spans = &*spans;
    pool.run(spans.len() * heads.n_kv_heads, |task| {
        let (span, kv) = (task / heads.n_kv_heads, task % heads.n_kv_heads);
        let Span { rows, cache } = &spans[span];
        for (i, row) in rows.clone().enumerate() {
            let at = cache.n_cached + i;
            let page = open[span][at / PAGE - cache.n_cached / PAGE];
            // SAFETY: each (span, kv head) has its own keys and values in pages that are the span's alone.
            let [keys, values] = shape
                .places(layer, kv)
                .map(|place| unsafe { page.slice(place) });
            let qkv = &qkv[row * width..(row + 1) * width];
            let key = &qkv[heads.key_column(kv)..][..head_dim];
            attention::put_key(key, at % PAGE, keys);
            let value = &qkv[heads.value_column(kv)..][..head_dim];
            attention::put_value(value, at % PAGE, PAGE, values);
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
