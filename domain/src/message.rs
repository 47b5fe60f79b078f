//! What processes say to each other: the scheduler's door, the worker's door, and the queue. JSON, versioned by path
//! (`/v1/…`) and by [`OfferMessage::version`]; fields are only ever added, with defaults.

use serde::{Deserialize, Serialize};

use crate::base_model::BaseModel;
use crate::checkpoint::StateRef;
use crate::error::{FailureClass, JobError};
use crate::generation::{
    ChatMessage, EchoedToken, FinishReason, Priority, ResponseFormat, SamplingParams, TokenLogprob,
    ToolChoice,
};
use crate::hyperparameters::ResolvedHyperparameters;
use crate::id::{DispatchId, JobId, WorkerId};
use crate::metrics::StepMetrics;
use crate::model::{AdapterRef, ServedModel};
use crate::preference::Preference;
use crate::speed::TrainingSpeed;
use crate::time::Timestamp;
use crate::usage::TokenUsage;
use crate::worker::WorkerStatus;
use crate::x_training::Training;

/// The queue that carries offers for one base model.
pub fn train_queue(base_model: &str) -> String {
    format!("train.{base_model}")
}

/// On `train.{base}`: a hint that this job may be claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferMessage {
    pub version: u32,
    pub job_id: JobId,
    pub dispatch_id: DispatchId,
}

/// On `control`: something about this job changed; beat now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlMessage {
    pub version: u32,
    pub job_id: JobId,
}

/// `POST /door/v1/hello`: a worker asks what it can load and says where it answers. Also its beat while idle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HelloRequest {
    pub status: WorkerStatus,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HelloReply {
    /// Every installed base model.
    pub base_models: Vec<BaseModel>,
}

/// `POST /door/v1/claim`: take a job: the offered one, or (without an offer) whichever is next. With `wait_s` the
/// door holds the call until there is one or the time is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRequest {
    pub worker_id: WorkerId,
    pub base_models: Vec<String>,
    pub offer: Option<OfferMessage>,
    #[serde(default)]
    pub wait_s: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClaimReply {
    /// `None`: nothing to do, or the offer was taken.
    pub assignment: Option<Assignment>,
}

/// All a worker needs to run an attempt; it asks nobody else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    pub job_id: JobId,
    pub attempt: u32,
    /// Every object this attempt writes goes under this prefix.
    pub object_prefix: String,
    pub base_model: BaseModel,
    pub training_file: DatasetRef,
    pub validation_file: Option<DatasetRef>,
    pub hyperparameters: ResolvedHyperparameters,
    pub total_steps: u64,
    pub seed: u32,
    /// From where to go on; `None`: from the start.
    pub resume: Option<ResumePoint>,
    /// Seconds without a beat after which the job is given to another worker.
    pub lease_ttl_s: u32,
    /// `None`: what a job trains with that asks for nothing.
    #[serde(default)]
    pub training: Option<Training>,
    /// The adapter that the first step changes; `None`: a fresh one.
    #[serde(default)]
    pub start: Option<AdapterRef>,
    /// What the training minimises over pairs of answers; `None`: it learns conversations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preference: Option<Preference>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetRef {
    pub object_key: String,
    pub sha256: String,
    pub size_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumePoint {
    pub step: u64,
    pub state: StateRef,
}

/// `POST /door/v1/jobs/{job}/attempts/{n}/beat`: the worker lives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BeatRequest {
    pub status: WorkerStatus,
    /// Steps measured since the last accepted beat.
    pub metrics: Vec<StepMetrics>,
    pub estimated_finish: Option<Timestamp>,
}

/// What the worker is to do. Every call on an attempt is answered with it, or with 409: the attempt is stale, drop
/// everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    GoOn,
    /// Save a checkpoint, then call `stopped`.
    Pause,
    /// Call `stopped` at once.
    Cancel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptReply {
    pub desired: Desired,
}

