//! Whether a job that was found good fits into what its project may still spend: its price is known before it begins.

use domain::error::JobError;
use domain::job::FineTuningJob;
use domain::job_event::JobEvent;
use domain::price::{Item, trained, usd};
use domain::time::Timestamp;
use store::StoreError;

use crate::scheduler::Scheduler;

impl Scheduler {
    /// The verdict, or, where the job would cost more than its project has left this month, its failure.
    pub(super) async fn within_spend_limit(
        &self,
        job: &FineTuningJob,
        verdict: JobEvent,
        now: Timestamp,
    ) -> Result<JobEvent, StoreError> {
        let JobEvent::Validated { planned_tokens, .. } = &verdict else {
            return Ok(verdict);
        };
        let (store, prices) = (&self.shared.store, &self.shared.prices);
        let price = trained(prices, &job.spec.model, *planned_tokens);
        // What is free is not refused, however much is spent.
        if price.amount() == 0.0 {
            return Ok(verdict);
        }
        let project = store.projects().find(&job.project_id).await?;
        let Some(limit) = project.and_then(|project| project.caps.spend_limit()) else {
            return Ok(verdict);
        };
        let spending = store.usage().spending(&job.project_id, now.month()).await?;
        let spent = spending.priced(prices);
        if spent.total() + price.amount() <= limit {
            return Ok(verdict);
        }
        let left = (limit - spent.total()).max(0.0);
        Ok(JobEvent::ValidationFailed {
            error: too_expensive(price, left, limit),
            details: Vec::new(),
        })
    }
}

fn too_expensive(price: Item, left: f64, limit: f64) -> JobError {
    let message = format!(
        "This job would cost {} ({} tokens to train on), but of the {} that its project may spend this month {} is left for it, \
         besides what its other unfinished jobs will cost. Train on less, wait until the next month begins (UTC), or ask an \
         administrator to raise the spend limit of the project.",
        usd(price.amount()),
        price.n_tokens,
        usd(limit),
        usd(left),
    );
    JobError {
        code: "insufficient_quota".to_owned(),
        message,
        param: None,
    }
}
