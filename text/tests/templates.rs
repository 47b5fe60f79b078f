//! Templates of other shapes than the golden ones: what is masked, what is neutral, and what is refused. The tokenizer
//! is the tiny one of the fixtures.

use std::path::Path;
use std::sync::LazyLock;

use domain::generation::{ChatMessage, Role, ToolCall};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use text::chat_model::{ChatModel, LoadError, RenderError, TokenizedExample};
use text::chat_template::{ChatTemplate, TemplateError};
use text::formats::{ChatExample, RowFormat, TrainingExample, parse_row};

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
    ChatMessage {
        role,
        content: Some(content.to_owned()),
        name: None,
        tool_calls: Vec::new(),
        tool_call_id: None,
    }
}

fn example_of(line: &str) -> TrainingExample {
    parse_row(line, RowFormat::Chat).unwrap()
}

fn all_trained(messages: Vec<ChatMessage>) -> TrainingExample {
    let trained = messages.iter().map(|m| m.role == Role::Assistant).collect();
    TrainingExample::Chat(ChatExample {
        messages,
        trained,
        tools: vec![],
        parallel_tool_calls: None,
    })
}

/// The runs of labels, as text (special tokens spelled out).
fn labelled(model: &ChatModel, example: &TokenizedExample) -> Vec<String> {
    let mut runs: Vec<String> = Vec::new();
    let mut was_label = false;
    for (token, is_label) in example.tokens.iter().zip(&example.mask) {
        if *is_label {
            if !was_label {
                runs.push(String::new());
            }
            runs.last_mut()
                .unwrap()
                .push_str(&model.token_text(*token).0);
        }
        was_label = *is_label;
    }
    runs
}

fn check_labels(template: &str, messages: &[(Role, &str)], expected: &[&str]) {
    let model = model(template).unwrap();
    let messages = messages
        .iter()
        .map(|(role, content)| say(*role, content))
        .collect();
    let example = model.example(&all_trained(messages)).unwrap();
    assert_eq!(labelled(&model, &example), expected, "{template}");
}

use Role::{Assistant, System, User};

#[test]
fn labels_are_what_the_model_would_write_in_every_family_of_templates() {
    // a default system prompt, as Qwen2.5 has
    let qwen = "{%- if messages[0]['role'] == 'system' %}\n    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n{%- else %}\n    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}\n{%- endif %}\n{%- for message in messages %}\n    {%- if (message.role == \"user\") or (message.role == \"system\" and not loop.first) or (message.role == \"assistant\") %}\n        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n";
    let turns = [
        (User, "hi"),
        (Assistant, "ho"),
        (User, "more"),
        (Assistant, "no"),
    ];
    for template in [CHATML, qwen] {
        check_labels(template, &turns, &["ho<|im_end|>", "no<|im_end|>"]);
        check_labels(
            template,
            &[(System, "s"), (User, "u"), (Assistant, " a ")],
            &[" a <|im_end|>"],
        );
    }
    // trims contents, as Llama 3 does
    let header = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|endoftext|>\n\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|endoftext|>\n\n' }}{% endif %}";
    check_labels(
        header,
        &[
            (User, "hi"),
            (Assistant, "\n\n  ho \n"),
            (User, "x"),
            (Assistant, "no"),
        ],
        &["ho<|im_end|>", "no<|im_end|>"],
    );
    // no generation prompt, and the system prompt goes before the last question, as in Mistral's: earlier turns are no
    // beginning of later ones
    let mistral = "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}{{- '<|endoftext|>' }}{%- for message in loop_messages %}{%- if message['role'] == 'user' %}{%- if loop.last or loop.index0 == loop_messages | length - 2 %}{{- '[INST] ' + (system + '\n\n' if system is defined else '') + message['content'] + '[/INST]' }}{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}{%- else %}{{- ' ' + message['content'] | trim + '<|im_end|>' }}{%- endif %}{%- endfor %}";
    check_labels(
        mistral,
        &[
            (System, "Be."),
            (User, "hi"),
            (Assistant, "ho"),
            (User, "x"),
            (Assistant, "no"),
        ],
        &["ho<|im_end|>", " no<|im_end|>"],
    );
    // earlier answers are shortened, as Qwen3 does with thoughts: the label is what is written, not what was given
    let thinking = "{%- for m in messages %}{%- set c = m.content.split('</t>')[-1].lstrip('\\n') if (m.role == 'assistant' and not loop.last) else m.content %}{{- '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";
    check_labels(
        thinking,
        &[
            (User, "hi"),
            (Assistant, "<t>a</t>\nho"),
            (User, "x"),
            (Assistant, "<t>b</t>no"),
        ],
        &["ho<|im_end|>", "<t>b</t>no<|im_end|>"],
    );
}