/// `…/checkpoint`: these objects are durable; make the row. Safe to repeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointRequest {
    pub step: u64,
    /// 1-based, at the end of an epoch only.
    pub epoch: Option<u32>,
    pub state: StateRef,
    pub adapter: AdapterRef,
    pub metrics: StepMetrics,
}

/// `…/finish`: the last checkpoint is durable and the served adapter scored as the trained one did. Safe to repeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinishRequest {
    pub trained_tokens: u64,
    /// The last checkpoint's adapter.
    pub adapter: AdapterRef,
    /// `None`: there were too few steps to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<TrainingSpeed>,
}

/// `…/fail`: the attempt ends without a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailRequest {
    pub class: FailureClass,
    pub error: JobError,
}

/// `POST /v1/generate` at the worker: one conversation, `n` answers, as a stream of [`GenerateEvent`] lines (NDJSON).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    pub model: ServedModel,
    /// The project that asks. What a worker has read for one is never used again for another.
    #[serde(default)]
    pub scope: String,
    pub messages: Vec<ChatMessage>,
    /// Tool definitions as the client spelled them; the chat template renders them.
    #[serde(default)]
    pub tools: Vec<serde_json::Value>,
    #[serde(default)]
    pub tool_choice: ToolChoice,
    /// Whether a turn may call more than one function.
    #[serde(default = "yes")]
    pub parallel_tool_calls: bool,
    #[serde(default)]
    pub response_format: ResponseFormat,
    /// 1–128.
    pub n: u32,
    /// `None`: until the context is full; 0: nothing is generated.
    pub max_tokens: Option<u32>,
    /// At most 4; none of them appears in the answer.
    pub stop: Vec<String>,
    /// Tokens that end an answer beside the model's own; none of them appears in it.
    #[serde(default)]
    pub stop_token_ids: Vec<u32>,
    pub sampling: SamplingParams,
    /// `Some(k)`: log-probabilities, with the `k` likeliest tokens (0–20).
    pub top_logprobs: Option<u8>,
    /// What is gone on with in place of `messages`, without a template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Prompt>,
    /// Whether each answer begins with the text of `prompt`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub echo: bool,
    /// Whether the echoed tokens have log-probabilities, too, as `top_logprobs` says: they come as [`GenerateEvent::Echo`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub echo_logprobs: bool,
    #[serde(default, skip_serializing_if = "Priority::is_live")]
    pub priority: Priority,
}

/// A text as a model reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// None of it becomes a control token, whatever it spells.
    Text(String),
    Tokens(Vec<u32>),
}

fn yes() -> bool {
    true
}

impl GenerateRequest {
    /// One answer in plain text, drawn as OpenAI does by default.
    pub fn new(model: ServedModel, scope: String, messages: Vec<ChatMessage>) -> Self {
        Self {
            model,
            scope,
            messages,
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: true,
            response_format: ResponseFormat::Text,
            n: 1,
            max_tokens: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            sampling: SamplingParams::default(),
            top_logprobs: None,
            prompt: None,
            echo: false,
            echo_logprobs: false,
            priority: Priority::Live,
        }
    }
}

/// One line of the worker's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GenerateEvent {
    /// All places are taken and the conversation waits for one: comes at once, and again every few seconds until it begins.
    Queued,
    /// The prompt was admitted.
    Started { prompt_tokens: u64 },
    /// More text of answer `index`; whole characters only.
    Delta {
        index: u32,
        text: String,
        #[serde(default)]
        logprobs: Vec<TokenLogprob>,
    },
    /// Answer `index` begins with its prompt, of whose tokens log-probabilities were asked for: first all of its text, then perhaps more of its
    /// tokens.
    Echo {
        index: u32,
        text: String,
        tokens: Vec<EchoedToken>,
    },
    /// Answer `index` calls a function: its `call`th, from 0.
    ToolCall {
        index: u32,
        call: u32,
        id: String,
        name: String,
    },
    /// More of the arguments of a call; together they are a JSON object.
    ToolArguments {
        index: u32,
        call: u32,
        arguments: String,
    },
    Finished {
        index: u32,
        finish_reason: FinishReason,
    },
    /// Last line of a complete answer.
    Done { usage: TokenUsage },
    /// Last line of a broken one.
    Failed { error: GenerateError },
}

