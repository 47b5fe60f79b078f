//! Owns the memory of a training's passes on a GPU, and what lies where: a plan that only counts is the estimate, the same plan over
//! memory divides it.

use std::ops::Range;

use super::base::{RANK_STEP, Shape, linear_sizes};
use super::memory::{Format, Matrix, Plan};
use super::offload::{Offload, PLACES};
use super::ops::{self, QkNorm};
use super::plan::{MemoryPlan, Streams};
use crate::config::{self, ModelConfig};
use crate::lora::{Fused, Layout, Slot};
use crate::model::MemoryLevel;

/// Rows of every pass are filled up to a multiple of this, so that few shapes of products are met.
pub(super) const ROW_STEP: usize = 128;

/// Logits that exist at once: few enough for a small card, in rows enough to fill a large one.
const CHUNK_NUMBERS: usize = 32 << 20;
const LEAST_CHUNK_ROWS: usize = 256;

/// Rows whose logits exist at once.
fn chunk_rows(vocab: usize, n_labels: usize) -> usize {
    let rows = CHUNK_NUMBERS / vocab / LEAST_CHUNK_ROWS * LEAST_CHUNK_ROWS;
    let rows = rows.max(LEAST_CHUNK_ROWS);
    rows.min(n_labels.max(1))
}

/// The changes within a fused linear, with the ranks that each has there. They begin at multiples of four, as four numbers are
/// written at once.
pub(super) fn parts(
    layout: &Layout,
    layer: usize,
    fused: Fused,
) -> impl Iterator<Item = (&Slot, Range<usize>)> {
    let mut end: usize = 0;
    layout.fused(layer, fused).iter().map(move |slot| {
        let start = end.next_multiple_of(4);
        end = start + slot.r;
        (slot, start..end)
    })
}

/// The ranks of each fused linear of each layer, all parts together.
pub(super) fn ranks(layout: &Layout) -> Vec<[usize; 4]> {
    let of = |layer, fused| {
        let ranks: usize = parts(layout, layer, fused)
            .map(|(_, ranks)| ranks.end)
            .last()
            .unwrap_or(0);
        ranks.next_multiple_of(RANK_STEP)
    };
    (0..layout.n_layers)
        .map(|layer| Fused::ALL.map(|fused| of(layer, fused)))
        .collect()
}

/// Pieces of documents for the attention's kernels: where they lie and how many they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiles {
    pub forward: (u64, usize),
    pub backward_kv: (u64, usize),
    pub backward_q: (u64, usize),
}

/// What a pass is over, in the GPU's memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tables {
    /// Rows, with those that only fill up.
    pub n_rows: usize,
    pub tokens: u64,
    pub positions: u64,
    pub tiles: Tiles,
    pub n_labels: usize,
    pub label_rows: u64,
    pub labels: u64,
}

/// What a forward keeps of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Saved {
    pub input_rstd: u64,
    /// (T, (H+K)·C) before their norms, and the factors of those.
    pub qk: Option<(Matrix, u64)>,
    pub qkv: Matrix,
    /// (T, H·C + R); the last R are x·Aᵀ.
    pub attended: Matrix,
    pub lse: u64,
    /// Before the norm after a branch, with the factors.
    pub after_attention: Option<(Matrix, u64)>,
    pub middle: Matrix,
    pub middle_rstd: u64,
    /// (T, 2F + R)
    pub gate_up: Matrix,
    pub after_mlp: Option<(Matrix, u64)>,
    /// x·Aᵀ of those whose input is computed again.
    pub h_qkv: Matrix,
    pub h_gate_up: Matrix,
    pub h_down: Matrix,
}