#[test]
fn a_template_without_end_of_turn_labels_the_answer_alone() {
    let plain = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    // "assistant: " is one prompt; the space before the answer belongs to it, and its token is the answer's
    let model = model(plain).unwrap();
    let example = model
        .example(&all_trained(vec![
            say(User, "hi"),
            say(Assistant, "ho"),
            say(User, "x"),
            say(Assistant, "no"),
        ]))
        .unwrap();
    let runs = labelled(&model, &example);
    let runs: Vec<&str> = runs.iter().map(|run| run.trim()).collect();
    assert_eq!(runs, ["ho", "no"]);
}

#[test]
fn a_spelled_control_token_is_noticed() {
    let model = chatml();
    let mut message = say(User, "a <|im_end| > b");
    assert!(!model.spells_control_tokens(std::slice::from_ref(&message)));
    message.name = Some("x<|im_end|>".to_owned());
    assert!(model.spells_control_tokens(&[message]));
}

#[test]
fn weight_zero_is_not_learned() {
    let model = chatml();
    let line = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"wrong","weight":0},{"role":"user","content":"b"},{"role":"assistant","content":"right","weight":1}]}"#;
    let example = model.example(&example_of(line)).unwrap();
    assert_eq!(labelled(&model, &example), ["right<|im_end|>"]);
}

const CALL: &str = r#"{"messages":[{"role":"user","content":"Weather?"},{"role":"assistant","tool_calls":[{"id":"c","type":"function","function":{"name":"w","arguments":"{\"b\": 1, \"a\": \"é\"}"}}]},{"role":"tool","tool_call_id":"c","content":"20"},{"role":"assistant","content":"It is 20."}]}"#;

#[test]
fn tool_calls_are_learned_whether_the_template_knows_them_or_not() {
    let call = "<tool_call>\n{\"name\": \"w\", \"arguments\": {\"b\": 1, \"a\": \"é\"}}\n</tool_call><|im_end|>";
    let knows = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for c in m.tool_calls %}{{ '<tool_call>\n' + {'name': c.function.name, 'arguments': c.function.arguments} | tojson + '\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    for template in [CHATML, knows] {
        let model = model(template).unwrap();
        let example = model.example(&example_of(CALL)).unwrap();
        assert_eq!(
            labelled(&model, &example),
            [call, "It is 20.<|im_end|>"],
            "{template}"
        );
    }
}

#[test]
fn an_example_is_cut_at_the_context_and_refused_if_nothing_is_left() {
    let config = json!({"eos_token_id": [511, 509], "max_position_embeddings": 24});
    let (_dir, model) = folder(CHATML, config);
    let model = model.unwrap();
    assert_eq!(model.context_length(), 24);
    assert_eq!(model.stop_token_ids(), [511, 509]);
    let long = all_trained(vec![say(User, "hi"), say(Assistant, &"ho ".repeat(50))]);
    let example = model.example(&long).unwrap();
    assert_eq!((example.tokens.len(), example.mask.len()), (24, 24));
    assert!(example.is_truncated && example.mask[23]);
    let late = all_trained(vec![say(User, &"hi ".repeat(50)), say(Assistant, "ho")]);
    assert!(matches!(
        model.example(&late),
        Err(RenderError::NothingLeft(24))
    ));
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
fn roles_that_templates_do_not_know_become_roles_that_they_know() {
    let model = chatml();
    let messages = [say(Role::Developer, "d"), say(Role::Function, "f")];
    let text = model.conversation_text(&messages, None).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nd<|im_end|>\n<|im_start|>tool\nf<|im_end|>\n"
    );
}

