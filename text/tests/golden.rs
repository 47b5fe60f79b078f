//! Against transformers: the fixtures of `tests/fixtures` (its README says how they were made).

use std::collections::HashMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use domain::generation::{ChatMessage, Role, ToolCall};
use serde_json::Value;
use tempfile::TempDir;
use text::chat_model::ChatModel;
use text::formats::{ChatExample, TrainingExample};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn json_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// One of the conversations, in our types.
struct Conversation {
    messages: Vec<ChatMessage>,
    tools: Option<Vec<Value>>,
    add_generation_prompt: bool,
}

fn conversations() -> HashMap<String, Conversation> {
    let read = |row: Value| {
        let messages = row["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(message)
            .collect();
        let tools = row["tools"].as_array().cloned();
        let add_generation_prompt = row["add_generation_prompt"].as_bool().unwrap();
        let id = row["id"].as_str().unwrap().to_owned();
        (
            id,
            Conversation {
                messages,
                tools,
                add_generation_prompt,
            },
        )
    };
    json_lines(&fixtures().join("conversations.jsonl"))
        .into_iter()
        .map(read)
        .collect()
}

fn message(json: &Value) -> ChatMessage {
    let text = |key: &str| json[key].as_str().map(str::to_owned);
    let role: Role = serde_json::from_value(json["role"].clone()).unwrap();
    let call = |call: &Value| ToolCall {
        id: call["id"].as_str().unwrap().to_owned(),
        name: call["function"]["name"].as_str().unwrap().to_owned(),
        arguments: call["function"]["arguments"].to_string(),
    };
    ChatMessage {
        role,
        content: text("content"),
        name: text("name"),
        tool_calls: json["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
            .map(call)
            .collect(),
        tool_call_id: text("tool_call_id"),
    }
}

/// A model's folder; the real one is unpacked first.
fn load(name: &str) -> (ChatModel, Option<TempDir>) {
    let folder = fixtures().join(name);
    let zip = folder.join("tokenizer.zip");
    if !zip.exists() {
        return (ChatModel::load(&folder).unwrap(), None);
    }
    let unpacked = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(zip).unwrap();
    zip::ZipArchive::new(Cursor::new(bytes))
        .unwrap()
        .extract(unpacked.path())
        .unwrap();
    (ChatModel::load(unpacked.path()).unwrap(), Some(unpacked))
}

fn render(model: &ChatModel, conversation: &Conversation) -> String {
    let Conversation {
        messages,
        tools,
        add_generation_prompt,
    } = conversation;
    let tools = tools.as_deref();
    if *add_generation_prompt {
        model.prompt_text(messages, tools).unwrap()
    } else {
        model.conversation_text(messages, tools).unwrap()
    }
}

fn tokenize(model: &ChatModel, conversation: &Conversation) -> Vec<u32> {
    let Conversation {
        messages,
        tools,
        add_generation_prompt,
    } = conversation;
    let tools = tools.as_deref();
    if *add_generation_prompt {
        model.prompt(messages, tools).unwrap()
    } else {
        model.conversation(messages, tools).unwrap()
    }
}

fn check_model(name: &str, n_expected: usize, n_labels: usize) {
    let (model, _unpacked) = load(name);
    let folder = fixtures().join(name);
    let conversations = conversations();
    let mut n_seen = 0;
    for file in ["expected.jsonl", "control.jsonl"] {
        for row in json_lines(&folder.join(file)) {
            let id = row["id"].as_str().unwrap();
            let conversation = &conversations[id];
            assert_eq!(
                render(&model, conversation),
                row["text"].as_str().unwrap(),
                "{name} {id}"
            );
            let ids: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
            assert_eq!(tokenize(&model, conversation), ids, "{name} {id}");
            n_seen += 1;
        }
    }
    assert_eq!(n_seen, n_expected);

    let expected: HashMap<String, Value> = json_lines(&folder.join("expected.jsonl"))
        .into_iter()
        .map(|row| (row["id"].as_str().unwrap().to_owned(), row["ids"].clone()))
        .collect();
    let rows = json_lines(&folder.join("labels.jsonl"));
    assert_eq!(rows.len(), n_labels);
    for row in rows {
        check_labels(&model, &conversations, &expected, &row, name);
    }
}

fn check_labels(
    model: &ChatModel,
    conversations: &HashMap<String, Conversation>,
    expected: &HashMap<String, Value>,
    row: &Value,
    name: &str,
) {
    let id = row["id"].as_str().unwrap();
    let messages = conversations[id].messages.clone();
    let trained = messages
        .iter()
        .map(|message| message.role == Role::Assistant)
        .collect();
    let example = TrainingExample::Chat(ChatExample {
        messages,
        trained,
        tools: Vec::new(),
        parallel_tool_calls: None,
    });
    let example = model.example(&example).unwrap();
    let ids: Vec<u32> = serde_json::from_value(expected[id].clone()).unwrap();
    assert_eq!(example.tokens, ids, "{name} {id}");
    let ranges: Vec<(usize, usize)> = serde_json::from_value(row["labels"].clone()).unwrap();
    let in_range = |at: usize| {
        ranges
            .iter()
            .any(|(start, end)| (*start..*end).contains(&at))
    };
    let mask: Vec<bool> = (0..ids.len()).map(in_range).collect();
    assert_eq!(example.mask, mask, "{name} {id}");
}

fn n_lines(name: &str, file: &str) -> usize {
    json_lines(&fixtures().join(name).join(file)).len()
}

#[test]
fn smollm2_reads_what_transformers_reads() {
    assert!(n_lines("smollm2", "expected.jsonl") >= 200);
    check_model("smollm2", 210, n_lines("smollm2", "labels.jsonl"));
}

#[test]
fn a_chatml_model_with_tools_reads_what_transformers_reads() {
    check_model("chatml", 234, n_lines("chatml", "labels.jsonl"));
}

#[test]
fn a_header_model_that_trims_reads_what_transformers_reads() {
    check_model("header", 234, n_lines("header", "labels.jsonl"));
}

#[test]
fn decoding_gives_the_text_back_whole_and_token_by_token() {
    for name in ["smollm2", "chatml", "header"] {
        let (model, _unpacked) = load(name);
        for conversation in conversations().values() {
            for content in conversation
                .messages
                .iter()
                .filter_map(|m| m.content.as_deref())
            {
                if name == "chatml" && content.contains(['\u{301}', '\u{1100}']) {
                    continue; // its normalizer composes these
                }
                let ids = model.encode_text(content).unwrap();
                assert!(ids.iter().all(|id| !model.tokenizer().is_control(*id)));
                let mut stream = model.decode_stream();
                let mut text = String::new();
                for id in &ids {
                    let piece = stream.push(*id).unwrap_or_default();
                    assert!(!piece.contains('\u{fffd}'), "{name} {content:?}");
                    text.push_str(&piece);
                }
                assert_eq!(stream.flush(), None, "{name} {content:?}");
                assert_eq!(text, content, "{name}");
            }
        }
    }
}
