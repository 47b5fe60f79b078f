//! Every template on every conversation, with and without a generation prompt, byte for byte: what transformers wrote
//! is known by its hash, and where transformers raised, we refuse.

use std::collections::HashMap;
use std::sync::Mutex;
use std::thread;

use chrono::{NaiveDate, NaiveDateTime};
use minijinja::value::{Serde, Value as TemplateValue};
use serde_json::Value;
use sha2::{Digest, Sha256};
use text::chat_template::{ChatTemplate, Conversation};

use crate::{Listed, fixtures, hex, json_lines, list, source};

/// Templates that are known to differ: on how many renderings, and why.
const DIFFERENT: [(&str, usize, &str); 1] = [(
    "llama.cpp/meetkai-functionary-medium-v3.1",
    146,
    "adding to a `safe` string escapes what is added for HTML",
)];

/// More than any of the renderings has. Bytes.
const MAX_BYTES: usize = 1 << 20;

/// What transformers made of one template.
struct Expected {
    /// Of the renderings' hashes in hexadecimal, one behind the other.
    sha256: String,
    /// The first digit of each rendering's hash: a hint at which one differs.
    hints: String,
}

fn expected() -> HashMap<String, Expected> {
    let text = std::fs::read_to_string(fixtures().join("expected.tsv")).unwrap();
    let lines = text.lines().skip(1).map(|line| {
        let [template, _refused, sha256, hints] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("four columns: {line}")
        };
        let (sha256, hints) = (sha256.to_owned(), hints.to_owned());
        (template.to_owned(), Expected { sha256, hints })
    });
    lines.collect()
}

/// The day that transformers was told it is.
fn now() -> NaiveDateTime {
    let day = NaiveDate::from_ymd_opt(2026, 3, 5).unwrap();
    day.and_hms_opt(6, 7, 8).unwrap()
}

fn compile(source: &str, special_tokens: &[(&str, &str)]) -> Option<ChatTemplate> {
    let special_tokens = special_tokens
        .iter()
        .map(|(name, token)| ((*name).to_owned(), (*token).to_owned()));
    ChatTemplate::new(source, special_tokens.collect(), Some(now())).ok()
}

/// The hash of each rendering; a refusal has one of its own.
fn digests(source: &str, conversations: &[Value]) -> Vec<String> {
    let tokens = [
        ("bos_token", "<s>"),
        ("eos_token", "</s>"),
        ("unk_token", "<unk>"),
        ("pad_token", "<pad>"),
    ];
    let (with, without) = (compile(source, &tokens), compile(source, &[]));
    let mut digests = Vec::new();
    for conversation in conversations {
        let template = if conversation["has_special_tokens"] == true {
            &with
        } else {
            &without
        };
        let messages = conversation["messages"].as_array().unwrap();
        let messages: Vec<TemplateValue> = messages
            .iter()
            .map(|message| TemplateValue::from(Serde(message)))
            .collect();
        let tools = TemplateValue::from(Serde(&conversation["tools"]));
        for add_generation_prompt in [false, true] {
            let conversation = Conversation {
                messages: &messages,
                tools: &tools,
                add_generation_prompt,
            };
            let text = template
                .as_ref()
                .and_then(|template| template.render(&conversation, MAX_BYTES).ok());
            let bytes = text.map_or(vec![0], |text| [b"\x01", text.as_bytes()].concat());
            digests.push(hex(&Sha256::digest(bytes)));
        }
    }
    digests
}

/// How many renderings differ, as far as the hints tell; at least one if any does. And the first of them.
fn difference(digests: &[String], expected: &Expected) -> Option<(usize, usize)> {
    if hex(&Sha256::digest(digests.concat())) == expected.sha256 {
        return None;
    }
    let hints = digests.iter().map(|digest| &digest[..1]);
    let wrong: Vec<usize> = hints
        .enumerate()
        .filter(|(at, hint)| *hint != &expected.hints[*at..=*at])
        .map(|(at, _)| at)
        .collect();
    Some((wrong.len().max(1), wrong.first().copied().unwrap_or(0)))
}

fn check(
    listed: &Listed,
    conversations: &[Value],
    expected: &HashMap<String, Expected>,
) -> Option<String> {
    let source = source(listed)?;
    let digests = digests(&source, conversations);
    let known = DIFFERENT.iter().find(|(name, ..)| *name == listed.name);
    match (difference(&digests, &expected[&listed.sha256[..16]]), known) {
        (None, None) => None,
        (None, Some((_, _, why))) => Some(format!("{} no longer differs: {why}", listed.name)),
        // a hint misses one in sixteen
        (Some((n, _)), Some((_, most, _))) if n <= *most => None,
        (Some((n, at)), _) => Some(format!(
            "{} differs on about {n}, first on conversation {} with add_generation_prompt {}",
            listed.name,
            at / 2,
            at % 2 == 1
        )),
    }
}

#[test]
fn real_templates_write_what_they_write_in_transformers() {
    let conversations = json_lines("conversations.jsonl");
    assert_eq!(conversations.len(), 200);
    let (list, expected) = (list(), expected());
    let (queue, wrong) = (Mutex::new(list.iter()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some(listed) = next else { break };
                    wrong
                        .lock()
                        .unwrap()
                        .extend(check(listed, &conversations, &expected));
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
