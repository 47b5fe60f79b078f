//! Dry runs as clients order and see them.

use domain::dry_run::{
    BadRow, DryRun, Estimates, FileReport, Labels, MemoryPlan, Price, Repeats, Report,
};
use domain::method::Method;
use poem_openapi::Object;
use serde_json::Value;

use super::decode::{At, Fields};
use super::fine_tuning::{JobOrder, MethodRequest, method};
use super::fine_tuning_job::{
    HyperparametersObject, JobErrorObject, MethodObject, hyperparameters, method_object,
    named_model,
};
use super::nullable::Nullable;
use super::reply::reply;
use super::usage::Amount;
use super::x_training::{XTrainingOrder, XTrainingRequest, shown, x_training};
use crate::body::Decode;
use crate::error::ApiError;

reply! {
    /// What a job would do, without one.
    DryRunObject as "DryRun" {
        id: String,
        /// `x.dry_run`.
        object: &'static str,
        /// Unix seconds.
        created_at: i64,
        /// `in_progress` or `completed`.
        status: &'static str,
        /// The base model, or the tuned one that was named to go on from.
        model: String,
        training_file: String,
        validation_file: Nullable<String>,
        /// Why the job would fail; null: it would not.
        error: Nullable<JobErrorObject>,
        method: MethodObject,
        /// What the job would train with; null until it is known, and where the job would fail.
        hyperparameters: Nullable<HyperparametersObject>,
        x_training: Option<Value>,
        /// Optimizer steps.
        total_steps: Nullable<u64>,
        /// What the job's `trained_tokens` would be, to the token.
        trained_tokens: Nullable<u64>,
        /// From the first step to the last, by the median speed of the newest jobs on the base model by the same method; null where
        /// none has measured it yet.
        estimated_seconds: Nullable<u64>,
        /// What the job would take of the device's memory, from above: `memory_plan.total_bytes`.
        estimated_memory_bytes: Nullable<u64>,
        /// How the job would use the memory of a worker that serves the base model, by the plan that the worker makes when the job begins, and what
        /// there is at this moment; null where the job would fail, and where `memory_plan_error` says why.
        memory_plan: Nullable<MemoryPlanObject>,
        /// Why there is no `memory_plan`.
        memory_plan_error: Nullable<String>,
        /// What the job would cost, to the token; null where it would fail, and where the operator set no price for the model.
        price: Nullable<PriceObject>,
        /// What is in the training file; null until it was read.
        training: Nullable<FileReportObject>,
        /// What is in the validation file.
        validation: Nullable<FileReportObject>,
        /// Rows of the validation file that the training file has too; `first_line` is one of the training file.
        leaked: Nullable<RepeatsObject>,
    }

    /// Tokens at a price.
    PriceObject as "DryRunPrice" {
        amount: Amount,
        /// The `trained_tokens` that are charged.
        billed_tokens: u64,
        /// In the amount's currency.
        per_million_tokens: f64,
    }

    /// A job's use of a worker's memory. Sizes are counted from above.
    MemoryPlanObject as "DryRunMemoryPlan" {
        /// `gpu` or `cpu`: where the job would train, and whose memory it is.
        device: &'static str,
        /// Why a worker that has a GPU would train the job on its CPU.
        gpu_declined: Nullable<String>,
        /// The base model's frozen weights.
        weights_bytes: u64,
        /// The adapter with gradients and the optimizer's moments.
        adapter_bytes: u64,
        /// What a pass computes in, and what is kept of it until its backward.
        activations_bytes: u64,
        /// The sum of these three.
        total_bytes: u64,
        /// What a job on a GPU takes of the host's memory.
        host_bytes: u64,
        /// What there is for all of it, a job that runs there now and what idles there aside; null where the system does not say.
        available_bytes: Nullable<u64>,
        /// Whether `total_bytes` are available.
        fits: bool,
        /// Tokens that go through the model at once at most: a step is as many passes as its batch needs.
        pass_tokens: u64,
        /// What the backward computes again, in the words of `x_training.memory.gradient_checkpointing`: `none`, `selective` or `full`.
        gradient_checkpointing: &'static str,
        /// Layers in which something is computed again.
        recomputed_layers: u64,
        /// Where the layers' inputs wait for the backward: `device`, or `host` where a GPU sends them there.
        streams: &'static str,
    }

    /// What is in a file.
    FileReportObject as "FileReport" {
        /// Lines that are not blank.
        n_rows: u64,
        /// What is trained on: rows, or the pieces that long ones are split into.
        n_examples: u64,
        /// Of all examples; of both answers of a pair.
        n_tokens: u64,
        /// Tokens of the longest example.
        longest: u64,
        /// Rows whose answer is a good one, where answers are judged.
        n_desirable: Option<u64>,
        n_bad_rows: u64,
        /// The first hundred.
        bad_rows: Vec<BadRowObject>,
        truncation: TruncationObject,
        /// Rows that stand in the file before, byte for byte.
        duplicates: RepeatsObject,
        labels: LabelsObject,
    }

    /// A row that fails the job.
    BadRowObject as "BadRow" {
        /// 1-based, over all lines.
        line: u64,
        /// From the start of the file.
        byte_offset: u64,
        /// JSON pointer into the row; empty for the row itself.
        pointer: String,
        reason: String,
        suggested_fix: String,
    }

    /// Rows longer than `x_training.data.max_length`, by what becomes of them.
    TruncationObject as "Truncation" {
        n_cut: u64,
        n_split: u64,
        n_dropped: u64,
        /// Of all rows.
        share: f64,
    }

    /// Rows that were seen before.
    RepeatsObject as "Repeats" {
        n_rows: u64,
        /// The first hundred.
        rows: Vec<RepeatObject>,
        /// False: there were too many different rows to remember all, so some repeats may be missing.
        is_complete: bool,
    }

    /// Lines are 1-based.
    RepeatObject as "Repeat" {
        line: u64,
        first_line: u64,
    }

    /// What is learned.
    LabelsObject as "Labels" {
        /// Tokens that are learned, of all examples once.
        n_tokens: u64,
        /// How many tokens of a row are learned.
        lengths: Vec<LengthsObject>,
        /// The last answers of the rows, where they are at most 50 and repeat: the balance of classes.
        answers: Nullable<Vec<AnswerObject>>,
    }

    /// Rows of which `at_most` tokens are learned, and more than half of that.
    LengthsObject as "LabelLengths" {
        at_most: u64,
        n_rows: u64,
    }

    AnswerObject as "LabelAnswer" {
        text: String,
        n_rows: u64,
    }
}

