//! What generation asks of the processor that runs a model, and the model on the CPU.

use std::sync::Arc;

use super::{GenerateError, TOKENS_PER_STEP};
use crate::config::ModelConfig;
use crate::cpu::buffer::OutOfMemory;
use crate::cpu::element::{Element, Precision};
use crate::cpu::pool::Pool;
use crate::kv::{KvCache, PageShape, Pages, Span, attend};
use crate::lora::{Adapter, Generated};
use crate::model::{Changed, Decoder, Keep, Loras};
use crate::nn::attention::Heads;
use crate::nn::cross_entropy::chunk_rows;
use crate::nn::rope::Position;
use crate::sampling::{Choice, Draw, Nothing, score};
use crate::weights::BaseModel;

/// A base model where its weights lie: in memory, or on a GPU.
pub(crate) trait Model: Send {
    fn config(&self) -> &ModelConfig;

    /// What activations, keys and values are computed in.
    fn precision(&self) -> Precision;

    /// What this model keeps of keys and values in a page.
    fn page_shape(&self) -> PageShape;

    /// Whether a sequence that can come to `n_tokens` turns by the frequencies of long ones.
    fn is_long(&self, n_tokens: usize) -> bool;

    /// Whether the pool computes its steps, and not another processor while the pool waits.
    fn computes_on_pool(&self) -> bool;

    /// Whether this model can be changed by an adapter.
    fn takes(&self, adapter: &Adapter) -> bool;

    /// Whether its steps take known tokens.
    fn scores_prompts(&self) -> bool;

    /// Runs new rows of sequences through every block; their caches take the keys and values, but do not count them yet. Then what comes
    /// of `last`, rows of those.
    /// Errors: `OutOfMemory`, `Gpu`.
    fn step(
        &mut self,
        pool: &Pool,
        step: &mut Step<'_>,
        last: &[Last],
    ) -> Result<Stepped<'_>, GenerateError>;

    /// log p(token i | those before) for i ≥ 1 of one document, computed as a prompt is.
    /// Errors: `OutOfMemory`, `Gpu`.
    fn score(
        &mut self,
        pool: &Pool,
        tokens: &[u32],
        adapter: Option<&Adapter>,
    ) -> Result<Vec<f32>, GenerateError>;
}

/// The rows of a step: one adapter's stand together.
pub(crate) struct Step<'a> {
    pub tokens: &'a [u32],
    pub spans: Vec<Span<'a>>,
    /// Of each span.
    pub adapters: Vec<Option<&'a Adapter>>,
    pub known: Vec<Known>,
}

/// A row whose next token stands in the prompt, and is to be scored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    pub row: usize,
    pub token: u32,
    /// How many of the likeliest tokens to report.
    pub n_top: usize,
}

/// A row after which its sequence goes on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Last {
    pub row: usize,
    /// All that its token needs; `None`: it is chosen out of the logits.
    pub draw: Option<Draw>,
}

/// What comes of a step.
pub(crate) struct Stepped<'a> {
    /// (rows, V) of those without a token, in their order; the caller may change them.
    pub logits: &'a mut [f32],
    /// Of each row.
    pub drawn: Vec<Option<Drawn>>,
    /// What the model says of each known token.
    pub scores: Vec<Result<Choice, Nothing>>,
}

/// A token that the model drew by itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Drawn {
    Token {
        token: u32,
        logprob: f32,
    },
    /// The logits are no numbers.
    NotFinite,
}

/// A model in memory that computes in `E`.
pub(super) struct OnCpu<E> {
    base: Arc<BaseModel>,
    decoder: Decoder<E>,
}

impl<E: Generated> OnCpu<E> {
    pub fn new(base: Arc<BaseModel>) -> Self {
        Self {
            base,
            decoder: Decoder::default(),
        }
    }
}

impl<E: Generated> Model for OnCpu<E> {
    fn config(&self) -> &ModelConfig {
        self.base.config()
    }

    fn precision(&self) -> Precision {
        E::PRECISION
    }

    fn page_shape(&self) -> PageShape {
        PageShape::new::<E>(self.base.config())
    }

    fn is_long(&self, n_tokens: usize) -> bool {
        self.base.ropes.is_long(n_tokens)
    }

    fn computes_on_pool(&self) -> bool {
        true
    }

    fn takes(&self, _: &Adapter) -> bool {
        true
    }

    fn scores_prompts(&self) -> bool {
        true
    }

    fn step(
        &mut self,
        pool: &Pool,
        step: &mut Step<'_>,
        last: &[Last],
    ) -> Result<Stepped<'_>, GenerateError> {
        let base = &*self.base;
        let loras = group(pool, base, step)?;
        run(
            &mut self.decoder,
            pool,
            base,
            &loras,
            step.tokens,
            &mut step.spans,
        )?;
        let scores = scores(&mut self.decoder, pool, base, &loras, &step.known)?;
        let rows: Vec<usize> = last.iter().map(|last| last.row).collect();
        Ok(Stepped {
            logits: self.decoder.logits_mut(pool, base, &loras, &rows)?,
            drawn: vec![None; last.len()],
            scores,
        })
    }

    fn score(
        &mut self,
        pool: &Pool,
        tokens: &[u32],
        adapter: Option<&Adapter>,
    ) -> Result<Vec<f32>, GenerateError> {
        let base = &*self.base;
        let mut document = Document::new::<E>(base.config(), tokens.len())?;
        let mut logprobs = Vec::new();
        let inputs = &tokens[..tokens.len().saturating_sub(1)];
        for (i, chunk) in inputs.chunks(TOKENS_PER_STEP).enumerate() {
            let rows: Vec<usize> = (0..chunk.len()).collect();
            let head = match adapter {
                Some(adapter) => adapter.packed::<E>(pool, base)?.head(base),
                None => base.head(),
            };
            document.read(&mut self.decoder, pool, base, adapter, chunk)?;
            let first_target = i * TOKENS_PER_STEP + 1;
            let targets = &tokens[first_target..first_target + chunk.len()];
            let losses = self.decoder.losses_of(pool, base, head, &rows, targets)?;
            logprobs.extend(losses.logprobs);
        }
        Ok(logprobs)
    }
}

