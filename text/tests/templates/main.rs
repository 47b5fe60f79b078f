//! Templates of other shapes than the golden ones: what is masked, what is neutral, and what is refused. The tokenizer
//! is the tiny one of the fixtures.

mod jinja;
mod labels;

use std::path::Path;
use std::sync::LazyLock;

use domain::generation::{ChatMessage, Role, ToolCall};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use text::chat_model::{ChatModel, LoadError};

const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// The tiny ChatML tokenizer with a template of the test's own.
fn model(template: &str) -> Result<ChatModel, LoadError> {
    folder(
        template,
        json!({"eos_token_id": 511, "max_position_embeddings": 2048}),
    )
    .1
}

fn folder(template: &str, config: Value) -> (TempDir, Result<ChatModel, LoadError>) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chatml");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(
        fixtures.join("tokenizer.json"),
        dir.path().join("tokenizer.json"),
    )
    .unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let tokenizer_config = json!({"eos_token": {"content": "<|im_end|>"}, "bos_token": null, "chat_template": template});
    std::fs::write(
        dir.path().join("tokenizer_config.json"),
        tokenizer_config.to_string(),
    )
    .unwrap();
    let model = ChatModel::load(dir.path());
    (dir, model)
}

fn chatml() -> ChatModel {
    model(CHATML).unwrap()
}

fn say(role: Role, content: &str) -> ChatMessage {
    ChatMessage::new(role, content)
}

use Role::{Assistant, User};

#[test]
fn a_spelled_control_token_is_noticed() {
    let model = chatml();
    let mut message = say(User, "a <|im_end| > b");
    assert!(!model.spells_control_tokens(std::slice::from_ref(&message)));
    message.name = Some("x<|im_end|>".to_owned());
    assert!(model.spells_control_tokens(&[message]));
}

#[test]
fn the_templates_own_end_of_turn_is_a_stop_token() {
    let config = json!({"eos_token_id": 509, "max_position_embeddings": 64});
    let (dir, _) = folder(CHATML, config);
    let path = dir.path().join("tokenizer_config.json");
    std::fs::write(&path, json!({"chat_template": CHATML}).to_string()).unwrap();
    assert_eq!(
        ChatModel::load(dir.path()).unwrap().stop_token_ids(),
        [509, 511]
    );
}

#[test]
fn a_folder_that_lacks_something_says_what() {
    let (dir, _) = folder(CHATML, json!({}));
    std::fs::write(dir.path().join("tokenizer_config.json"), "{}").unwrap();
    let Err(error) = ChatModel::load(dir.path()) else {
        panic!("loaded without a template")
    };
    assert!(
        error.to_string().contains("holds no chat template"),
        "{error}"
    );
    std::fs::write(dir.path().join("chat_template.jinja"), CHATML).unwrap();
    assert!(ChatModel::load(dir.path()).is_ok());
    std::fs::write(dir.path().join("tokenizer_config.json"), "{").unwrap();
    assert!(matches!(
        ChatModel::load(dir.path()),
        Err(LoadError::Invalid { .. })
    ));
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let Err(error) = ChatModel::load(dir.path()) else {
        panic!("loaded without a tokenizer")
    };
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
}

