//! What the quickstart prints and writes at the end.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use super::Phases;
use super::data::{Judge, Task};
use super::held_out::{Comparison, Score};
use super::training::Training;

/// Held-out examples that are shown in full.
const SHOWN: usize = 3;

/// Some answers side by side, then the scores.
pub fn print(task: &Task, base: &str, tuned: &str, comparison: &Comparison) {
    for (i, example) in task.held_out.iter().enumerate().take(SHOWN) {
        let question = example
            .messages
            .last()
            .and_then(|m| m["content"].as_str())
            .unwrap_or_default();
        println!("\nQuestion  {}", shorten(question, 300));
        println!("Expected  {}", shorten(&example.expected, 200));
        println!("Base      {}", shorten(&comparison.base.texts[i], 200));
        println!("Tuned     {}", shorten(&comparison.tuned.texts[i], 200));
    }
    println!("\n{} held-out examples", task.held_out.len());
    let columns: &[&str] = match task.judge {
        Judge::SupportTicket => &["score", "valid JSON", "urgency", "both"],
        Judge::Same => &["score"],
    };
    println!(
        "{:<64}{}",
        "",
        columns
            .iter()
            .map(|c| format!("{c:>12}"))
            .collect::<String>()
    );
    for (name, score) in [
        (base, comparison.base.score),
        (tuned, comparison.tuned.score),
    ] {
        let figures = figures(score).into_iter().take(columns.len());
        println!(
            "{name:<64}{}",
            figures.map(|f| format!("{f:>12.3}")).collect::<String>()
        );
    }
}

fn figures(score: Score) -> [f64; 4] {
    [score.score, score.valid, score.urgency, score.both]
}

fn shorten(text: &str, limit: usize) -> String {
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match one_line.char_indices().nth(limit) {
        Some((end, _)) => format!("{} …", &one_line[..end]),
        None => one_line,
    }
}

/// For other programs: scores, seconds per phase, tokens/s and the peak memory of service and worker.
pub fn write_json(
    path: &Path,
    comparison: &Comparison,
    training: &Training,
    phases: &Phases,
) -> Result<()> {
    let (base, tuned) = (comparison.base.score, comparison.tuned.score);
    let document = json!({
        "base_score": base.score,
        "tuned_score": tuned.score,
        "base": { "valid": base.valid, "urgency": base.urgency, "both": base.both },
        "tuned": { "valid": tuned.valid, "urgency": tuned.urgency, "both": tuned.both },
        "seconds": phases,
        "tokens_per_s": training.tokens_per_s(),
        "trained_tokens": training.trained_tokens,
        "fine_tuned_model": training.model,
        "peak_memory_bytes": peak_memory_bytes(),
    });
    let text = serde_json::to_string_pretty(&document)? + "\n";
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The high-water marks of this process and of its children, from `/proc`; null where there is none.
fn peak_memory_bytes() -> Option<u64> {
    let own = std::process::id();
    let children =
        std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
    let others = std::fs::read_dir(format!("/proc/{own}/task"))
        .ok()?
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let all = others.chain([children]).collect::<Vec<_>>().join(" ");
    let mut pids: Vec<u32> = all
        .split_whitespace()
        .filter_map(|p| p.parse().ok())
        .chain([own])
        .collect();
    pids.sort_unstable();
    pids.dedup();
    Some(pids.into_iter().filter_map(high_water_mark).sum())
}

fn high_water_mark(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib * 1024)
}

/// The service is up: how to talk to it.
pub fn print_how_to_go_on(base_url: &str, api_key: &str, model: &str, task: &Task) {
    // The whole conversation: a model tuned with a system message expects it.
    let messages = task
        .held_out
        .first()
        .map(|e| json!(e.messages))
        .unwrap_or_default();
    let body = format!(r#"{{"model": "{model}", "messages": {messages}, "temperature": 0}}"#);
    println!(
        "\nThe service stays up; Ctrl-C stops it, `luthier up` starts it again with everything still there.\n"
    );
    println!("base URL  {base_url}\nAPI key   {api_key}\n");
    println!("curl {base_url}/chat/completions -H 'Authorization: Bearer {api_key}' \\");
    println!(
        "  -H 'Content-Type: application/json' -d '{}'\n",
        body.replace('\'', r"'\''")
    );
    println!("from openai import OpenAI");
    println!("client = OpenAI(base_url=\"{base_url}\", api_key=\"{api_key}\")");
    println!(
        "reply = client.chat.completions.create(model=\"{model}\", messages={messages}, temperature=0)"
    );
    println!("print(reply.choices[0].message.content)");
}
