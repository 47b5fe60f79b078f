//! Owns generation: sequences with their caches, advanced together, one forward for all, adapters mixed. Knows no text,
//! no request and no clock.

mod embed;
mod grammar;
mod model;
mod sequence;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use half::bf16;

use crate::config::ModelConfig;
use crate::cpu::buffer::OutOfMemory;
use crate::cpu::element::Precision;
use crate::cpu::pool::Pool;
use crate::cuda;
use crate::kv::{Beginning, KvCache, PAGE, Pages, Span};
use crate::lora::Adapter;
use crate::sampling::Choice;
pub use crate::sampling::Sampling;
use crate::weights::{BaseModel, BaseWeights};
pub use embed::Embedding;
pub(crate) use grammar::is_allowed;
pub use grammar::{Grammar, Walk};
use model::OnCpu;
pub(crate) use model::{Drawn, Known, Last, Model, Step, Stepped};
use sequence::{Sequence, check_request, check_tokens};

/// Tokens that one step runs at most, unless there are more sequences than that: a long prompt must not hold up those beside it.
const TOKENS_PER_STEP: usize = 512;

/// A step of no more rows waits for memory rather than for products: half of the threads compute it nearly as fast as all.
const FEW_ROWS: usize = 8;

/// What a batcher may hold at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub max_sequences: usize,
    /// Tokens whose keys and values are kept, of live sequences and of beginnings that may come again.
    pub max_cached_tokens: usize,
}

/// A sequence to generate.
#[derive(Clone)]
pub struct GenerateRequest {
    pub prompt: Vec<u32>,
    /// `None` is the base.
    pub adapter: Option<Arc<Adapter>>,
    /// Whose sequence it is. What was run for one is used again for the same alone: how long an answer takes tells nobody what
    /// others have asked.
    pub scope: Arc<str>,
    pub sampling: Sampling,
    /// 0: the prompt is scored. Its tokens after the first are reported, each as if it had been drawn after those before.
    pub max_new_tokens: usize,
    /// Tokens that end the sequence.
    pub stop_token_ids: Vec<u32>,
    /// How many of the likeliest tokens to report at each place.
    pub top_logprobs: Option<usize>,
    /// What the answer must be; `None`: anything.
    pub grammar: Option<Arc<dyn Grammar>>,
}

/// Names a sequence for as long as its batcher lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token, which is the token reported.
    Stop,
    /// The grammar allows nothing after this token.
    Complete,
    /// `max_new_tokens`, or the model's context.
    Length,
}

/// One new token of one sequence, or the next one of a prompt that is scored.
#[derive(Debug, Clone, PartialEq)]
pub struct StepOutput {
    pub id: SequenceId,
    pub token: u32,
    /// Of the model itself: before bias, penalties, temperature and top_p. Natural.
    pub logprob: f32,
    /// The likeliest tokens, best first.
    pub top: Vec<(u32, f32)>,
    /// Tokens of the prompt that were not run, because they had been before with the same adapter.
    pub n_reused: usize,
    pub finished: Option<FinishReason>,
}

/// Why a sequence was not admitted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AdmitError {
    #[error("all places are taken")]
    Full,
    #[error("a prompt of {n_tokens} tokens leaves no room for an answer; the limit is {limit}")]
    TooLong { n_tokens: usize, limit: usize },
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("token {token} is not in the vocabulary of {vocab_size}")]
    UnknownToken { token: u32, vocab_size: usize },
    #[error("max_new_tokens is 0, and the prompt has no token after the first")]
    NothingToScore,
    #[error("the adapter was made for a model of another shape")]
    WrongAdapter,
    #[error(
        "the adapter replaces parts of the base (DoRA, trained biases or modules), which a GPU cannot serve yet; the CPU can"
    )]
    NotOnGpu,
    #[error("a GPU cannot score a prompt yet; the CPU can")]
    PromptNotOnGpu,
}

/// Why a sequence ended without its next token. It has left; the others go on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{reason}")]
pub struct Failed {
    pub id: SequenceId,
    pub reason: FailReason,
}

