//! The requests of a batch, some at a time: each is read when it is its turn, answered, and its outcome kept within a second.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use domain::batch::{Batch, BatchEndpoint, BatchEvent, BatchFile, BatchResult};
use domain::id::{BatchRequestId, RequestId};
use domain::usage::TokenUsage;
use futures::FutureExt;
use poem::error::ResponseError;
use poem_openapi::types::ToJSON;
use store::{BatchError, StoreError};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::hold::{Held, HoldError};
use super::input::Span;
use crate::app;
use crate::error::{ApiError, Kind, answered_status};
use crate::wire::batches::{RequestLine, answered_line, usage_of};

/// Outcomes are kept when the first of them has waited so long…
const KEEP_WITHIN: Duration = Duration::from_secs(1);
/// … or when they are so many…
const KEEP_AT: usize = 64;
/// … or so large. Bytes.
const KEEP_AT_BYTES: usize = 1 << 20;
/// What requests under way are given when the process shall end.
const GRACE: Duration = Duration::from_secs(10);
/// A request that nobody can answer now waits so long, then twice as long, and so on up to the other.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const MAX_WAIT: Duration = Duration::from_secs(15);
/// How often a request is tried on which the service itself fails.
const TRIES: u32 = 3;

impl Held {
    /// Answers what has no outcome yet. Ends early when nothing more is to be begun.
    pub(super) async fn answer(self: &Arc<Self>, batch: &Batch) -> Result<Batch, HoldError> {
        let mut todo = self.unanswered(batch).await?.into_iter();
        let (mut asked, mut outcomes) = (JoinSet::new(), Outcomes::default());
        let left_s = batch.expires_at.since_s(self.runner.state.now()).max(0.0);
        if left_s == 0.0 {
            self.closing.cancel();
        }
        let mut window = pin!(sleep(Duration::from_secs_f64(left_s)));
        let mut grace = pin!(self.grace().fuse());
        loop {
            while asked.len() < self.runner.max_requests
                && !self.closing.is_cancelled()
                && !outcomes.are_many()
                && let Some(span) = todo.next()
            {
                asked.spawn(self.clone().ask(span, batch.spec.endpoint));
            }
            if asked.is_empty() && outcomes.0.is_empty() {
                break;
            }
            let keep_at = outcomes.keep_at(asked.is_empty());
            tokio::select! {
                // Without a result it was not begun, or was given up.
                Some(outcome) = asked.join_next() => outcomes.0.extend(outcome.ok().flatten()),
                () = sleep_until(keep_at), if !outcomes.0.is_empty() => self.keep(&mut outcomes).await?,
                () = &mut window, if !self.closing.is_cancelled() => self.closing.cancel(),
                () = &mut grace => asked.abort_all(),
            }
        }
        match self.stop.is_cancelled() {
            true => Ok(batch.clone()),
            false => self.tell(BatchEvent::Closed).await,
        }
    }

    /// Until when requests under way may go on while the process ends.
    async fn grace(&self) {
        self.stop.cancelled().await;
        sleep(GRACE).await;
    }

    async fn unanswered(&self, batch: &Batch) -> Result<Vec<Span>, HoldError> {
        let answered = self.batches().answered_lines(&batch.id).await?;
        let (mut lines, mut spans) = (self.input.lines(), Vec::new());
        while let Some((span, _)) = lines.next().await? {
            if !answered.contains(&span.number) {
                spans.push(span);
            }
        }
        Ok(spans)
    }

