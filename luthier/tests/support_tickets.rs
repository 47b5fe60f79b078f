//! Holds what `data/support_tickets/README.md` promises of the shipped dataset.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

const CATEGORIES: [&str; 6] = [
    "billing",
    "shipping",
    "account",
    "technical",
    "cancellation",
    "feedback",
];
const URGENCIES: [&str; 3] = ["low", "medium", "high"];
const KEYS: [&str; 4] = ["category", "urgency", "summary", "needs_human"];
/// Shared runs of this many words would let a model recall instead of judge.
const RUN_OF_WORDS: usize = 5;

struct Ticket {
    system: String,
    text: String,
    answer: Value,
}

fn read(file: &str) -> Vec<Ticket> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("data/support_tickets")
        .join(file);
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(ticket).collect()
}

fn ticket(line: &str) -> Ticket {
    let value: Value = serde_json::from_str(line).unwrap();
    let messages = value["messages"].as_array().unwrap();
    let roles: Vec<_> = messages
        .iter()
        .map(|m| m["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["system", "user", "assistant"], "{line}");
    let content = |i: usize| messages[i]["content"].as_str().unwrap().to_owned();
    let answer = content(2);
    assert!(!answer.contains('\n'), "the answer is one line: {answer}");
    Ticket {
        system: content(0),
        text: content(1),
        answer: serde_json::from_str(&answer).unwrap(),
    }
}

fn words(text: &str) -> Vec<String> {
    text.to_lowercase()
        .split(|c: char| !c.is_alphanumeric())
        .filter(|w| !w.is_empty())
        .map(str::to_owned)
        .collect()
}

fn runs(text: &str) -> BTreeSet<Vec<String>> {
    words(text)
        .windows(RUN_OF_WORDS)
        .map(<[String]>::to_vec)
        .collect()
}

fn count<'a>(tickets: &'a [Ticket], key: &str) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for ticket in tickets {
        *counts
            .entry(ticket.answer[key].as_str().unwrap())
            .or_default() += 1;
    }
    counts
}

#[test]
fn every_answer_has_exactly_the_keys_and_labels_of_the_task() {
    for (file, n) in [("train.jsonl", 200), ("held_out.jsonl", 40)] {
        let tickets = read(file);
        assert_eq!(tickets.len(), n, "{file}");
        for ticket in &tickets {
            let answer = ticket.answer.as_object().unwrap();
            assert_eq!(answer.keys().collect::<Vec<_>>(), KEYS, "{}", ticket.text);
            assert!(
                CATEGORIES.contains(&answer["category"].as_str().unwrap()),
                "{answer:?}"
            );
            assert!(
                URGENCIES.contains(&answer["urgency"].as_str().unwrap()),
                "{answer:?}"
            );
            assert!(answer["needs_human"].is_boolean(), "{answer:?}");
            let n_words = answer["summary"].as_str().unwrap().split(' ').count();
            assert!((2..=9).contains(&n_words), "{answer:?}");
            let n_words = ticket.text.split_whitespace().count();
            assert!(
                (15..=60).contains(&n_words),
                "{n_words} words: {}",
                ticket.text
            );
        }
    }
}

#[test]
fn the_system_prompt_is_short_and_does_not_give_the_keys_away() {
    let (train, held_out) = (read("train.jsonl"), read("held_out.jsonl"));
    for ticket in train.iter().chain(&held_out) {
        assert_eq!(ticket.system, train[0].system);
    }
    let prompt = train[0].system.to_lowercase();
    assert!(prompt.split(' ').count() <= 12, "{prompt}");
    let given: Vec<_> = KEYS
        .iter()
        .chain(&CATEGORIES)
        .filter(|k| prompt.contains(**k))
        .collect();
    assert!(given.is_empty(), "{given:?}");
}

#[test]
fn the_labels_are_balanced() {
    for file in ["train.jsonl", "held_out.jsonl"] {
        let tickets = read(file);
        let n = tickets.len();
        let by_category = count(&tickets, "category");
        assert_eq!(by_category.len(), CATEGORIES.len());
        let (least, most) = (
            by_category.values().min().unwrap(),
            by_category.values().max().unwrap(),
        );
        assert!(most - least <= 1, "{file}: {by_category:?}");
        let by_urgency = count(&tickets, "urgency");
        assert!(
            URGENCIES.iter().all(|u| by_urgency[u] * 5 >= n),
            "{file}: {by_urgency:?}"
        );
        let n_human = tickets
            .iter()
            .filter(|t| t.answer["needs_human"] == true)
            .count();
        assert!(
            (n / 8..=n / 2).contains(&n_human),
            "{file}: {n_human} of {n} need a human"
        );
    }
}

#[test]
fn held_out_tickets_share_no_run_of_words_with_training() {
    let train: BTreeSet<_> = read("train.jsonl")
        .iter()
        .flat_map(|t| runs(&t.text))
        .collect();
    let mut seen = train;
    for ticket in read("held_out.jsonl") {
        let own = runs(&ticket.text);
        let shared: Vec<_> = own.intersection(&seen).collect();
        assert!(shared.is_empty(), "{shared:?} in {}", ticket.text);
        seen.extend(own);
    }
}

#[test]
fn no_training_ticket_repeats_another() {
    let mut owners: BTreeMap<Vec<String>, usize> = BTreeMap::new();
    let mut shared_with: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for (i, ticket) in read("train.jsonl").iter().enumerate() {
        for run in runs(&ticket.text) {
            if let Some(&j) = owners.get(&run) {
                *shared_with.entry((j, i)).or_default() += 1;
            } else {
                owners.insert(run, i);
            }
        }
    }
    // Two shared runs are a phrase ("at the end of the year"); more is a template.
    assert!(shared_with.values().all(|&n| n <= 2), "{shared_with:?}");
}
