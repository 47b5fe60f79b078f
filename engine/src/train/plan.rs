//! Owns the choice of a memory level: how much a run of a given shape takes, and the fastest level that fits.

use super::micro_batches::MICRO_BATCH_TOKENS;
use crate::config::{ModelConfig, QkNorm};
use crate::cpu::element::Precision;
use crate::lora::AdapterShape;
use crate::model::MemoryLevel;
use crate::nn::cross_entropy::chunk_rows;

/// The shape of a run: what its memory depends on besides the base's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunShape {
    pub precision: Precision,
    /// Of the longest example, or of the longest two that share a pass. Tokens.
    pub longest: usize,
    /// Whether the adapter is also kept as it was in the beginning.
    pub keeps_first: bool,
}

impl RunShape {
    /// Tokens that a pass has at most.
    pub fn pass_tokens(&self) -> usize {
        self.longest.max(MICRO_BATCH_TOKENS)
    }
}

/// What a run takes beside the base's weights, counted from above. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainingBytes {
    /// The adapter with gradients and moments, and as the kernels read it.
    pub adapter: u64,
    /// What passes compute in, and what the level keeps of one until its backward.
    pub activations: u64,
}

impl TrainingBytes {
    /// All of it.
    pub fn total(self) -> u64 {
        self.adapter + self.activations
    }
}

/// No level fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a training pass of {tokens} tokens needs {needed} bytes even when each block runs twice, and {available} are \
     available; shorten the examples or free memory"
)]
pub struct TooLarge {
    pub tokens: usize,
    pub needed: u64,
    pub available: u64,
}

/// The first level, fastest first, whose memory is at most `available`. Bytes, beyond what the base's weights take.
/// Errors: `TooLarge`.
pub fn plan_memory(
    model: &ModelConfig,
    adapter: &AdapterShape,
    run: RunShape,
    available: u64,
) -> Result<MemoryLevel, TooLarge> {
    let levels = [
        MemoryLevel::KeepAll,
        MemoryLevel::DropGateUp,
        MemoryLevel::LayerInputs,
    ];
    let needed = |level| training_bytes(model, adapter, run, level).total();
    let fits = levels.into_iter().find(|&level| needed(level) <= available);
    fits.ok_or_else(|| TooLarge {
        tokens: run.pass_tokens(),
        needed: needed(MemoryLevel::LayerInputs),
        available,
    })
}

/// What a run takes at a level.
pub fn training_bytes(
    model: &ModelConfig,
    adapter: &AdapterShape,
    run: RunShape,
    level: MemoryLevel,
) -> TrainingBytes {
    let number = match run.precision {
        Precision::Fp32 => 4,
        Precision::Bf16 => 2,
    };
    let layers = model.num_hidden_layers as u64;
    let tokens = run.pass_tokens() as u64;
    let sizes = Sizes::new(model, adapter, number);
    let kept = match level {
        MemoryLevel::KeepAll => layers * (sizes.block + sizes.gate_up),
        MemoryLevel::DropGateUp => layers * sizes.block + sizes.gate_up,
        MemoryLevel::LayerInputs => sizes.block + sizes.gate_up,
    };
    let per_token = (layers + 1) * sizes.stream + kept + sizes.in_turn;
    let capped = model.final_logit_softcapping.map_or(0, |_| 4);
    let chunk = (chunk_rows(model.vocab_size) * model.vocab_size) as u64 * (4 + capped + number);
    // Values, gradients and both moments; the kernels read four packed copies, block-diagonal ones up to three times as large.
    let n_packed = if run.keeps_first { 8 } else { 4 };
    TrainingBytes {
        adapter: adapter.n_values() * (16 + 2 * n_packed * number),
        activations: tokens * per_token + chunk,
    }
}

/// Bytes for each token.
struct Sizes {
    /// The stream, in f32.
    stream: u64,
    /// Of one block, without gate and up.
    block: u64,
    gate_up: u64,
    /// Scratch and gradients, which every block uses in turn.
    in_turn: u64,
}

impl Sizes {
    fn new(model: &ModelConfig, adapter: &AdapterShape, number: u64) -> Self {
        let hidden = model.hidden_size as u64;
        let (inner, routing, experts) = feed_forward(model, number);
        let (query, heads) = (model.query_size() as u64, model.num_attention_heads as u64);
        let qkv = query + 2 * model.key_value_size() as u64;
        let ranks = most_ranks(adapter);
        let stream = 4 * hidden;
        let normed_qk = match model.qk_norm {
            QkNorm::None => 0,
            _ => number * (qkv - model.key_value_size() as u64) + 8 * heads,
        };
        let norms = model.norms;
        let after = [norms.after_attention, norms.after_mlp];
        let normed_branches = after.into_iter().flatten().count() as u64 * (number * hidden + 4);
        let widest = inner.max(query).max(hidden);
        Self {
            stream,
            block: number * (qkv + query + ranks)
                + stream
                + 4 * (heads + 2)
                + normed_qk
                + normed_branches
                + routing,
            gate_up: number * 2 * inner,
            in_turn: number * (2 * hidden + inner + widest + qkv + ranks)
                + 5 * stream
                // Gradients of keys and values by query head, and packed keys and values.
                + 8 * query
                + 5 * number * qkv
                + experts,
        }
    }
}

