//! What is learned with the template of every family: each answer, with the token that ends it, and nothing that somebody
//! else said. The tokenizer is one token a byte, and the control tokens that the family has.

use chrono::NaiveDate;
use domain::generation::{ChatMessage, Role, ToolCall};
use serde_json::{Map, Value, json};
use text::chat_model::{ChatModel, RenderError};
use text::formats::{ChatExample, TrainingExample};

use crate::{FAMILIES, Family, json_lines, list, source};

pub(crate) fn model(family: &Family, template: &str) -> ChatModel {
    let dir = tempfile::tempdir().unwrap();
    let write =
        |name: &str, json: Value| std::fs::write(dir.path().join(name), json.to_string()).unwrap();
    let tokenizer = tokenizer(family);
    let id_of = |token: &str| {
        let mut added = tokenizer["added_tokens"].as_array().unwrap().iter();
        added.find(|added| added["content"] == token).unwrap()["id"].clone()
    };
    let ends: Vec<Value> = family.ends.iter().map(|end| id_of(end)).collect();
    write(
        "config.json",
        json!({"eos_token_id": ends, "max_position_embeddings": 1 << 20}),
    );
    write("tokenizer.json", tokenizer);
    write(
        "tokenizer_config.json",
        json!({"bos_token": "<s>", "eos_token": family.ends[0], "chat_template": template}),
    );
    let day = NaiveDate::from_ymd_opt(2026, 3, 5).unwrap();
    ChatModel::load_at(dir.path(), day.and_hms_opt(6, 7, 8).unwrap()).unwrap()
}

/// The letters of the fixtures' byte-level tokenizer without its merges.
fn tokenizer(family: &Family) -> Value {
    let fixture = include_str!("../fixtures/chatml/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(fixture).unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
    let bytes = vocab.keys().filter(|token| token.chars().count() == 1);
    let vocab: Map<String, Value> = bytes
        .enumerate()
        .map(|(id, token)| (token.clone(), id.into()))
        .collect();
    let n_bytes = vocab.len();
    let control = family
        .ends
        .iter()
        .chain(family.control)
        .chain(&["<s>"])
        .enumerate();
    tokenizer["added_tokens"] = control
        .map(|(at, token)| {
            json!({
                "id": n_bytes + at, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    tokenizer["model"]["vocab"] = Value::Object(vocab);
    tokenizer["model"]["merges"] = json!([]);
    tokenizer["normalizer"] = Value::Null;
    tokenizer["pre_tokenizer"] = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    tokenizer
}

pub(crate) fn message(json: &Value) -> ChatMessage {
    let text = |json: &Value| json.as_str().map(str::to_owned);
    let calls = json["tool_calls"].as_array().into_iter().flatten();
    ChatMessage {
        role: serde_json::from_value(json["role"].clone()).unwrap(),
        content: text(&json["content"]),
        name: text(&json["name"]),
        tool_calls: calls
            .map(|call| ToolCall {
                id: text(&call["id"]).unwrap(),
                name: text(&call["function"]["name"]).unwrap(),
                arguments: call["function"]["arguments"].to_string(),
            })
            .collect(),
        tool_call_id: text(&json["tool_call_id"]),
    }
}

/// The runs of labels as text.
fn labels(model: &ChatModel, example: &TrainingExample) -> Result<Vec<String>, RenderError> {
    let example = model.example(example)?;
    let mut runs: Vec<Vec<u8>> = Vec::new();
    let mut was_label = false;
    for (token, is_label) in example.tokens.iter().zip(&example.mask) {
        if *is_label && !was_label {
            runs.push(Vec::new());
        }
        if *is_label {
            runs.last_mut().unwrap().extend(model.token_text(*token).1);
        }
        was_label = *is_label;
    }
    Ok(runs
        .into_iter()
        .map(|run| String::from_utf8(run).unwrap())
        .collect())
}

/// Whether `label` is the answer, its end of turn, and at most the thoughts that the template puts before it.
fn is_answer(family: &Family, label: &str, answer: &ChatMessage) -> bool {
    let Some(said) = family.ends.iter().find_map(|end| label.strip_suffix(end)) else {
        return false;
    };
    let content = answer.content.as_deref().unwrap_or("");
    let content = content.rsplit("</think>").next().unwrap_or("").trim();
    if answer.tool_calls.is_empty() {
        let said = said.trim();
        return said == content
            || (said.starts_with("<think>") || said.contains("</think>"))
                && said.ends_with(content);
    }
    // some templates leave out what is said beside calls
    answer
        .tool_calls
        .iter()
        .all(|call| said.contains(&call.name))
}

/// Each answer is followed by what someone else says, and tools are used only where the template knows of them.
fn is_usual(messages: &[ChatMessage], template: &str) -> bool {
    let is_answered = |two: &[ChatMessage]| {
        two[0].role != Role::Assistant
            || (matches!(two[1].role, Role::User | Role::Tool)
                && two[1].content.as_deref() != Some(""))
    };
    let uses_tools =
        |message: &ChatMessage| message.role == Role::Tool || !message.tool_calls.is_empty();
    messages.windows(2).all(is_answered)
        && (template.contains("tool_calls") || !messages.iter().any(uses_tools))
}

/// How many conversations were learned from, and what went wrong.
fn check(family: &Family, template: &str) -> (usize, Vec<String>) {
    let model = model(family, template);
    let (mut n_learned, mut wrong) = (0, Vec::new());
    for conversation in json_lines("conversations.jsonl") {
        let messages: Vec<ChatMessage> = conversation["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(message)
            .collect();
        let tools = conversation["tools"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let answers: Vec<ChatMessage> = messages
            .iter()
            .filter(|message| message.role == Role::Assistant)
            .cloned()
            .collect();
        if answers.is_empty()
            || !is_usual(&messages, template)
            || model.conversation_text(&messages, Some(&tools)).is_err()
        {
            continue;
        }
        let trained = messages
            .iter()
            .map(|message| message.role == Role::Assistant)
            .collect();
        let example = TrainingExample::Chat(ChatExample {
            messages,
            trained,
            tools,
            parallel_tool_calls: None,
        });
        let id = &conversation["id"];
        match labels(&model, &example) {
            Err(error) => wrong.push(format!("{} {id}: {error}", family.name)),
            Ok(labels) => {
                let fits = labels.len() == answers.len()
                    && labels
                        .iter()
                        .zip(&answers)
                        .all(|(label, answer)| is_answer(family, label, answer));
                if !fits {
                    wrong.push(format!("{} {id}: {labels:?} for {answers:?}", family.name));
                }
            }
        }
        n_learned += 1;
    }
    (n_learned, wrong)
}

#[test]
fn the_answers_and_their_ends_are_learned_in_every_family() {
    let list = list();
    let mut all_wrong = Vec::new();
    for family in &FAMILIES {
        let listed = list
            .iter()
            .find(|listed| listed.name == family.template)
            .unwrap();
        let Some(template) = source(listed) else {
            continue;
        };
        let (n_learned, wrong) = check(family, &template);
        if n_learned != family.n_answered {
            all_wrong.push(format!(
                "{}: {n_learned} conversations, not {}",
                family.name, family.n_answered
            ));
        }
        all_wrong.extend(wrong);
    }
    assert!(
        all_wrong.is_empty(),
        "{} wrong\n{}",
        all_wrong.len(),
        all_wrong.join("\n")
    );
}
