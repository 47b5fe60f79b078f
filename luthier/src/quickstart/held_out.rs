//! The same held-out questions for the base and the tuned model, and how their answers are scored.

use anyhow::Result;
use futures::{StreamExt, TryStreamExt};
use serde_json::Value;

use super::client::Client;
use super::data::{Example, Judge, Task};
use crate::progress;

/// Questions under way at once; the worker answers them in one batch.
const CONCURRENT: usize = 8;
/// An answer to a ticket is about 50 tokens.
const MAX_TOKENS: u32 = 120;

/// Both models' answers, in the order of the held-out examples, and their scores.
pub struct Comparison {
    pub base: Answers,
    pub tuned: Answers,
}

pub struct Answers {
    pub texts: Vec<String>,
    pub score: Score,
}

/// Shares in 0–1 of all held-out examples.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct Score {
    /// One JSON object with exactly the expected keys.
    pub valid: f64,
    /// What counts: valid and the right category; for the user's own data, the expected answer.
    pub score: f64,
    /// Valid and the right urgency.
    pub urgency: f64,
    /// Valid, and category and urgency both right.
    pub both: f64,
}

pub async fn ask_both(client: &Client, base: &str, tuned: &str, task: &Task) -> Result<Comparison> {
    Ok(Comparison {
        base: ask(client, base, task).await?,
        tuned: ask(client, tuned, task).await?,
    })
}

async fn ask(client: &Client, model: &str, task: &Task) -> Result<Answers> {
    let bar = progress::questions(task.held_out.len() as u64, model);
    let texts: Vec<String> = futures::stream::iter(&task.held_out)
        .map(|example| client.ask(model, &example.messages, MAX_TOKENS))
        .buffered(CONCURRENT)
        .inspect_ok(|_| bar.inc(1))
        .try_collect()
        .await?;
    bar.finish_and_clear();
    let score = score(&task.held_out, &texts, task.judge);
    Ok(Answers { texts, score })
}

fn score(examples: &[Example], answers: &[String], judge: Judge) -> Score {
    let judged: Vec<Verdict> = examples
        .iter()
        .zip(answers)
        .map(|(e, a)| verdict(&e.expected, a, judge))
        .collect();
    let share = |of: fn(&Verdict) -> bool| {
        judged.iter().filter(|v| of(v)).count() as f64 / judged.len().max(1) as f64
    };
    Score {
        valid: share(|v| v.valid),
        score: share(|v| v.right),
        urgency: share(|v| v.urgency),
        both: share(|v| v.right && v.urgency),
    }
}

#[derive(Default)]
struct Verdict {
    valid: bool,
    right: bool,
    urgency: bool,
}

fn verdict(expected: &str, answer: &str, judge: Judge) -> Verdict {
    let parse =
        |text: &str| serde_json::from_str::<serde_json::Map<String, Value>>(text.trim()).ok();
    match (parse(expected), parse(answer), judge) {
        (Some(want), Some(got), _) if !same_keys(&want, &got) => Verdict::default(),
        (Some(want), Some(got), Judge::SupportTicket) => Verdict {
            valid: true,
            right: want.get("category") == got.get("category"),
            urgency: want.get("urgency") == got.get("urgency"),
        },
        (Some(want), Some(got), Judge::Same) => Verdict {
            valid: true,
            right: want == got,
            urgency: false,
        },
        (None, _, Judge::Same) => {
            let right = expected.trim() == answer.trim();
            Verdict {
                valid: true,
                right,
                urgency: false,
            }
        }
        _ => Verdict::default(),
    }
}

fn same_keys(a: &serde_json::Map<String, Value>, b: &serde_json::Map<String, Value>) -> bool {
    a.len() == b.len() && a.keys().all(|key| b.contains_key(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANT: &str =
        r#"{"category":"billing","urgency":"low","summary":"s","needs_human":false}"#;

    fn judged(answer: &str) -> (bool, bool, bool) {
        let v = verdict(WANT, answer, Judge::SupportTicket);
        (v.valid, v.right, v.urgency)
    }

    #[test]
    fn a_ticket_counts_only_as_one_object_with_exactly_its_keys() {
        assert_eq!(
            judged(r#"{"category":"billing","urgency":"high","summary":"x","needs_human":true}"#),
            (true, true, false)
        );
        assert_eq!(
            judged(r#"{"category":"account","urgency":"low","summary":"x","needs_human":true}"#),
            (true, false, true)
        );
        for bad in [
            "",
            "billing",
            r#"Sure! {"category":"billing","urgency":"low","summary":"x","needs_human":true}"#,
            r#"{"category":"billing","urgency":"low","summary":"x"}"#,
            r#"{"category":"billing","urgency":"low","summary":"x","needs_human":true,"more":1}"#,
            r#"[{"category":"billing","urgency":"low","summary":"x","needs_human":true}]"#,
        ] {
            assert_eq!(judged(bad), (false, false, false), "{bad}");
        }
    }

    #[test]
    fn own_data_counts_when_the_answer_is_the_same() {
        let right = |want, got| verdict(want, got, Judge::Same).right;
        assert!(right("Paris", " Paris\n"));
        assert!(!right("Paris", "paris"));
        assert!(right(r#"{"a":1,"b":2}"#, r#"{"b": 2, "a": 1}"#));
        assert!(!right(r#"{"a":1}"#, r#"{"a":2}"#));
    }
}