impl DryRunObject {
    pub fn new(dry_run: DryRun, estimates: Estimates) -> Self {
        let DryRun { spec, report, .. } = dry_run;
        let status = match report {
            None => "in_progress",
            Some(_) => "completed",
        };
        let Report {
            error,
            plan,
            training,
            validation,
            leaked,
        } = report.unwrap_or_default();
        let resolved = plan.as_ref().map(|plan| plan.hyperparameters);
        let (memory, memory_error) = match estimates.memory {
            Some(Ok(plan)) => (Some(plan), None),
            Some(Err(reason)) => (None, Some(reason)),
            None => (None, None),
        };
        let numbers = hyperparameters(&spec.method.hyperparameters(), &resolved);
        Self {
            id: dry_run.id.to_string(),
            object: "x.dry_run",
            created_at: dry_run.created_at.unix_s(),
            status,
            model: named_model(&spec),
            training_file: spec.training_file.to_string(),
            validation_file: Nullable(spec.validation_file.as_ref().map(ToString::to_string)),
            error: Nullable(error.map(JobErrorObject::from)),
            method: method_object(&spec.method, &numbers, resolved.is_some()),
            hyperparameters: Nullable(resolved.map(|_| numbers)),
            x_training: spec.x_training.as_ref().map(shown),
            total_steps: Nullable(plan.as_ref().map(|plan| plan.total_steps)),
            trained_tokens: Nullable(plan.as_ref().map(|plan| plan.trained_tokens)),
            // As numbers become integers: what no integer holds is the largest one.
            estimated_seconds: Nullable(estimates.seconds.map(|s| s.ceil() as u64)),
            estimated_memory_bytes: Nullable(memory.as_ref().map(MemoryPlan::total)),
            memory_plan: Nullable(memory.map(MemoryPlanObject::from)),
            memory_plan_error: Nullable(memory_error),
            price: Nullable(estimates.price.map(PriceObject::from)),
            training: Nullable(training.map(FileReportObject::from)),
            validation: Nullable(validation.map(FileReportObject::from)),
            leaked: Nullable(leaked.map(RepeatsObject::from)),
        }
    }
}

impl From<Price> for PriceObject {
    fn from(price: Price) -> Self {
        Self {
            amount: Amount::usd(price.amount),
            billed_tokens: price.n_tokens,
            per_million_tokens: price.per_million_tokens,
        }
    }
}