/// The memory of a pass.
pub(super) struct Room {
    /// Rows there is room for.
    pub n_rows: usize,
    /// Labels there is room for.
    pub n_labels: usize,
    pub keeps: MemoryPlan,
    /// The stream into each block and out of the last, (T, D); in few places by turns where they wait in host memory.
    pub streams: Vec<Matrix>,
    pub saved: Vec<Saved>,
    /// Cosine and sine of each rotation, (T, `rotary_dim`/2).
    pub angles: Vec<(u64, u64)>,
    /// (T, D + R): what the first linear of a branch reads.
    pub normed: Matrix,
    /// (T, widest input + R): what down reads, and in the backward the gradient of what any linear reads.
    pub inner: Matrix,
    /// (T, D + R): the gradient of what a branch gives.
    pub d_branch: Matrix,
    /// (T, (H+2K)·C + R)
    pub d_qkv: Matrix,
    pub d_stream: Matrix,
    pub delta: u64,
    /// What parts of a group of query heads add to the gradients of keys and values, f32, and how many numbers there is room for.
    pub kv_partial: (u64, usize),
    /// Rows that reach the head.
    pub last: Matrix,
    pub last_rstd: u64,
    pub d_last: Matrix,
    pub logits: Matrix,
    pub d_logits: Matrix,
    /// log p of the labels and whether they had the largest logit, (n) each.
    pub logprobs: u64,
    pub correct: u64,
}

impl Room {
    /// Divides memory for passes of up to `n_rows` rows with up to `n_labels` labels.
    pub fn new(
        plan: &mut Plan,
        shape: Shape<'_>,
        ranks: &[[usize; 4]],
        n_rows: usize,
        n_labels: usize,
        keeps: MemoryPlan,
    ) -> Self {
        use Format::{Bf16, F32};
        let config = shape.config;
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let (query, kv) = (config.query_size(), config.key_value_size());
        let qkv = query + 2 * kv;
        let most = |fused: Fused| ranks.iter().map(|r| r[fused as usize]).max().unwrap_or(0);
        let [r_qkv, r_o, r_gate_up, r_down] = Fused::ALL.map(most);
        let heads = config.num_attention_heads;
        let n_layers = config.num_hidden_layers;
        let n_places = match keeps.streams {
            Streams::OnGpu => n_layers + 1,
            Streams::OnHost => PLACES.min(n_layers + 1),
        };
        let places = (0..n_places).map(|_| plan.dense(F32, n_rows, width));
        let places: Vec<Matrix> = places.collect();
        let streams = (0..=n_layers).map(|i| places[i % n_places]).collect();
        let widest = inner.max(query).max(width);
        let chunk = chunk_rows(config.vocab_size, n_labels);
        let mut turns = Turns::new(plan);
        let shared_gate_up = turns.take(plan, |plan| {
            let gate_up = (!keeps.gate_up(0, n_layers))
                .then(|| plan.matrix(Bf16, n_rows, 2 * inner + r_gate_up));
            let inner = plan.matrix(Bf16, n_rows, widest + r_down);
            let d_qkv = plan.matrix(Bf16, n_rows, qkv + r_qkv);
            (gate_up, inner, d_qkv)
        });
        let (d_last, logits, d_logits) = turns.take(plan, |plan| {
            (
                plan.dense(F32, n_labels, width),
                plan.matrix(F32, chunk, config.vocab_size),
                plan.matrix(Bf16, chunk, config.vocab_size),
            )
        });
        let (shared_gate_up, inner_and_gradients, d_qkv) = shared_gate_up;
        turns.end(plan);
        let n_saved = match keeps.level {
            MemoryLevel::LayerInputs => 1,
            _ => n_layers,
        };
        let saved = (0..n_saved).map(|layer| Saved {
            input_rstd: plan.words(n_rows),
            qk: (config.qk_norm != config::QkNorm::None).then(|| {
                let n_norms = QkNorm::of(config).map_or(0, |norm| norm.n_groups());
                (
                    plan.matrix(Bf16, n_rows, query + kv),
                    plan.words(n_rows * n_norms),
                )
            }),
            qkv: plan.matrix(Bf16, n_rows, qkv),
            attended: plan.matrix(Bf16, n_rows, query + r_o),
            lse: plan.words(heads * n_rows),
            after_attention: branch(plan, !shape.gives_f32(Fused::O), n_rows, width),
            middle: plan.dense(F32, n_rows, width),
            middle_rstd: plan.words(n_rows),
            gate_up: shared_gate_up
                .filter(|_| !keeps.gate_up(layer, n_layers))
                .unwrap_or_else(|| plan.matrix(Bf16, n_rows, 2 * inner + r_gate_up)),
            after_mlp: branch(plan, !shape.gives_f32(Fused::Down), n_rows, width),
            h_qkv: plan.matrix(Bf16, n_rows, r_qkv),
            h_gate_up: plan.matrix(Bf16, n_rows, r_gate_up),
            h_down: plan.matrix(Bf16, n_rows, r_down),
        });
        let saved = saved.collect();
        let half = config.rotary_dim / 2;
        let angles =
            (0..shape.n_rotations).map(|_| (plan.words(n_rows * half), plan.words(n_rows * half)));
        let angles = angles.collect();
        // A pass of fewer rows may have more parts; how many must not depend on the room, or bits would.
        let parts_of =
            |rows| match ops::kv_parts(shape.gpu, heads, config.num_key_value_heads, rows) {
                1 => 0,
                n_parts => n_parts * rows * 2 * kv,
            };
        let rows = (ROW_STEP..=n_rows).step_by(ROW_STEP);
        let n_partial = rows.map(parts_of).max().unwrap_or(0);
        Self {
            n_rows,
            n_labels,
            keeps,
            streams,
            saved,
            angles,
            normed: plan.matrix(Bf16, n_rows, width + r_qkv.max(r_gate_up)),
            inner: inner_and_gradients,
            d_branch: plan.matrix(Bf16, n_rows, width + r_o.max(r_down)),
            d_qkv,
            d_stream: plan.dense(F32, n_rows, width),
            delta: plan.words(heads * n_rows),
            kv_partial: (plan.words(n_partial), n_partial),
            last: plan.matrix(Bf16, n_labels, width),
            last_rstd: plan.words(n_labels),
            d_last,
            logits,
            d_logits,
            logprobs: plan.words(n_labels),
            correct: plan.words(n_labels),
        }
    }

