//! The job itself: two uploads, one POST, and its events as a progress bar.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::client::Client;
use super::data::Task;
use crate::progress;

/// Examples per optimizer step.
const BATCH_SIZE: u32 = 4;
/// Times the service's default rate: a narrow task and a small model take a bold one.
const LEARNING_RATE_MULTIPLIER: f64 = 1.5;

/// What training gave.
pub struct Training {
    pub model: String,
    pub trained_tokens: u64,
    /// From the first step to the finished model.
    pub seconds: f64,
}

impl Training {
    pub fn tokens_per_s(&self) -> f64 {
        self.trained_tokens as f64 / self.seconds.max(1e-9)
    }
}

/// Runs the job to its end. Errors: it failed or was cancelled; the message is the job's.
pub async fn run(client: &Client, base: &str, task: &Task, epochs: u32) -> Result<Training> {
    let training_file = client.upload(&task.train_name, task.train_jsonl()).await?;
    let validation_file = client
        .upload("held_out.jsonl", task.held_out_jsonl())
        .await?;
    let order = json!({
        "model": base,
        "training_file": training_file,
        "validation_file": validation_file,
        "suffix": "quickstart",
        "seed": 42,
        "method": { "type": "supervised", "supervised": { "hyperparameters": {
            "n_epochs": epochs,
            "batch_size": BATCH_SIZE,
            "learning_rate_multiplier": LEARNING_RATE_MULTIPLIER,
        } } },
    });
    let id = client.create_job(&order).await?;
    println!("Created job {id}.");
    follow(client, &id).await
}

async fn follow(client: &Client, id: &str) -> Result<Training> {
    let waiting = progress::spinner("validating the files and starting");
    let mut shown = Shown::default();
    loop {
        let job = client.job(id).await?;
        shown.update(&client.events(id, 50).await?, &waiting);
        match job["status"].as_str() {
            Some("succeeded") => {
                waiting.finish_and_clear();
                shown.clear();
                return finished(&job, shown.started);
            }
            Some("failed" | "cancelled") => {
                let reason = job["error"]["message"]
                    .as_str()
                    .unwrap_or("it was cancelled");
                bail!("the job {id} did not succeed: {reason}");
            }
            _ => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}

fn finished(job: &Value, started: Option<Instant>) -> Result<Training> {
    Ok(Training {
        model: job["fine_tuned_model"]
            .as_str()
            .context("a succeeded job without a model")?
            .to_owned(),
        trained_tokens: job["trained_tokens"]
            .as_u64()
            .context("a succeeded job without trained_tokens")?,
        seconds: started.map_or(0.0, |start| start.elapsed().as_secs_f64()),
    })
}

/// The progress bar and the last step it showed.
#[derive(Default)]
struct Shown {
    bar: Option<indicatif::ProgressBar>,
    started: Option<Instant>,
    last_step: u64,
    tokens: u64,
}

impl Shown {
    /// `events` come newest first.
    fn update(&mut self, events: &[Value], waiting: &indicatif::ProgressBar) {
        if self.started.is_none()
            && events
                .iter()
                .any(|e| e["message"] == "Fine-tuning job started")
        {
            self.started = Some(Instant::now());
            waiting.finish_and_clear();
        }
        for event in events.iter().rev().filter(|e| e["type"] == "metrics") {
            let data = &event["data"];
            let step = data["step"].as_u64().unwrap_or(0);
            if step > self.last_step {
                self.last_step = step;
                self.tokens += data["x_n_tokens"].as_u64().unwrap_or(0);
                self.show(data);
            }
        }
    }

    fn show(&mut self, data: &Value) {
        let total = data["total_steps"].as_u64().unwrap_or(0);
        let bar = self.bar.get_or_insert_with(|| progress::steps(total));
        let seconds = self
            .started
            .map_or(0.0, |start| start.elapsed().as_secs_f64());
        let rate = self.tokens as f64 / seconds.max(1e-9);
        let loss = data["train_loss"].as_f64().unwrap_or(f64::NAN);
        bar.set_position(self.last_step);
        bar.set_message(format!("loss {loss:.3}  {rate:.0} tokens/s"));
        if bar.is_hidden() && (self.last_step.is_multiple_of(10) || self.last_step == total) {
            println!(
                "step {}/{total}  loss {loss:.3}  {rate:.0} tokens/s",
                self.last_step
            );
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