/// A text that is read piece by piece, with keys and values of its own.
pub(super) struct Document {
    cache: KvCache,
}

impl Document {
    /// Errors: `OutOfMemory`.
    pub fn new<E: Element>(config: &ModelConfig, n_tokens: usize) -> Result<Self, OutOfMemory> {
        let mut cache = KvCache::new(n_tokens);
        let mut pages = Pages::new(PageShape::new::<E>(config), n_tokens);
        while cache.n_missing(n_tokens) > 0 {
            cache.pages.extend(pages.take()?);
        }
        Ok(Self { cache })
    }

    /// Tokens that were read.
    pub fn n_read(&self) -> usize {
        self.cache.n_cached
    }

    /// Runs the next tokens through every block of `decoder`.
    /// Errors: `OutOfMemory`.
    pub fn read<E: Generated>(
        &mut self,
        decoder: &mut Decoder<E>,
        pool: &Pool,
        base: &BaseModel,
        adapter: Option<&Adapter>,
        tokens: &[u32],
    ) -> Result<(), OutOfMemory> {
        let packed = adapter.map(|adapter| adapter.packed(pool, base));
        let packed = packed.transpose()?.into_iter();
        let loras: Vec<_> = packed.map(|lora| (0..tokens.len(), lora)).collect();
        let mut spans = [Span {
            rows: 0..tokens.len(),
            cache: &mut self.cache,
        }];
        run(decoder, pool, base, &loras, tokens, &mut spans)?;
        self.cache.n_cached += tokens.len();
        Ok(())
    }
}

/// What the model says of known tokens, by rows that were just run; their logits exist a chunk at a time.
/// Errors: `OutOfMemory`.
fn scores<E: Element>(
    decoder: &mut Decoder<E>,
    pool: &Pool,
    base: &BaseModel,
    loras: &Loras<'_, E>,
    known: &[Known],
) -> Result<Vec<Result<Choice, Nothing>>, OutOfMemory> {
    let vocab = base.config().vocab_size;
    let mut scores = Vec::with_capacity(known.len());
    for known in known.chunks(chunk_rows(vocab)) {
        let rows: Vec<usize> = known.iter().map(|known| known.row).collect();
        let logits = decoder.logits_mut(pool, base, loras, &rows)?;
        let mut of_chunk = vec![Err(Nothing::NotFinite); known.len()];
        pool.for_rows_of_two(
            known.len(),
            (logits, vocab),
            (&mut of_chunk, 1),
            |rows, logits, scores| {
                let rows = known[rows].iter().zip(logits.chunks_exact(vocab));
                for ((known, logits), of_row) in rows.zip(scores) {
                    *of_row = score(logits, known.token, known.n_top);
                }
            },
        );
        scores.extend(of_chunk);
    }
    Ok(scores)
}

/// Rows side by side under one adapter are one range.
/// Errors: `OutOfMemory`, for an adapter that multiplies the first time.
fn group<'a, E: Generated>(
    pool: &Pool,
    base: &BaseModel,
    step: &Step<'a>,
) -> Result<Vec<Changed<'a, E>>, OutOfMemory> {
    let mut groups: Vec<Changed<'_, E>> = Vec::new();
    for (span, adapter) in step.spans.iter().zip(&step.adapters) {
        let Some(adapter) = adapter else {
            continue;
        };
        let packed = adapter.packed(pool, base)?;
        match groups.last_mut() {
            Some((rows, last)) if std::ptr::eq(*last, packed) && rows.end == span.rows.start => {
                rows.end = span.rows.end
            }
            _ => groups.push((span.rows.clone(), packed)),
        }
    }
    Ok(groups)
}

/// Runs new rows of sequences through every block.
fn run<E: Element>(
    decoder: &mut Decoder<E>,
    pool: &Pool,
    base: &BaseModel,
    loras: &Loras<'_, E>,
    tokens: &[u32],
    spans: &mut [Span<'_>],
) -> Result<(), OutOfMemory> {
    let positions: Vec<Position> = spans
        .iter()
        .flat_map(|Span { rows, cache }| {
            (0..rows.len()).map(|i| Position {
                at: cache.n_cached + i,
                n_tokens: cache.n_tokens,
            })
        })
        .collect();
    let shape = PageShape::new::<E>(base.config());
    decoder.forward_with(
        pool,
        base,
        loras,
        tokens,
        positions.iter().copied(),
        Keep::Nothing,
        None,
        |layer, qkv, out, _| {
            let heads = Heads::new(base.config(), layer);
            attend(pool, heads, shape, layer, spans, qkv, out);
            Ok(())
        },
    )
}