    /// Errors: those that another try does not mend.
    async fn keep(&self, outcomes: &mut Outcomes) -> Result<(), HoldError> {
        let results: Vec<BatchResult> = outcomes.0.iter().map(|Outcome(r, _)| r.clone()).collect();
        let now = self.runner.state.now();
        match self.batches().record(&self.lease, &results, now).await {
            Ok(_) => outcomes.0.clear(),
            Err(BatchError::Store(error @ StoreError::Unavailable(_))) => {
                tracing::warn!(batch = %self.lease.batch_id, %error, "outcomes are not kept yet");
                sleep(KEEP_WITHIN).await;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// The request's outcome; `None`: nothing is begun any more.
    async fn ask(self: Arc<Self>, span: Span, endpoint: BatchEndpoint) -> Option<Outcome> {
        let (mut wait, mut n_failures) = (FIRST_WAIT, 0);
        loop {
            let slot = tokio::select! {
                biased;
                () = self.closing.cancelled() => return None,
                slot = self.runner.turns.slot(&self.project_id) => slot,
            };
            let again = match self
                .try_answer(span, endpoint, n_failures + 1 < TRIES)
                .await
            {
                Ok(result) => return Some(Outcome(result, Instant::now())),
                Err(again) => again,
            };
            drop(slot);
            n_failures += u32::from(again.kind == Kind::Internal);
            tracing::debug!(batch = %self.lease.batch_id, line = span.number, reason = again.message, detail = again.detail, "asked again later");
            tokio::select! {
                () = self.closing.cancelled() => return None,
                () = sleep(wait) => wait = (wait * 2).min(MAX_WAIT),
            }
        }
    }

    /// Errors: the request is to be tried again.
    async fn try_answer(
        &self,
        span: Span,
        endpoint: BatchEndpoint,
        may_fail: bool,
    ) -> Result<BatchResult, ApiError> {
        let state = &self.runner.state;
        let line = self.input.line(span).await;
        let line = line.map_err(|error| ApiError::unavailable(error.to_string()))?;
        // The line was judged: it can only be another one now.
        let RequestLine {
            custom_id, body, ..
        } = RequestLine::decode(&line, endpoint)
            .map_err(|error| ApiError::unavailable(error.message))?;
        let project = self.project().await?;
        let answer = app::batches::answer(state, &project, endpoint, body);
        let answer = AssertUnwindSafe(answer).catch_unwind().await;
        let answer = answer.unwrap_or_else(|_panic| Err(ApiError::internal("a batch panicked")));
        let (status, body, file) = match answer {
            Ok(body) => (answered_status(), body, BatchFile::Output),
            Err(error) if error.is_passing() || (error.kind == Kind::Internal && may_fail) => {
                return Err(error);
            }
            Err(error) => {
                let body = error.body().to_json().unwrap_or_default();
                self.note(span, &error);
                (error.status(), body, BatchFile::Error)
            }
        };
        metrics::counter!("luthier_batch_requests_total", "status" => status.as_u16().to_string())
            .increment(1);
        let id = BatchRequestId::mint(state.entropy());
        let request_id = RequestId::mint(state.entropy());
        let usage = match file {
            BatchFile::Output => usage_of(&body),
            BatchFile::Error => TokenUsage::default(),
        };
        Ok(BatchResult {
            line: span.number,
            file,
            body: answered_line(&id, &custom_id, status.as_u16(), &request_id, &body),
            usage,
        })
    }

    fn note(&self, span: Span, error: &ApiError) {
        tracing::info!(
            batch = %self.lease.batch_id, line = span.number, code = error.code, detail = error.detail,
            "a request of a batch failed: {}", error.message
        );
    }
}

/// And since when it is there.
struct Outcome(BatchResult, Instant);

/// Those that are not kept yet.
#[derive(Default)]
struct Outcomes(Vec<Outcome>);

impl Outcomes {
    fn are_many(&self) -> bool {
        let bytes = self.0.iter().map(|Outcome(result, _)| result.body.len());
        self.0.len() >= KEEP_AT || bytes.sum::<usize>() >= KEEP_AT_BYTES
    }

    /// `is_all`: no more of them will come.
    fn keep_at(&self, is_all: bool) -> Instant {
        let now = Instant::now();
        match self.0.first() {
            Some(Outcome(_, since)) if !is_all && !self.are_many() => *since + KEEP_WITHIN,
            _ => now,
        }
    }
}