/// Why the worker does not answer. Before the first line it comes as the body of a 4xx/5xx reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum GenerateError {
    #[error(
        "this model's maximum context length is {context_length} tokens, the messages resulted in {prompt_tokens} tokens"
    )]
    ContextLengthExceeded {
        context_length: u64,
        prompt_tokens: u64,
    },
    /// The template refuses these messages; the client's fault.
    #[error("the chat template refuses these messages: {reason}")]
    Unrenderable { reason: String },
    /// No answer can be held to what was asked for; the client's fault. `param` is its path in the request.
    #[error("{reason}")]
    Unanswerable { param: String, reason: String },
    #[error("the model {model} is not installed on this worker")]
    ModelNotInstalled { model: String },
    /// The adapter cannot be had or is damaged; the base model is never used in its place.
    #[error("the adapter cannot be loaded: {reason}")]
    AdapterUnavailable {
        reason: String,
        /// Its tensors are not those of the base model: no worker can ever load it.
        #[serde(default)]
        is_unfit: bool,
    },
    #[error("the worker is busy")]
    Busy,
    #[error("the worker failed: {reason}")]
    Internal { reason: String },
}

/// `POST /v1/embed` at the worker: what a model makes of one text as a whole, as [`EmbedEvent`] lines (NDJSON).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbedRequest {
    pub model: ServedModel,
    pub input: Prompt,
    #[serde(default, skip_serializing_if = "Priority::is_live")]
    pub priority: Priority,
}

/// One line of the worker's answer; before the first one an error comes as the body of a 4xx/5xx reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EmbedEvent {
    /// The text waits or is being read: comes at once, and again every few seconds.
    Queued,
    /// Last line of a complete answer.
    Embedded(Embedded),
    /// Last line of a broken one.
    Failed { error: GenerateError },
}

/// What a model makes of a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embedded {
    /// (D): the mean over the tokens of the last layer's states after the last norm, of unit length.
    pub embedding: Vec<f32>,
    pub prompt_tokens: u64,
}

impl From<GenerateError> for EmbedEvent {
    fn from(error: GenerateError) -> Self {
        EmbedEvent::Failed { error }
    }
}

impl From<GenerateError> for GenerateEvent {
    fn from(error: GenerateError) -> Self {
        GenerateEvent::Failed { error }
    }
}

/// `POST /v1/plan` at the worker: what a training would take of its memory. The reply is a [`MemoryPlan`](crate::dry_run::MemoryPlan), or a
/// [`GenerateError`] as the body of a 4xx/5xx.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanRequest {
    pub base_model: String,
    pub training: Training,
    /// `None`: it learns conversations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preference: Option<Preference>,
    /// Of what shares a pass at most: a conversation, or both answers of a pair. Tokens.
    pub longest: u64,
}

/// `POST /v1/export` at the worker: a base model and its adapter as one, as bytes: a zip for `merged`, else the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportRequest {
    pub model: ServedModel,
    /// What the model is called in the file that describes it.
    pub name: String,
    pub format: ExportFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "snake_case")]
pub enum ExportFormat {
    /// A Hugging Face folder.
    Merged,
    Gguf {
        #[serde(rename = "type")]
        file_type: GgufType,
    },
}

/// How a GGUF file keeps its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GgufType {
    F32,
    F16,
    Bf16,
    #[serde(rename = "q8_0")]
    Q8_0,
}

/// Why the worker exports nothing: the body of a 4xx/5xx reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum ExportError {
    /// This format cannot hold this model.
    #[error("{reason}")]
    Unsupported { reason: String },
    #[error("the model {model} is not installed on this worker")]
    ModelNotInstalled { model: String },
    #[error("the adapter cannot be loaded: {reason}")]
    AdapterUnavailable { reason: String },
    #[error("the worker is busy")]
    Busy,
    #[error("the worker failed: {reason}")]
    Internal { reason: String },
}