/// What a sequence met.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FailReason {
    #[error("the logits are not finite")]
    NotFinite,
    #[error("the answer's grammar cannot go on: {0}")]
    Grammar(String),
}

/// Why a step did nothing.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GenerateError {
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    #[error("{0}")]
    BadInput(String),
    /// Nothing that it holds can be trusted any more.
    #[error("{0}")]
    Gpu(String),
}

/// All live sequences of one base model.
pub struct Batcher {
    model: Box<dyn Model>,
    pool: Pool,
    limits: Limits,
    live: Vec<Sequence>,
    next_id: u64,
    pages: Pages,
}

impl Batcher {
    /// A batcher without sequences that computes in f32.
    pub fn new(base: Arc<BaseModel>, pool: Pool, limits: Limits) -> Self {
        Self::in_precision(base, pool, limits, Precision::Fp32)
    }

    /// The same in `precision`; [`BaseModel::generation_precision`] says which is right for a base.
    pub fn in_precision(
        base: Arc<BaseModel>,
        pool: Pool,
        limits: Limits,
        precision: Precision,
    ) -> Self {
        match precision {
            Precision::Fp32 => Self::with(Box::new(OnCpu::<f32>::new(base)), pool, limits),
            Precision::Bf16 => Self::with(Box::new(OnCpu::<bf16>::new(base)), pool, limits),
        }
    }

    /// The same in bf16 on the GPU that has `base`, on the stream of `gpu`. A token that is no plain draw is chosen on the pool; a
    /// training there is not held up, if it has another stream: this one is no one else's, because steps are recorded on it.
    /// Errors: `OutOfMemory` where keys and values of `max_cached_tokens` do not fit; `OutOfHostMemory`.
    pub fn on_gpu(
        gpu: &cuda::Gpu,
        base: Arc<cuda::Base>,
        pool: Pool,
        limits: Limits,
    ) -> Result<Self, cuda::CudaError> {
        let model =
            cuda::Generator::new(gpu, base, limits.max_sequences, limits.max_cached_tokens)?;
        Ok(Self::with(Box::new(model), pool, limits))
    }

    /// What [`Self::on_gpu`] takes of a GPU's memory beside a base of this shape. Bytes; steps take a little more, once they come.
    pub fn gpu_bytes(config: &ModelConfig, weights: BaseWeights, limits: Limits) -> u64 {
        let is_quantized = matches!(weights, BaseWeights::Quantized(_));
        let (n_sequences, n_tokens) = (limits.max_sequences, limits.max_cached_tokens);
        cuda::Generator::bytes_of(config, is_quantized, n_sequences, n_tokens) as u64
    }

    fn with(model: Box<dyn Model>, pool: Pool, limits: Limits) -> Self {
        Self {
            pages: Pages::new(model.page_shape(), limits.max_cached_tokens),
            model,
            pool,
            limits,
            live: Vec::new(),
            next_id: 0,
        }
    }

    /// Whether it can serve an adapter of the base's shape: a GPU leaves those that replace parts of the base to the CPU.
    pub fn takes(&self, adapter: &Adapter) -> bool {
        self.model.takes(adapter)
    }

    /// What it computes in.
    pub fn precision(&self) -> Precision {
        self.model.precision()
    }