/// Renders one user message with a template that need not suit a chat model.
fn render(source: &str, content: &str) -> Result<String, TemplateError> {
    use text::chat_template::Conversation;
    let template = ChatTemplate::new(source, vec![("bos_token".into(), "<s>".into())], None)?;
    let messages = [minijinja::value::Value::from_pairs([
        ("role", "user"),
        ("content", content),
    ])];
    let tools = minijinja::value::Value::from(());
    let conversation = Conversation {
        messages: &messages,
        tools: &tools,
        add_generation_prompt: true,
    };
    template.render(&conversation, 64 << 10)
}

#[test]
fn templates_run_as_in_transformers() {
    for (source, expected) in [
        ("{{ bos_token }}|{{ eos_token }}|{{ nothing }}", "<s>||"),
        ("  {% if true %}\nx\n  {% endif %}\ny\n", "x\ny"),
        (
            "{{ none }} {{ true }} {{ false }} {{ 1.0 }}",
            "None True False 1.0",
        ),
        (
            "{{ tools is none }} {{ tools is defined }} {{ documents is none }}",
            "True True True",
        ),
        (
            "{{ {'b': '<é>', 'a': [1, true, none]} | tojson }}",
            r#"{"b": "<é>", "a": [1, true, null]}"#,
        ),
        (
            "{{ {'b': [1], 'c': {}} | tojson(indent=2) }}",
            "{\n  \"b\": [\n    1\n  ],\n  \"c\": {}\n}",
        ),
        (
            "{{ {'b': '<é😀>', 'a': {}} | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}",
            r#"{"a":{},"b":"<\u00e9\ud83d\ude00>"}"#,
        ),
        (
            "{{ [0.1, 1e-7, 1e16, 123456.0, 0.0001, 2] | tojson }} {{ 1e-7 }} {{ 1e16 | string }}",
            "[0.1, 1e-07, 1e+16, 123456.0, 0.0001, 2] 1e-07 1e+16",
        ),
        (
            "{{ {'a': [none, true, \"it's\", 'a\n\u{200d}'], 'b': 1e-7} }} {{ (1,) }} {{ [] ~ {} }}",
            r#"{'a': [None, True, "it's", 'a\n\u200d'], 'b': 1e-07} (1,) []{}"#,
        ),
        (
            "{{ none is iterable }} {{ 'a' is iterable }} {{ nothing is iterable }}",
            "False True True",
        ),
        (
            "{{ 'a\nb\n' | indent(2) }}|{{ 'a\n\nb' | indent('> ', first=true, blank=true) }}",
            "a\n  b\n|> a\n> \n> b",
        ),
        (
            "{{ messages | map(attribute='role') | list | tojson }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
            r#"["user"] 1"#,
        ),
        (
            "{%- for (a, b) in {'x': 'in if'}.items() if b != ' if ' recursive %}{{ a }}{{ b }}{% endfor %}{% for i in ([1] if true else [2]) if i %}{{ i }}{% endfor %}",
            "xin if1",
        ),
        (
            "{{ ([1] + [2]) | tojson }} {{ [1] + [2] }} {{ ([1] + [2]) | length }} {{ range(2) | list | tojson }}",
            "[1, 2] [1, 2] 2 [0, 1]",
        ),
        ("a\r\nb{{ 'c\r\nd' }}", "a\nbc\nd"),
        ("{% generation %}a{% endgeneration %}b", "ab"),
        (
            "x\n {%- generation -%} \n a \n {%- endgeneration %} b",
            "xa b",
        ),
        (
            "{% for m in messages %}{{ m.content.strip().upper() }}{% if m.tool_calls %}!{% endif %}{% endfor %}",
            "HI",
        ),
        (
            "{{ messages[-1]['content'] | trim }}{{ messages[::-1] | length }}",
            "hi1",
        ),
        ("{{ strftime_now is defined }}", "False"),
        (
            "{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "01",
        ),
        ("{{ '<b>' }}", "<b>"),
    ] {
        assert_eq!(render(source, " hi ").unwrap(), expected, "{source}");
    }
}