/// The ranks of all linears of a block together, in the block that has most.
fn most_ranks(adapter: &AdapterShape) -> u64 {
    let layout = adapter.layout();
    let mut of_blocks = vec![0; layout.n_layers];
    for slot in layout.slots() {
        of_blocks[slot.layer] += slot.r as u64;
    }
    of_blocks.into_iter().max().unwrap_or(0)
}

/// For each token: F of the widest feed-forward, over all experts that a token has; bytes of what a router decides, which
/// blocks keep; and of the scratch of experts, which they use in turn.
fn feed_forward(model: &ModelConfig, number: u64) -> (u64, u64, u64) {
    let dense = match model.layers.iter().all(|layer| layer.sparse) {
        true => 0,
        false => model.intermediate_size as u64,
    };
    let Some(experts) = model.experts else {
        return (dense, 0, 0);
    };
    let (n, k) = (
        experts.num_experts as u64,
        experts.num_experts_per_tok as u64,
    );
    let (hidden, inner) = (
        model.hidden_size as u64,
        k * experts.intermediate_size as u64,
    );
    let routing = 4 * n + 28 * k;
    let scratch = number * (k * hidden + inner + n + 1) + 4 * (k + hidden);
    (dense.max(inner), routing, scratch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::{LoraConfig, TargetModules};

    const SMOLLM2: &str = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":576,"intermediate_size":1536,
        "num_hidden_layers":30,"num_attention_heads":9,"num_key_value_heads":3,"vocab_size":49152,"rms_norm_eps":1e-5,
        "max_position_embeddings":8192,"rope_theta":100000.0,"tie_word_embeddings":true}"#;

    fn needed(level: MemoryLevel, precision: Precision, longest: usize) -> u64 {
        let model = ModelConfig::from_json(SMOLLM2).unwrap();
        let adapter = AdapterShape::new(&model, &LoraConfig::all_linear(16, 32.0)).unwrap();
        training_bytes(
            &model,
            &adapter,
            RunShape {
                precision,
                longest,
                keeps_first: false,
            },
            level,
        )
        .total()
    }

    #[test]
    fn the_fastest_level_that_fits_is_chosen() {
        let model = ModelConfig::from_json(SMOLLM2).unwrap();
        let adapter = AdapterShape::new(&model, &LoraConfig::all_linear(16, 32.0)).unwrap();
        let run = RunShape {
            precision: Precision::Bf16,
            longest: 4096,
            keeps_first: false,
        };
        let bytes = |level| training_bytes(&model, &adapter, run, level).total();
        for level in [
            MemoryLevel::KeepAll,
            MemoryLevel::DropGateUp,
            MemoryLevel::LayerInputs,
        ] {
            assert_eq!(plan_memory(&model, &adapter, run, bytes(level)), Ok(level));
        }
        let error = plan_memory(&model, &adapter, run, bytes(MemoryLevel::LayerInputs) - 1);
        assert_eq!(error.unwrap_err().tokens, 4096);
    }

    #[test]
    fn norms_of_q_and_k_and_experts_are_counted() {
        let bytes = |changes: &[(&str, &str)]| {
            let text = changes.iter().fold(SMOLLM2.to_owned(), |text, (from, to)| {
                text.replace(from, to)
            });
            let model = ModelConfig::from_json(&text).unwrap();
            let none = LoraConfig {
                target_modules: TargetModules::List(vec!["q_proj".to_owned()]),
                ..LoraConfig::all_linear(16, 32.0)
            };
            let adapter = AdapterShape::new(&model, &none).unwrap();
            let run = RunShape {
                precision: Precision::Bf16,
                longest: 4096,
                keeps_first: false,
            };
            training_bytes(&model, &adapter, run, MemoryLevel::KeepAll).total()
        };
        let llama = bytes(&[]);
        let qwen3 = ("Llama", "Qwen3");
        let head_dim = ("\"vocab_size\"", "\"head_dim\":64,\"vocab_size\"");
        // Queries and keys before their norms in bf16, and a factor for each head.
        let kept = 30 * 4096 * (2 * (576 + 192) + 8 * 9);
        assert_eq!(bytes(&[qwen3, head_dim]) - llama, kept);
        let experts = "\"num_local_experts\":8,\"num_experts_per_tok\":2,\"vocab_size\"";
        let mixtral = bytes(&[("Llama", "Mixtral"), ("\"vocab_size\"", experts)]);
        // Gate and up of two experts for each token in place of one feed-forward.
        assert!(mixtral - llama > 30 * 4096 * 2 * 1536 * 2);
    }

    #[test]
    fn each_level_needs_less_and_bf16_less_than_f32() {
        let all = needed(MemoryLevel::KeepAll, Precision::Bf16, 4096);
        let dropped = needed(MemoryLevel::DropGateUp, Precision::Bf16, 4096);
        let inputs = needed(MemoryLevel::LayerInputs, Precision::Bf16, 4096);
        assert!(inputs < dropped && dropped < all);
        // Gate and up of 29 blocks: 2 · 1536 numbers of two bytes for 4096 tokens.
        assert_eq!(all - dropped, 29 * 4096 * 2 * 1536 * 2);
        assert!(all < needed(MemoryLevel::KeepAll, Precision::Fp32, 4096));
        assert_eq!(
            needed(MemoryLevel::KeepAll, Precision::Bf16, 10),
            needed(MemoryLevel::KeepAll, Precision::Bf16, 1024)
        );
    }
}