    /// Takes in a sequence; its prompt runs with the next steps, but for what was run before in its scope with the same adapter. The sequence needs
    /// room for its prompt; if the answers outgrow the pages, the youngest sequences wait, and go on where they were.
    /// Errors: `Full` for now, the others for good.
    pub fn admit(&mut self, request: GenerateRequest) -> Result<SequenceId, AdmitError> {
        let max_tokens = check_request(self.model.config(), self.limits, &request)?;
        if let Some(adapter) = &request.adapter
            && !self.model.takes(adapter)
        {
            return Err(AdmitError::NotOnGpu);
        }
        if request.max_new_tokens == 0 && !self.model.scores_prompts() {
            return Err(AdmitError::PromptNotOnGpu);
        }
        if self.live.len() >= self.limits.max_sequences {
            return Err(AdmitError::Full);
        }
        let beginning = Beginning::Empty {
            scope: Arc::clone(&request.scope),
            adapter: request.adapter.as_ref().map(|adapter| adapter.number()),
            is_long: self.model.is_long(max_tokens),
        };
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let cache = KvCache::new(max_tokens);
        let mut sequence = Sequence::new(id, request, max_tokens, cache, beginning);
        sequence.reuse(&mut self.pages);
        let n_promised: usize = self.live.iter().map(|s| s.n_missing()).sum();
        if n_promised + sequence.n_missing() > self.pages.n_available() {
            self.pages.give_back(sequence.cache.pages);
            return Err(AdmitError::Full);
        }
        self.live.push(sequence);
        Ok(id)
    }

    /// One forward for all live sequences: a new token for each whose prompt is through, those of a prompt that are scored, or why it has
    /// none. Finished and failed ones leave. A training that shares the pool goes on when the step is done; the step waits for no more than
    /// the tasks of it that are being computed.
    /// Errors: `OutOfMemory`, `Gpu`; no sequence is changed.
    pub fn step(&mut self) -> Result<Vec<Result<StepOutput, Failed>>, GenerateError> {
        let pool = self.pool.clone();
        match self.model.computes_on_pool() {
            true => self.step_on(&pool.hold()),
            false => self.step_on(&pool),
        }
    }

    /// Whether [`Self::step_beside`] computes the next step nearly as fast as [`Self::step`], and there are threads to share.
    pub fn can_step_beside(&self) -> bool {
        let plan = plan(&self.live);
        let n_rows: usize = plan.iter().map(|&(_, n, _)| n).sum();
        self.pool.n_threads() > 1 && n_rows <= FEW_ROWS
    }

    /// As [`Self::step`], to the bit, on half of the threads: a training that shares the pool goes on beside it with the other half. On
    /// a pool of one thread it is the same as [`Self::step`].
    pub fn step_beside(&mut self) -> Result<Vec<Result<StepOutput, Failed>>, GenerateError> {
        let pool = self.pool.clone();
        match pool.beside() {
            Some(beside) => self.step_on(&beside),
            None => self.step(),
        }
    }

