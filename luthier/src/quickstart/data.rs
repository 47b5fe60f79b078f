//! What the quickstart trains on: the support tickets that come along, or the user's own file.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Real support tickets in free text, answered with strict JSON; written for Luthier.
const TICKETS_TRAIN: &str = include_str!("../../data/support_tickets/train.jsonl");
const TICKETS_HELD_OUT: &str = include_str!("../../data/support_tickets/held_out.jsonl");

/// Training and held-out lines, and how an answer is judged.
pub struct Task {
    pub train: Vec<String>,
    pub held_out: Vec<Example>,
    pub train_name: String,
    pub judge: Judge,
}

/// A held-out conversation without its last answer, and that answer.
pub struct Example {
    pub line: String,
    pub messages: Vec<Value>,
    pub expected: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Judge {
    /// One JSON object with exactly the ticket's keys and the right category.
    SupportTicket,
    /// The expected answer, or, where that is a JSON object, an object with the same keys and values.
    Same,
}

/// The user's file, or the tickets. Errors: unreadable, too short, or a line that is no chat example.
pub fn load(file: Option<&Path>) -> Result<Task> {
    let Some(path) = file else {
        return Ok(Task {
            train: lines(TICKETS_TRAIN),
            held_out: examples(&lines(TICKETS_HELD_OUT))
                .context("the held-out tickets are damaged")?,
            train_name: "support_tickets.jsonl".to_owned(),
            judge: Judge::SupportTicket,
        });
    };
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut train = lines(&text);
    if train.len() < 20 {
        bail!(
            "{} has {} examples; the quickstart needs at least 20 to hold some out",
            path.display(),
            train.len()
        );
    }
    let n_held_out = (train.len() / 10).clamp(2, 40);
    let held_out = train.split_off(train.len() - n_held_out);
    let held_out = examples(&held_out).with_context(|| format!("in {}", path.display()))?;
    let name = path
        .file_name()
        .map_or_else(|| "data".into(), |n| n.to_string_lossy().into_owned());
    let train_name = if name.ends_with(".jsonl") {
        name
    } else {
        format!("{name}.jsonl")
    };
    Ok(Task {
        train,
        held_out,
        train_name,
        judge: Judge::Same,
    })
}

impl Task {
    /// The training file as it is uploaded.
    pub fn train_jsonl(&self) -> String {
        self.train.join("\n") + "\n"
    }

    /// The held-out lines double as the validation file.
    pub fn held_out_jsonl(&self) -> String {
        self.held_out
            .iter()
            .map(|example| format!("{}\n", example.line))
            .collect()
    }
}

fn lines(text: &str) -> Vec<String> {
    text.trim_start_matches('\u{feff}')
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(str::to_owned)
        .collect()
}

fn examples(lines: &[String]) -> Result<Vec<Example>> {
    lines
        .iter()
        .map(|line| example(line).with_context(|| format!("held-out example {line:.80}")))
        .collect()
}

fn example(line: &str) -> Result<Example> {
    let row: Value = serde_json::from_str(line).context("not JSON")?;
    let mut messages = row["messages"]
        .as_array()
        .context("has no `messages`")?
        .clone();
    let last = messages.pop().context("has no messages")?;
    let expected = last["content"]
        .as_str()
        .filter(|_| last["role"] == "assistant");
    let expected = expected
        .context("does not end with an assistant's text")?
        .to_owned();
    Ok(Example {
        line: line.to_owned(),
        messages,
        expected,
    })
}