#[test]
fn a_named_template_is_found_and_the_one_for_tools_is_used_for_tools() {
    let named = json!([
        {"name": "tool_use", "template": format!("tools: {{{{ tools | tojson }}}} {CHATML}")},
        {"name": "default", "template": CHATML},
    ]);
    let (dir, _) = folder(CHATML, json!({"eos_token_id": 511}));
    let config = json!({"chat_template": named}).to_string();
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    let model = ChatModel::load(dir.path()).unwrap();
    let messages = [say(User, "hi")];
    let plain = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(model.prompt_text(&messages, None).unwrap(), plain);
    assert_eq!(model.prompt_text(&messages, Some(&[])).unwrap(), plain);
    let tools = [json!({"b": "<a>", "a": [1, 2.5, null]})];
    let expected = format!(r#"tools: [{{"b": "<a>", "a": [1, 2.5, null]}}] {plain}"#);
    assert_eq!(
        model.prompt_text(&messages, Some(&tools)).unwrap(),
        expected
    );
}

#[test]
fn templates_are_found_wherever_models_keep_them() {
    let tools = [json!({"name": "t"})];
    let messages = [say(User, "hi")];
    let written = |config: &Value, files: &[(&str, &str)]| {
        let (dir, _) = folder(CHATML, json!({"eos_token_id": 511}));
        std::fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let model = ChatModel::load(dir.path()).map_err(|error| error.to_string())?;
        let text = |tools| model.prompt_text(&messages, tools).unwrap();
        Ok::<_, String>([
            text(None)[..1].to_owned(),
            text(Some(&tools))[..1].to_owned(),
        ])
    };
    let (a, b, c) = (
        &*format!("a{CHATML}"),
        &*format!("b{CHATML}"),
        &*format!("c{CHATML}"),
    );
    let own_file = ("chat_template.jinja", b);
    let by_name = json!({"chat_template": {"default": a, "tool_use": c}});
    let older = json!({"chat_template": a}).to_string();
    for (config, files, expected) in [
        (json!({"chat_template": a}), vec![], ["a", "a"]),
        (json!({"chat_template": a}), vec![own_file], ["b", "b"]),
        (by_name.clone(), vec![], ["a", "c"]),
        (by_name, vec![own_file], ["b", "b"]),
        (
            json!({}),
            vec![own_file, ("additional_chat_templates/tool_use.jinja", c)],
            ["b", "c"],
        ),
        (json!({}), vec![("chat_template.json", &*older)], ["a", "a"]),
    ] {
        assert_eq!(
            written(&config, &files).unwrap(),
            expected,
            "{config} {files:?}"
        );
    }
    let nameless = json!({"chat_template": [{"name": "rag", "template": a}]});
    let error = written(&nameless, &[]).unwrap_err();
    assert!(
        error.ends_with("names no chat template 'default', only 'rag'"),
        "{error}"
    );
}

#[test]
fn a_template_that_wants_parts_is_refused_by_what_it_lacks() {
    let parts = "{% for m in messages %}{{ m.role }}{% for part in m.content %}{{ part.text }}{% endfor %}<|im_end|>{% endfor %}";
    let Err(error) = model(parts) else {
        panic!("loaded")
    };
    assert!(
        error
            .to_string()
            .contains("does not write what message 2 says"),
        "{error}"
    );
}

#[test]
fn roles_that_templates_do_not_know_become_roles_that_they_know() {
    let model = chatml();
    let messages = [say(Role::Developer, "d"), say(Role::Function, "f")];
    let text = model.conversation_text(&messages, None).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nd<|im_end|>\n<|im_start|>user\n<tool_response>\nf\n</tool_response><|im_end|>\n"
    );
}

/// How many control tokens the template itself writes.
fn n_controls(model: &ChatModel, ids: &[u32]) -> usize {
    ids.iter()
        .filter(|id| model.tokenizer().is_control(**id))
        .count()
}

/// Puts contents directly beside each other and beside halves of control tokens.
const GLUED: &str = "{% for m in messages %}{{ m.content }}{{ m.name }}{{ m.content | trim }}{% endfor %}<|{{ messages[0].content }}|>{{ messages[0].content }}im_end|><{{ messages[0].content }}<|im_end|>";

/// Contents in which control tokens are spelled whole, in pieces and overlapping.
fn spelling() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("<|im_start|>".to_owned()),
        Just("<|im_end|>".to_owned()),
        Just("<|endoftext|>".to_owned()),
        Just("<|im_".to_owned()),
        Just("end|>".to_owned()),
        Just("<".to_owned()),
        Just("|>".to_owned()),
        Just(" ".to_owned()),
        Just("\n".to_owned()),
        Just("system".to_owned()),
        "[\\PC]{0,6}",
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_content_becomes_a_control_token(user in spelling(), bot in spelling(), name in spelling()) {
        static MODELS: LazyLock<[(ChatModel, usize); 2]> =
            LazyLock::new(|| [(chatml(), 5), (model(GLUED).unwrap(), 1)]);
        for (model, n_expected) in MODELS.iter() {
            let mut messages = [say(User, &user), say(Assistant, &bot)];
            messages[0].name = Some(name.clone());
            messages[1].tool_calls = vec![ToolCall { id: "c".into(), name: user.clone(), arguments: json!({ bot.clone(): user.clone() }).to_string() }];
            let ids = model.prompt(&messages, None).unwrap();
            prop_assert_eq!(n_controls(model, &ids), *n_expected);
            // and nothing but the control tokens' spelling is lost or changed on the way
            let text = model.prompt_text(&messages, None).unwrap();
            let decoded: String = ids.iter().map(|id| model.token_text(*id).1).collect::<Vec<_>>().concat().iter().map(|b| *b as char).collect();
            let normalized = model.tokenizer().decode(&model.encode_text(&text).unwrap());
            let normalized: String = normalized.bytes().map(|b| b as char).collect();
            prop_assert_eq!(decoded, normalized);
        }
    }

    #[test]
    fn a_stream_of_any_tokens_is_valid_and_loses_nothing(ids in proptest::collection::vec(0u32..509, 0..40)) {
        static MODEL: LazyLock<ChatModel> = LazyLock::new(chatml);
        let model = &*MODEL;
        let mut stream = model.decode_stream();
        let mut text = String::new();
        for id in &ids {
            text.extend(stream.push(*id));
        }
        text.extend(stream.flush());
        let bytes: Vec<u8> = ids.iter().flat_map(|id| model.token_text(*id).1).collect();
        prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
    }
}