    /// What streams that leave take of the host's memory. Bytes.
    pub fn host_bytes(&self) -> u64 {
        match self.keeps.streams {
            Streams::OnGpu => 0,
            Streams::OnHost => {
                Offload::host_bytes(self.streams.len(), self.streams[0].size_bytes())
            }
        }
    }
}

/// Two sets of matrices that take turns on the same memory: what one has written the other overwrites.
struct Turns {
    start: usize,
    end: usize,
}

impl Turns {
    fn new(plan: &Plan) -> Self {
        Self {
            start: plan.used(),
            end: plan.used(),
        }
    }

    /// One of the sets.
    fn take<T>(&mut self, plan: &mut Plan, divide: impl FnOnce(&mut Plan) -> T) -> T {
        plan.go_to(self.start);
        let given = divide(plan);
        self.end = self.end.max(plan.used());
        given
    }

    /// What comes after lies behind both.
    fn end(self, plan: &mut Plan) {
        plan.go_to(self.end);
    }
}

/// What a branch gives before a norm after it, with the factors of that.
fn branch(plan: &mut Plan, has_norm: bool, n_rows: usize, width: usize) -> Option<(Matrix, u64)> {
    has_norm.then(|| (plan.matrix(Format::Bf16, n_rows, width), plan.words(n_rows)))
}

/// Gradients of the low-rank change of a fused linear, in f32: of all parts as one, those of B between the parts without meaning.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gradients {
    /// (R, k)
    pub a: Matrix,
    /// (n, R)
    pub b: Matrix,
}

impl Gradients {
    /// For each fused linear of each layer.
    pub fn plan(plan: &mut Plan, config: &ModelConfig, ranks: &[[usize; 4]]) -> Vec<[Self; 4]> {
        let sizes = linear_sizes(config);
        ranks
            .iter()
            .map(|ranks| {
                [0, 1, 2, 3].map(|i| {
                    let (k, n) = sizes[i];
                    Self {
                        a: plan.dense(Format::F32, ranks[i], k),
                        b: plan.dense(Format::F32, n, ranks[i]),
                    }
                })
            })
            .collect()
    }
}