impl From<MemoryPlan> for MemoryPlanObject {
    fn from(plan: MemoryPlan) -> Self {
        Self {
            device: plan.device.as_str(),
            total_bytes: plan.total(),
            gpu_declined: Nullable(plan.gpu_declined),
            weights_bytes: plan.weights,
            adapter_bytes: plan.adapter,
            activations_bytes: plan.activations,
            host_bytes: plan.on_host,
            available_bytes: Nullable(plan.available),
            fits: plan.fits,
            pass_tokens: plan.pass_tokens,
            gradient_checkpointing: plan.gradient_checkpointing.as_str(),
            recomputed_layers: plan.n_recomputed_layers,
            streams: if plan.streams_on_host {
                "host"
            } else {
                "device"
            },
        }
    }
}

impl From<FileReport> for FileReportObject {
    fn from(report: FileReport) -> Self {
        let n_long = report.n_cut + report.n_split + report.n_dropped;
        Self {
            n_rows: report.n_rows,
            n_examples: report.n_examples,
            n_tokens: report.n_tokens,
            longest: report.longest,
            n_desirable: report.n_desirable,
            n_bad_rows: report.n_bad_rows,
            bad_rows: report
                .bad_rows
                .into_iter()
                .map(BadRowObject::from)
                .collect(),
            truncation: TruncationObject {
                n_cut: report.n_cut,
                n_split: report.n_split,
                n_dropped: report.n_dropped,
                share: n_long as f64 / report.n_rows.max(1) as f64,
            },
            duplicates: report.duplicates.into(),
            labels: report.labels.into(),
        }
    }
}

impl From<BadRow> for BadRowObject {
    fn from(row: BadRow) -> Self {
        Self {
            line: row.line,
            byte_offset: row.byte_offset,
            pointer: row.pointer,
            reason: row.reason,
            suggested_fix: row.suggested_fix,
        }
    }
}

impl From<Repeats> for RepeatsObject {
    fn from(repeats: Repeats) -> Self {
        let rows = repeats.rows.into_iter();
        let rows = rows.map(|repeat| RepeatObject {
            line: repeat.line,
            first_line: repeat.first_line,
        });
        Self {
            n_rows: repeats.n_rows,
            rows: rows.collect(),
            is_complete: repeats.is_complete,
        }
    }
}

impl From<Labels> for LabelsObject {
    fn from(labels: Labels) -> Self {
        let lengths = labels.lengths.into_iter();
        let lengths = lengths.map(|lengths| LengthsObject {
            at_most: lengths.at_most,
            n_rows: lengths.n_rows,
        });
        let answers = labels.answers.map(|answers| {
            let answers = answers.into_iter();
            let answers = answers.map(|answer| AnswerObject {
                text: answer.text,
                n_rows: answer.n_rows,
            });
            answers.collect()
        });
        Self {
            n_tokens: labels.n_tokens,
            lengths: lengths.collect(),
            answers: Nullable(answers),
        }
    }
}

/// The body of `POST /v1/x/files/{file_id}/validate`: what a job on the file would say.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct ValidateFileRequest {
    /// A model of `GET /v1/models`: its tokenizer and chat template judge the rows.
    pub model: String,
    /// `supervised`, where absent.
    pub method: Option<MethodRequest>,
    /// Another file, whose rows should not stand in this one.
    pub validation_file: Option<String>,
    pub x_training: Option<XTrainingRequest>,
}

/// A job on a file that the path names.
#[derive(Debug, Clone, PartialEq)]
pub struct FileOrder {
    model: String,
    method: Method,
    validation_file: Option<String>,
    x_training: Option<XTrainingOrder>,
}

impl Decode for FileOrder {
    type Schema = ValidateFileRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let order = Self {
            model: body.require("model")?.string()?,
            method: method(&mut body)?,
            validation_file: body.take("validation_file").map(At::string).transpose()?,
            x_training: body.take("x_training").map(x_training).transpose()?,
        };
        body.finish()?;
        Ok(order)
    }
}

impl FileOrder {
    /// The order of the job.
    pub fn on(self, training_file: String) -> JobOrder {
        JobOrder {
            model: self.model,
            training_file,
            validation_file: self.validation_file,
            suffix: None,
            seed: None,
            method: self.method,
            metadata: None,
            x_training: self.x_training,
        }
    }
}