    fn step_on(&mut self, pool: &Pool) -> Result<Vec<Result<StepOutput, Failed>>, GenerateError> {
        let restarted = self.live.iter_mut().filter(|s| s.cache.pages.is_empty());
        restarted.for_each(|sequence| sequence.reuse(&mut self.pages));
        // One adapter's rows stand together; the sort is stable, so order of admission decides within.
        self.live.sort_by_key(|sequence| {
            sequence
                .request
                .adapter
                .as_ref()
                .map_or(0, |a| Arc::as_ptr(a) as usize)
        });
        let plan = self.with_pages(plan(&self.live))?;
        let (scores, chosen) = {
            let adapters: Vec<_> = self
                .live
                .iter()
                .map(|sequence| sequence.request.adapter.clone())
                .collect();
            let tokens: Vec<u32> = plan
                .iter()
                .flat_map(|&(i, n, _)| self.live[i].pending()[..n].iter().copied())
                .collect();
            let mut step = Step {
                tokens: &tokens,
                spans: Vec::new(),
                adapters: Vec::new(),
                known: Vec::new(),
            };
            let mut scored = Vec::new();
            let vocab = self.model.config().vocab_size;
            let mut last_rows = Vec::new();
            let mut row = 0;
            let mut planned = plan.iter().peekable();
            for (i, sequence) in self.live.iter_mut().enumerate() {
                let Some(&(_, n, is_whole)) = planned.next_if(|&&(planned, ..)| planned == i)
                else {
                    continue;
                };
                step.known.extend(sequence.known(row, n));
                scored.resize(step.known.len(), i);
                if is_whole && !sequence.is_scored() {
                    let row = row + n - 1;
                    let draw = sequence.draw(vocab);
                    last_rows.push((i, Last { row, draw }));
                }
                step.spans.push(Span {
                    rows: row..row + n,
                    cache: &mut sequence.cache,
                });
                step.adapters.push(adapters[i].as_deref());
                row += n;
            }
            let last: Vec<Last> = last_rows.iter().map(|(_, last)| *last).collect();
            let Stepped {
                logits,
                drawn,
                scores,
            } = self.model.step(pool, &mut step, &last)?;
            let which = last_rows.iter().map(|&(i, _)| i).zip(drawn);
            let scores: Vec<_> = scored.into_iter().zip(scores).collect();
            let chosen = choose_all(pool, &mut self.live, which, logits, vocab);
            (scores, chosen)
        };
        for &(i, n, _) in &plan {
            self.live[i].advance(n, &mut self.pages);
        }
        let mut outputs = Vec::with_capacity(scores.len() + chosen.len());
        // Scores of one sequence stand together, and nothing follows the first that there is not.
        let mut failed = None;
        for (i, score) in scores {
            if failed == Some(i) {
                continue;
            }
            let sequence = &mut self.live[i];
            let score = score.map_err(|nothing| sequence.failed(nothing));
            failed = score.is_err().then_some(i);
            outputs.push(score.map(|score| sequence.score(score)));
        }
        let chosen = chosen.into_iter();
        outputs.extend(chosen.map(|(i, choice)| choice.map(|choice| self.live[i].push(choice))));
        for output in &outputs {
            match output {
                Ok(StepOutput { finished: None, .. }) => {}
                Ok(StepOutput { id, .. }) | Err(Failed { id, .. }) => self.cancel(*id),
            }
        }
        Ok(outputs)
    }

    /// Takes pages for what `plan` runs, oldest sequences first. Where none is left the youngest sequence gives its own back, and
    /// runs again later what it had; one that finds no page does not run now.
    fn with_pages(&mut self, plan: Vec<Planned>) -> Result<Vec<Planned>, OutOfMemory> {
        let mut by_age = plan;
        by_age.sort_by_key(|&(i, ..)| self.live[i].id);
        let mut running: Vec<Planned> = Vec::new();
        let mut waiting = by_age.into_iter().collect::<VecDeque<_>>();
        'next: while let Some((i, n, is_whole)) = waiting.pop_front() {
            while self.live[i].cache.n_missing(n) > 0 {
                if let Some(page) = self.pages.take()? {
                    self.live[i].cache.pages.push(page);
                    continue;
                }
                let youngest = (0..self.live.len())
                    .filter(|&k| !self.live[k].cache.pages.is_empty())
                    .max_by_key(|&k| self.live[k].id);
                match youngest {
                    Some(k) if self.live[k].id > self.live[i].id => {
                        self.live[k].start_again(&mut self.pages);
                        waiting.retain(|&(planned, ..)| planned != k);
                    }
                    _ => continue 'next,
                }
            }
            running.push((i, n, is_whole));
        }
        running.sort_unstable();
        Ok(running)
    }

    /// Drops a sequence; one that is not there is no error.
    pub fn cancel(&mut self, id: SequenceId) {
        if let Some(at) = self.live.iter().position(|sequence| sequence.id == id) {
            let sequence = self.live.remove(at);
            self.pages.give_back(sequence.cache.pages);
        }
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.live.is_empty()
    }

    /// Sequences taken in and not finished.
    pub fn n_live(&self) -> usize {
        self.live.len()
    }

    /// Tokens there is room for beside the live sequences.
    pub fn n_free_tokens(&self) -> usize {
        self.pages.n_available() * PAGE
    }

    /// log p(token i | those before) for i ≥ 1, natural, computed as a prompt is: through the cache.
    /// Errors: `BadInput` for tokens outside the vocabulary, too many tokens or an adapter of another model; `OutOfMemory`.
    pub fn score(
        &mut self,
        tokens: &[u32],
        adapter: Option<&Adapter>,
    ) -> Result<Vec<f32>, GenerateError> {
        check_document(self.model.config(), tokens, adapter)?;
        if adapter.is_some_and(|adapter| !self.model.takes(adapter)) {
            return Err(GenerateError::BadInput(AdmitError::NotOnGpu.to_string()));
        }
        self.model.score(&self.pool, tokens, adapter)
    }
}

