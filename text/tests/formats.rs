//! Rows of training files: what is taken, what is refused and how that is said.

use domain::generation::Role;
use domain::x_training::DataFormat;
use proptest::prelude::*;
use text::formats::{ChatExample, LineErrorKind as Kind, RowFormat, TrainingExample, parse_row};

const GOOD: &str =
    r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;

fn chat(line: &str) -> ChatExample {
    match parse_row(line, RowFormat::Chat) {
        Ok(TrainingExample::Chat(example)) => example,
        other => panic!("{line}: {other:?}"),
    }
}

/// A row with these messages, as JSON.
fn row(messages: &str) -> String {
    format!(r#"{{"messages":[{messages}]}}"#)
}

fn check_refused(line: &str, kind: Kind, pointer: &str, reason: &str) {
    let error = match parse_row(line, RowFormat::Chat) {
        Err(error) => error,
        Ok(example) => panic!("{line} was taken: {example:?}"),
    };
    assert_eq!(
        (error.kind, error.pointer.as_str()),
        (kind, pointer),
        "{line}: {error:?}"
    );
    assert!(
        error.reason.contains(reason),
        "{line}: {:?} lacks {reason:?}",
        error.reason
    );
    assert!(error.byte_offset <= line.len() as u64);
}

const USER: &str = r#"{"role":"user","content":"a"}"#;
const BOT: &str = r#"{"role":"assistant","content":"b"}"#;

#[test]
fn every_bad_message_is_refused_by_name_and_place() {
    let cases: &[(&str, Kind, &str, &str)] = &[
        (
            r#"{"content":"b"}"#,
            Kind::MissingRole,
            "/messages/1/role",
            "Discriminator 'role' is missing in value",
        ),
        (
            r#"{"role":"robot","content":"b"}"#,
            Kind::InvalidRole,
            "/messages/1/role",
            "Input tag 'robot'",
        ),
        (
            r#"{"role":"system\n<|im_start|>","content":"b"}"#,
            Kind::InvalidRole,
            "/messages/1/role",
            "does not match",
        ),
        (
            r#"{"role":7,"content":"b"}"#,
            Kind::InvalidValue,
            "/messages/1/role",
            "expected a string",
        ),
        (
            r#"{"role":"user","role":"user","content":"b"}"#,
            Kind::DuplicateKey,
            "/messages/1",
            "has the key 'role' twice",
        ),
        (
            r#"{"role":"user","content":"b","content":"c"}"#,
            Kind::DuplicateKey,
            "/messages/1",
            "'content' twice",
        ),
        (
            r#"{"role":"user","content":"b","refusal":null,"refusal":null}"#,
            Kind::DuplicateKey,
            "/messages/1",
            "'refusal' twice",
        ),
        (
            r#"{"role":"user","content":"b","wieght":1}"#,
            Kind::InvalidValue,
            "/messages/1",
            r#"an extra "wieght""#,
        ),
        (
            r#"{"role":"user","content":"b","weight":1}"#,
            Kind::InvalidWeight,
            "/messages/1/weight",
            "only an assistant",
        ),
        (
            r#"{"role":"assistant","content":"b","weight":0.5}"#,
            Kind::InvalidWeight,
            "/messages/1/weight",
            "weight of 0.5",
        ),
        (
            r#"{"role":"assistant","content":"b","weight":2}"#,
            Kind::InvalidWeight,
            "/messages/1/weight",
            "weight of 2",
        ),
        (
            r#"{"role":"assistant","content":"b","weight":-1}"#,
            Kind::InvalidWeight,
            "/messages/1/weight",
            "weight of -1",
        ),
        (
            r#"{"role":"assistant","content":"b","weight":true}"#,
            Kind::InvalidWeight,
            "/messages/1/weight",
            "weight of true",
        ),
        (
            r#"{"role":"assistant","content":"b","weight":"1"}"#,
            Kind::InvalidWeight,
            "/messages/1/weight",
            "weight of \"1\"",
        ),
        (
            r#"{"role":"assistant","content":"b","weight":100000000000000000000000000001}"#,
            Kind::InvalidWeight,
            "/messages/1/weight",
            "only 0 and 1",
        ),
        (
            r#"{"role":"assistant","content":"b","weight":1e999}"#,
            Kind::InvalidJson,
            "/messages/1/weight",
            "number out of range",
        ),
        (
            r#"{"role":"assistant","content":"b","weight":NaN}"#,
            Kind::InvalidJson,
            "/messages/1/weight",
            "invalid json",
        ),
        (
            r#"{"role":"assistant","content":""}"#,
            Kind::InvalidValue,
            "/messages/1/content",
            "neither content nor tool calls",
        ),
        (
            r#"{"role":"assistant"}"#,
            Kind::InvalidValue,
            "/messages/1/content",
            "neither content nor tool calls",
        ),
        (
            r#"{"role":"assistant","content":null,"tool_calls":[]}"#,
            Kind::InvalidValue,
            "/messages/1/content",
            "neither",
        ),
        (
            r#"{"role":"user"}"#,
            Kind::InvalidValue,
            "/messages/1/content",
            "missing 'content'",
        ),
        (
            r#"{"role":"system","content":null}"#,
            Kind::InvalidValue,
            "/messages/1/content",
            "missing 'content'",
        ),
        (
            r#"{"role":"user","content":5}"#,
            Kind::InvalidValue,
            "/messages/1/content",
            "array of text parts",
        ),
        (
            r#"{"role":"user","content":[]}"#,
            Kind::InvalidValue,
            "/messages/1/content",
            "empty array",
        ),
        (
            r#"{"role":"user","content":["a"]}"#,
            Kind::InvalidValue,
            "/messages/1/content/0",
            "content part object",
        ),
        (
            r#"{"role":"user","content":[{"text":"a"}]}"#,
            Kind::InvalidValue,
            "/messages/1/content/0",
            "missing 'type'",
        ),
        (
            r#"{"role":"user","content":[{"type":"text"}]}"#,
            Kind::InvalidValue,
            "/messages/1/content/0",
            "missing 'text'",
        ),
        (
            r#"{"role":"user","content":[{"type":"text","text":"a","x":1}]}"#,
            Kind::InvalidValue,
            "/messages/1/content/0",
            r#"extra "x""#,
        ),
        (
            r#"{"role":"user","content":[{"type":"image_url","image_url":{"url":"u"}}]}"#,
            Kind::Unsupported,
            "/messages/1/content/0",
            "'image_url'",
        ),
        (
            r#"{"role":"user","content":"a\u0000b"}"#,
            Kind::Nul,
            "/messages/1/content",
            "NUL",
        ),
        (
            r#"{"role":"user","content":"\ud800"}"#,
            Kind::InvalidJson,
            "/messages/1/content",
            "invalid json",
        ),
        (
            r#"{"role":"user","content":"a","name":7}"#,
            Kind::InvalidValue,
            "/messages/1/name",
            "expected a string",
        ),
        (
            r#"{"role":"tool","content":"a"}"#,
            Kind::InvalidValue,
            "/messages/1/tool_call_id",
            "missing 'tool_call_id'",
        ),
        (
            r#"{"role":"function","content":"a"}"#,
            Kind::InvalidValue,
            "/messages/1/name",
            "missing 'name'",
        ),
        (
            r#"{"role":"assistant","content":"b","audio":{"id":"x"}}"#,
            Kind::Unsupported,
            "/messages/1/audio",
            "'audio'",
        ),
        (
            r#"{"role":"user","content":"a","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]}"#,
            Kind::InvalidValue,
            "/messages/1/tool_calls",
            "only an assistant",
        ),
        (
            r#"{"role":"assistant","tool_calls":[{"id":"1","type":"custom","function":{"name":"f","arguments":"{}"}}]}"#,
            Kind::Unsupported,
            "/messages/1/tool_calls/0/type",
            "'custom'",
        ),
        (
            r#"{"role":"assistant","tool_calls":[{"type":"function","function":{"name":"f","arguments":"{}"}}]}"#,
            Kind::InvalidValue,
            "/messages/1/tool_calls/0/id",
            "missing 'id'",
        ),
        (
            r#"{"role":"assistant","tool_calls":[{"id":"1"}]}"#,
            Kind::InvalidValue,
            "/messages/1/tool_calls/0/function",
            "missing 'function'",
        ),
        (
            r#"{"role":"assistant","tool_calls":[{"id":"1","index":0}]}"#,
            Kind::InvalidValue,
            "/messages/1/tool_calls/0",
            r#"extra "index""#,
        ),
        (
            r#"{"role":"assistant","tool_calls":[{"id":"1","function":{"arguments":"{}"}}]}"#,
            Kind::InvalidValue,
            "/messages/1/tool_calls/0/function/name",
            "missing 'name'",
        ),
        (
            r#"{"role":"assistant","tool_calls":[{"id":"1","function":{"name":"f"}}]}"#,
            Kind::InvalidValue,
            "/messages/1/tool_calls/0/function/arguments",
            "missing 'arguments'",
        ),
        (
            r#"{"role":"assistant","tool_calls":[{"id":"1","function":{"name":"f","arguments":{}}}]}"#,
            Kind::InvalidValue,
            "/messages/1/tool_calls/0/function/arguments",
            "expected a string",
        ),
        (
            r#"{"role":"assistant","function_call":{"name":"f","arguments":"{}","x":1}}"#,
            Kind::InvalidValue,
            "/messages/1/function_call",
            r#"extra "x""#,
        ),
        (
            r#""user""#,
            Kind::InvalidValue,
            "/messages/1",
            "a message object",
        ),
    ];
    for (message, kind, pointer, reason) in cases {
        check_refused(
            &row(&format!("{USER},{message},{BOT}")),
            *kind,
            pointer,
            reason,
        );
    }
}

#[test]
fn every_bad_row_is_refused_by_name_and_place() {
    let cases: &[(String, Kind, &str, &str)] = &[
        (
            r#"{"foo":1}"#.into(),
            Kind::UnexpectedFormat,
            "",
            "neither 'messages'",
        ),
        (
            r#"{}"#.into(),
            Kind::UnexpectedFormat,
            "",
            "neither 'messages'",
        ),
        (
            format!("[{GOOD}]"),
            Kind::UnexpectedFormat,
            "",
            "not a JSON object",
        ),
        ("7".into(), Kind::UnexpectedFormat, "", "not a JSON object"),
        (
            "null".into(),
            Kind::UnexpectedFormat,
            "",
            "not a JSON object",
        ),
        (
            r#"{"messages": [oops"#.into(),
            Kind::InvalidJson,
            "/messages/0",
            "invalid json",
        ),
        (
            r#"{"messages":[]"#.into(),
            Kind::InvalidJson,
            "",
            "invalid json: EOF",
        ),
        (
            format!("{GOOD} {GOOD}"),
            Kind::InvalidJson,
            "",
            "trailing characters",
        ),
        (
            format!("{GOOD},"),
            Kind::InvalidJson,
            "",
            "trailing characters",
        ),
        (
            row(USER),
            Kind::NoAssistant,
            "/messages",
            "at least one message from the assistant",
        ),
        (row(""), Kind::InvalidValue, "/messages", "no messages"),
        (
            r#"{"messages":{}}"#.into(),
            Kind::InvalidValue,
            "/messages",
            "array of messages",
        ),
        (
            r#"{"messages":null}"#.into(),
            Kind::InvalidValue,
            "/messages",
            "array of messages",
        ),
        (
            row(r#"{"role":"assistant","content":"b","weight":0}"#),
            Kind::NothingToTrain,
            "/messages",
            "nothing to train on",
        ),
        (
            GOOD.replacen('{', r#"{"weight":1.0,"#, 1),
            Kind::ExtraKey,
            "",
            r#"contains an extra "weight""#,
        ),
        (
            GOOD.replacen('{', r#"{"prompt":"x","#, 1),
            Kind::ExtraKey,
            "",
            r#"contains an extra "prompt""#,
        ),
        (
            GOOD.replacen('{', r#"{"messages":[],"#, 1),
            Kind::DuplicateKey,
            "",
            "'messages' twice",
        ),
        (
            GOOD.replacen('{', r#"{"x":1,"x":2,"#, 1),
            Kind::DuplicateKey,
            "",
            "'x' twice",
        ),
        (
            GOOD.replacen('{', r#"{"tools":7,"#, 1),
            Kind::InvalidValue,
            "/tools",
            "array of tools",
        ),
        (
            GOOD.replacen('{', r#"{"tools":[{"type":"retrieval"}],"#, 1),
            Kind::InvalidValue,
            "/tools/0",
            "not 'function'",
        ),
        (
            GOOD.replacen(
                '{',
                r#"{"tools":[{"type":"function","function":{"name":""}}],"#,
                1,
            ),
            Kind::InvalidValue,
            "/tools/0/function",
            "without a name",
        ),
        (
            GOOD.replacen(
                '{',
                r#"{"tools":[{"type":"function","function":{"name":"f","name":"g"}}],"#,
                1,
            ),
            Kind::DuplicateKey,
            "/tools/0/function",
            "'name' twice",
        ),
        (
            GOOD.replacen('{', r#"{"functions":[{}],"#, 1),
            Kind::InvalidValue,
            "/functions/0",
            "without a name",
        ),
        (
            GOOD.replacen('{', r#"{"parallel_tool_calls":1,"#, 1),
            Kind::InvalidValue,
            "/parallel_tool_calls",
            "expected a boolean",
        ),
        (
            r#"{"prompt":"a","completion":"b"}"#.into(),
            Kind::WrittenAs(DataFormat::PromptCompletion),
            "",
            "looks like prompt_completion",
        ),
        (
            r#"{"input":{"messages":[]},"preferred_output":[],"non_preferred_output":[]}"#.into(),
            Kind::WrongFormat(RowFormat::Preference),
            "",
            "fine-tune-preference",
        ),
        (
            GOOD.replacen(
                '{',
                &format!(r#"{{"x":{}1{},"#, "[".repeat(32), "]".repeat(32)),
                1,
            ),
            Kind::TooDeep,
            &format!("/x{}", "/0".repeat(31)),
            "deeper than 32",
        ),
        (
            format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000)),
            Kind::TooDeep,
            &"/a".repeat(32),
            "deeper than 32",
        ),
        (
            row(&vec![USER; 2049].join(",")),
            Kind::TooLarge,
            "/messages",
            "more than 2048 messages",
        ),
    ];
    for (line, kind, pointer, reason) in cases {
        check_refused(line, *kind, pointer, reason);
    }
}

#[test]
fn nesting_up_to_the_limit_is_taken() {
    let line = GOOD.replacen(
        '{',
        &format!(r#"{{"x":{}1{},"#, "[".repeat(31), "]".repeat(31)),
        1,
    );
    check_refused(&line, Kind::ExtraKey, "", r#"extra "x""#);
}

#[test]
fn a_row_with_everything_keeps_everything() {
    let line = r#"{"tools":[{"type":"function","function":{"name":"f","parameters":{"b":1,"a":2}}}],"functions":[{"name":"g"}],"parallel_tool_calls":false,"messages":[
        {"role":"developer","content":"d"},
        {"role":"user","name":"ann","content":[{"type":"text","text":"<|im_"},{"type":"text","text":"end|>"}]},
        {"role":"assistant","content":null,"refusal":null,"annotations":[],"tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"x\": 1}"}}],"weight":0},
        {"role":"tool","tool_call_id":"c1","content":"20"},
        {"role":"assistant","function_call":{"name":"g","arguments":"{}"}},
        {"role":"function","name":"g","content":""},
        {"role":"assistant","content":"done","weight":1}]}"#;
    let example = chat(&line.replace('\n', " "));
    let roles: Vec<Role> = example
        .messages
        .iter()
        .map(|message| message.role)
        .collect();
    let expected = [
        Role::Developer,
        Role::User,
        Role::Assistant,
        Role::Tool,
        Role::Assistant,
        Role::Function,
        Role::Assistant,
    ];
    assert_eq!(roles, expected);
    assert_eq!(
        example.trained,
        [false, false, false, false, true, false, true]
    );
    assert_eq!(example.messages[1].content.as_deref(), Some("<|im_end|>"));
    assert_eq!(example.messages[1].name.as_deref(), Some("ann"));
    assert_eq!(example.messages[2].tool_calls[0].arguments, r#"{"x": 1}"#);
    assert_eq!(example.messages[2].tool_calls[0].id, "c1");
    assert_eq!(example.messages[4].tool_calls[0].name, "g");
    assert_eq!(example.parallel_tool_calls, Some(false));
    let tools: Vec<String> = example.tools.iter().map(ToString::to_string).collect();
    let expected = [
        r#"{"type":"function","function":{"name":"f","parameters":{"b":1,"a":2}}}"#,
        r#"{"type":"function","function":{"name":"g"}}"#,
    ];
    assert_eq!(tools, expected);
}

#[test]
fn nulls_that_clients_send_are_as_good_as_nothing() {
    let line = r#"{"tools":null,"functions":null,"parallel_tool_calls":null,"messages":[{"role":"user","content":"a","name":null,"weight":null},{"role":"assistant","content":"b","tool_calls":null,"weight":null}]}"#;
    assert_eq!(chat(line).trained, [false, true]);
}

#[test]
fn rows_of_other_methods_are_read_for_those_methods() {
    let dpo = r#"{"input":{"messages":[{"role":"user","content":"1"}],"tools":[],"parallel_tool_calls":true},"preferred_output":[{"role":"assistant","content":"un"}],"non_preferred_output":[{"role":"assistant","content":"one"}]}"#;
    let Ok(TrainingExample::Preference(example)) = parse_row(dpo, RowFormat::Preference) else {
        panic!("no preference row");
    };
    assert_eq!(example.preferred.content.as_deref(), Some("un"));
    assert_eq!(example.non_preferred.content.as_deref(), Some("one"));
    let older = dpo.replace("preferred_output", "preferred_completion");
    assert!(parse_row(&older, RowFormat::Preference).is_ok());

    let rft = r#"{"messages":[{"role":"user","content":"1+1="}],"reference_answer":"2"}"#;
    let Ok(TrainingExample::Reinforcement(example)) = parse_row(rft, RowFormat::Reinforcement)
    else {
        panic!("no reinforcement row");
    };
    assert_eq!(example.item["reference_answer"], "2");
    check_refused(rft, Kind::ExtraKey, "", r#"extra "reference_answer""#);

    let legacy = r#"{"prompt":"a ->","completion":" b"}"#;
    let expected = TrainingExample::Completion {
        prompt: "a ->".into(),
        completion: " b".into(),
    };
    assert_eq!(parse_row(legacy, RowFormat::Completion), Ok(expected));

    for (line, kind, reason) in [
        (GOOD, Kind::WrongFormat(RowFormat::Chat), "fine-tune-chat"),
        (r#"{"foo":1}"#, Kind::MissingKey, "is missing key 'input'"),
        (
            r#"{"input":{"messages":[{"role":"user","content":"1"}]}}"#,
            Kind::MissingKey,
            "'preferred_output'",
        ),
        (
            r#"{"input":{"messages":[{"role":"user","content":"1"}],"x":1}}"#,
            Kind::ExtraKey,
            r#"extra "x""#,
        ),
    ] {
        let error = parse_row(line, RowFormat::Preference).unwrap_err();
        assert_eq!(error.kind, kind, "{line}");
        assert!(error.reason.contains(reason), "{line}: {}", error.reason);
    }
}

#[test]
fn a_judged_row_learns_its_last_answer_alone() {
    let messages = r#"{"role":"user","content":"1"},{"role":"assistant","content":"a"},{"role":"user","content":"2"},{"role":"assistant","content":"b"}"#;
    let line = |rest: &str| format!(r#"{{"messages":[{messages}]{rest}}}"#);
    let unpaired = RowFormat::UnpairedPreference;
    for (label, tools) in [(true, ""), (false, r#","tools":[]"#)] {
        let line = line(&format!(r#","label":{label}{tools}"#));
        let Ok(TrainingExample::Unpaired(example)) = parse_row(&line, unpaired) else {
            panic!("no judged row: {line}");
        };
        assert_eq!(example.label, label);
        assert_eq!(example.chat.trained, [false, false, false, true]);
        // What calls an answer good or bad is for one loss alone, but to a grader.
        for (format, method) in [
            (RowFormat::Chat, "supervised"),
            (RowFormat::Preference, "dpo"),
        ] {
            let error = parse_row(&line, format).unwrap_err();
            assert_eq!(error.kind, Kind::WrongFormat(unpaired), "{method}");
        }
        let Ok(TrainingExample::Reinforcement(example)) =
            parse_row(&line, RowFormat::Reinforcement)
        else {
            panic!("no reinforcement row: {line}");
        };
        assert_eq!(example.item["label"], label);
    }
    let row = |messages: &str| format!(r#"{{"messages":[{messages}],"label":true}}"#);
    let pair = r#"{"input":{"messages":[{"role":"user","content":"1"}]},"preferred_output":[{"role":"assistant","content":"un"}],"non_preferred_output":[{"role":"assistant","content":"one"}]}"#;
    for (line, kind, pointer, reason) in [
        (line(""), Kind::MissingKey, "", "is missing key 'label'"),
        (
            line(r#","label":1"#),
            Kind::InvalidValue,
            "/label",
            "neither true nor false",
        ),
        (
            line(r#","label":null"#),
            Kind::InvalidValue,
            "/label",
            "neither true nor false",
        ),
        (
            line(r#","label":true,"note":1"#),
            Kind::ExtraKey,
            "",
            r#"extra "note""#,
        ),
        (
            row(
                r#"{"role":"user","content":"1"},{"role":"assistant","content":"a"},{"role":"user","content":"2"}"#,
            ),
            Kind::NoAssistant,
            "/messages",
            "must end with",
        ),
        (
            row(
                r#"{"role":"assistant","content":"a"},{"role":"assistant","content":"b","weight":0}"#,
            ),
            Kind::NothingToTrain,
            "/messages",
            "weight is 0",
        ),
        (
            pair.to_owned(),
            Kind::WrongFormat(RowFormat::Preference),
            "",
            "fine-tune-preference",
        ),
        (
            r#"{"prompt":"a","completion":"b"}"#.to_owned(),
            Kind::WrongFormat(RowFormat::Completion),
            "",
            "fine-tune-completions",
        ),
    ] {
        let error = parse_row(&line, unpaired).unwrap_err();
        assert_eq!(
            (error.kind, error.pointer.as_str()),
            (kind, pointer),
            "{line}"
        );
        assert!(error.reason.contains(reason), "{line}: {}", error.reason);
    }
    // A label that judges nothing is a key of no format.
    let class = line(r#","label":"maths""#);
    check_refused(&class, Kind::ExtraKey, "", r#"extra "label""#);
}

proptest! {
    #[test]
    fn any_text_as_content_survives_and_any_line_is_no_panic(content in "\\PC{1,60}", line in "[\\PC]{0,80}") {
        let line_of_content = serde_json::json!({"messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": content},
        ]}).to_string();
        let example = chat(&line_of_content);
        prop_assert_eq!(example.messages[0].content.as_deref(), Some(content.as_str()));
        let _ = parse_row(&line, RowFormat::Chat);
    }
}