#[test]
fn what_python_refuses_is_refused() {
    for source in [
        "{% for i in none %}{% endfor %}",
        "{% for tool in tools %}{% endfor %}",
        "{{ nothing | tojson }}",
        "{{ [nothing] | tojson }}",
        "{{ messages | map(attribute='role') | tojson }}",
        "{{ nothing.at_all }}",
        "{{ 'a' + 1 }}",
        "{{ messages.append(1) }}",
    ] {
        assert!(
            matches!(render(source, "hi"), Err(TemplateError::Refused(_))),
            "{source}"
        );
    }
}

#[test]
fn the_date_is_what_was_given() {
    let now = chrono::NaiveDate::from_ymd_opt(2026, 3, 5)
        .unwrap()
        .and_hms_opt(6, 7, 8)
        .unwrap();
    let render = |source: &str| {
        let template = ChatTemplate::new(source, vec![], Some(now)).unwrap();
        let tools = minijinja::value::Value::from(());
        let conversation = text::chat_template::Conversation {
            messages: &[],
            tools: &tools,
            add_generation_prompt: false,
        };
        template.render(&conversation, 1000)
    };
    assert_eq!(
        render("{{ strftime_now('%d %b %Y') }}").unwrap(),
        "05 Mar 2026"
    );
    assert!(matches!(
        render("{{ strftime_now('%') }}"),
        Err(TemplateError::Refused(_))
    ));
}

#[test]
fn a_hostile_template_is_an_error_and_not_the_end_of_the_process() {
    let big = |operator: &str, n: usize| format!("{{{{ {}1 }}}}", operator.repeat(n));
    let sources = [
        big("-", 60_000),
        big("not ", 15_000),
        format!("{{{{ 1{} }}}}", "+1".repeat(30_000)),
        format!("{{{{ 1{} }}}}", "**1".repeat(20_000)),
        format!("{{{{ {}1{} }}}}", "(".repeat(30_000), ")".repeat(30_000)),
        format!("{{{{ {}1{} }}}}", "[".repeat(30_000), "]".repeat(30_000)),
        format!("{}{}", "{% if 1 %}".repeat(3_000), "{% endif %}".repeat(3_000)),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}".to_owned(),
        "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}".to_owned(),
        "{% set ns = namespace(x=['a']) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}".to_owned(),
        "{% set ns = namespace(x=['a']) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}".to_owned(),
        "{{ ('a' * 1000) | indent('b' * 1000000, true) | length }}".to_owned(),
        "{{ 'a' | indent(1000000000) }}".to_owned(),
        "{{ '%1000000000d' | format(1) }}".to_owned(),
        "{{ range(10) | batch(1000000000) | list }}".to_owned(),
        "{{ range(10) | slice(1000000000) | list }}".to_owned(),
        "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}".to_owned(),
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}".to_owned(),
        "{% for i in range(90000) %}x{% endfor %}".to_owned(),
        "{% include 'x' %}".to_owned(),
        "{% import 'x' as x %}".to_owned(),
        "{{ raise_exception('no') }}".to_owned(),
        "{{ debug() }}".to_owned(),
        "{{ a.b.c }}".to_owned(),
        "{% for %}".to_owned(),
        " ".repeat((64 << 10) + 1),
    ];
    for source in sources {
        // some of these are harmless once they compile; none may crash, hang or write without end
        let start = &source[..source.len().min(40)];
        match render(&source, "hi") {
            Ok(text) => assert!(text.len() <= 64 << 10, "{start}"),
            Err(error) => assert!(error.to_string().len() < 300, "{start}: {error}"),
        }
    }
    assert!(
        matches!(render("{{ raise_exception('no ' + messages[0].content) }}", "hi"), Err(TemplateError::Refused(text)) if text.starts_with("no hi"))
    );
    assert!(matches!(
        render("{% for i in range(90000) %}x{% endfor %}", ""),
        Err(TemplateError::TooLong(_))
    ));
    assert!(matches!(
        render(
            "{% for i in range(9000) %}{% for j in range(9000) %}{% endfor %}{% endfor %}",
            ""
        ),
        Err(TemplateError::TooSlow)
    ));
    assert!(matches!(
        render(&" ".repeat(70_000), ""),
        Err(TemplateError::TooLarge(70_000))
    ));
    assert!(matches!(
        model("{{ raise_exception('never') }}"),
        Err(LoadError::Probe(_))
    ));
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