/// Whether the model can read `tokens` with `adapter`.
fn check_document(
    config: &ModelConfig,
    tokens: &[u32],
    adapter: Option<&Adapter>,
) -> Result<(), GenerateError> {
    check_tokens(config, tokens).map_err(|error| GenerateError::BadInput(error.to_string()))?;
    if adapter.is_some_and(|adapter| !adapter.layout().fits(config)) {
        return Err(GenerateError::BadInput(
            AdmitError::WrongAdapter.to_string(),
        ));
    }
    let limit = config.max_position_embeddings;
    if tokens.len() > limit {
        let n_tokens = tokens.len();
        let reason = format!("{n_tokens} tokens exceed the context of {limit}");
        return Err(GenerateError::BadInput(reason));
    }
    Ok(())
}

/// The next token of each sequence that `which` names, in ascending order: what was drawn for it, or one out of its row of `logits`
/// (rows, V).
fn choose_all(
    pool: &Pool,
    live: &mut [Sequence],
    which: impl Iterator<Item = (usize, Option<Drawn>)>,
    logits: &mut [f32],
    vocab: usize,
) -> Vec<(usize, Result<Choice, Failed>)> {
    let mut all = live.iter_mut().enumerate();
    let mut rows = logits.chunks_exact_mut(vocab);
    let tasks: Vec<_> = which
        .map(|(i, drawn)| {
            let mut rest = all.by_ref().skip_while(|(k, _)| *k < i);
            let (i, sequence) = rest
                .next()
                .expect("a sequence that lives — a bug in the plan");
            match drawn {
                Some(drawn) => {
                    let taken = sequence.take(drawn);
                    Mutex::new((i, sequence, None, Some(taken)))
                }
                None => Mutex::new((i, sequence, rows.next(), None)),
            }
        })
        .collect();
    // Threads are woken for what there is to choose from alone.
    let from_logits = tasks.iter().filter(|task| {
        let task = task.lock().expect("nobody has it yet — a bug here");
        task.2.is_some()
    });
    let from_logits: Vec<_> = from_logits.collect();
    pool.run(from_logits.len(), |at| {
        let mut task = from_logits[at].lock();
        let task = task.as_mut().expect("one task has it — a bug in the pool");
        let (_, sequence, logits, choice) = &mut **task;
        if let Some(logits) = logits {
            *choice = Some(sequence.choose(logits));
        }
    });
    let chosen = tasks.into_iter().map(|task| {
        let task = task.into_inner().expect("no task panicked, or `run` had");
        let (i, _, _, choice) = task;
        (
            i,
            choice.expect("every task ran, or had its token — a bug in the pool"),
        )
    });
    chosen.collect()
}

/// (sequence, rows, whether these are all of its pending tokens).
type Planned = (usize, usize, bool);

/// In the order of `live`. Sequences that generate come first, then prompts by age, as far as the budget reaches.
fn plan(live: &[Sequence]) -> Vec<Planned> {
    let n_generating = live.iter().filter(|s| s.pending().len() == 1).count();
    let mut budget = TOKENS_PER_STEP.saturating_sub(n_generating).max(1);
    let mut by_age: Vec<usize> = (0..live.len()).collect();
    by_age.sort_by_key(|&i| live[i].id);
    let mut plan = Vec::new();
    for i in by_age {
        let n_pending = live[i].pending().len();
        let n = if n_pending == 1 {
            1
        } else {
            n_pending.min(budget)
        };
        if n_pending > 1 {
            budget -= n;
        }
        if n > 0 {
            plan.push((i, n, n == n_pending));
        }
    }
    plan.sort_unstable();
    plan
}
