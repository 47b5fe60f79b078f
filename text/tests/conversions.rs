//! Rows as other tools write them: each is the same example as one in OpenAI's format, and what is wrong with one is said of the row as it
//! was written.

use domain::preference::{Preference, PreferenceLoss};
use domain::x_training::{Data, DataFormat, Packing, Truncation};
use serde_json::{Value, json};
use text::formats::{
    Expected, LineErrorKind as Kind, RowError, RowFormat, TrainingExample, parse_row,
};
use text::report::{DatasetReport, FileRole};

use DataFormat::{Alpaca, Chat, PromptCompletion, QueryResponse, ShareGpt};

fn data(format: DataFormat) -> Data {
    Data {
        format,
        max_length: 512,
        truncation: Truncation::Right,
        packing: Packing::BinPack,
    }
}

fn supervised(format: DataFormat) -> Expected {
    Expected::of(None, &data(format))
}

fn preference(format: DataFormat) -> Expected {
    let dpo = Preference::default();
    Expected::of(Some(&dpo), &data(format))
}

fn unpaired(format: DataFormat) -> Expected {
    let kto = Preference {
        loss_type: PreferenceLoss::Kto,
        ..Preference::default()
    };
    Expected::of(Some(&kto), &data(format))
}

fn parsed(row: &Value, expected: Expected) -> TrainingExample {
    parse_row(&row.to_string(), expected).unwrap_or_else(|error| panic!("{row}: {error:?}"))
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn bot(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

fn system(text: &str) -> Value {
    json!({"role": "system", "content": text})
}

fn weather() -> Value {
    json!({"name": "weather", "description": "Now.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}})
}

#[test]
fn every_format_gives_the_messages_that_chat_gives() {
    let tool = json!({"type": "function", "function": weather()});
    let call = |id: &str, city: &str| json!({"id": id, "type": "function", "function": {"name": "weather", "arguments": format!(r#"{{"city":"{city}"}}"#)}});
    let asked = |city: &str| json!({"name": "weather", "arguments": {"city": city}});
    let cases = [
        (
            Alpaca,
            json!({"instruction": "Add.", "input": "1 and 2", "output": "3"}),
            json!({"messages": [user("Add.\n1 and 2"), bot("3")]}),
        ),
        (
            Alpaca,
            json!({"output": "3", "input": "", "instruction": "Add 1 and 2.", "text": "left unread", "id": 7}),
            json!({"messages": [user("Add 1 and 2."), bot("3")]}),
        ),
        (
            Alpaca,
            json!({"instruction": "Add 1 and 2.", "input": null, "output": "3", "system": null, "history": null}),
            json!({"messages": [user("Add 1 and 2."), bot("3")]}),
        ),
        (
            Alpaca,
            json!({"instruction": "And 3?", "output": "6", "system": "You add.", "history": [["1 and 2?", "3"], ["", "?"]]}),
            json!({"messages": [system("You add."), user("1 and 2?"), bot("3"), user(""), bot("?"), user("And 3?"), bot("6")]}),
        ),
        (
            Alpaca,
            json!({"instruction": "How is it?", "output": "Fine.", "tools": weather_text()}),
            json!({"tools": [tool], "messages": [user("How is it?"), bot("Fine.")]}),
        ),
        (
            QueryResponse,
            json!({"query": "1 and 2?", "response": "3"}),
            json!({"messages": [user("1 and 2?"), bot("3")]}),
        ),
        (
            QueryResponse,
            json!({"system": "You add.", "query": "And 3?", "response": "6", "history": [["1 and 2?", "3"]], "rejected_response": null}),
            json!({"messages": [system("You add."), user("1 and 2?"), bot("3"), user("And 3?"), bot("6")]}),
        ),
        (
            ShareGpt,
            json!({"id": "a", "conversations": [{"from": "human", "value": "1 and 2?"}, {"from": "gpt", "value": "3"}, {"from": "user", "value": "And 3?"}, {"from": "assistant", "value": "6"}]}),
            json!({"messages": [user("1 and 2?"), bot("3"), user("And 3?"), bot("6")]}),
        ),
        (
            ShareGpt,
            json!({"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}], "system": "Be brief."}),
            json!({"messages": [system("Be brief."), user("?"), bot("!")]}),
        ),
        (
            ShareGpt,
            json!({"conversations": [{"from": "system", "value": "Be brief.", "weight": null}, {"from": "human", "value": "?", "weight": 0}, {"from": "chatgpt", "value": "!", "weight": 0}, {"from": "human", "value": "??"}, {"from": "bing", "value": "!!", "loss": true}]}),
            json!({"messages": [system("Be brief."), user("?"), {"role": "assistant", "content": "!", "weight": 0}, user("??"), bot("!!")]}),
        ),
        (
            ShareGpt,
            json!({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", "loss": false}, {"role": "user", "content": [{"type": "text", "text": "??"}]}, {"role": "assistant", "content": "!!", "loss": null}]}),
            json!({"messages": [user("?"), {"role": "assistant", "content": "!", "weight": 0}, user("??"), bot("!!")]}),
        ),
        (
            ShareGpt,
            json!({"conversation": [{"human": "?", "assistant": "!"}, {"human": "??", "assistant": "!!"}]}),
            json!({"messages": [user("?"), bot("!"), user("??"), bot("!!")]}),
        ),
        (
            ShareGpt,
            json!({"tools": weather_text(), "conversations": [
                {"from": "human", "value": "Rain?"},
                {"from": "function_call", "value": json!([asked("Bonn"), asked("Köln")]).to_string()},
                {"from": "observation", "value": "dry"}, {"from": "tool_response", "value": "wet"},
                {"from": "gpt", "value": "In Köln."},
                {"from": "human", "value": "And in Ulm?"},
                {"from": "tool_call", "value": json!({"name": "weather", "arguments": r#"{"city":"Ulm"}"#}).to_string()},
                {"from": "observation", "value": "dry"},
                {"from": "gpt", "value": "No."}]}),
            json!({"tools": [tool], "messages": [
                user("Rain?"),
                {"role": "assistant", "tool_calls": [call("call00001", "Bonn"), call("call00002", "Köln")]},
                {"role": "tool", "tool_call_id": "call00001", "content": "dry"}, {"role": "tool", "tool_call_id": "call00002", "content": "wet"},
                bot("In Köln."),
                user("And in Ulm?"),
                {"role": "assistant", "tool_calls": [call("call00003", "Ulm")]},
                {"role": "tool", "tool_call_id": "call00003", "content": "dry"},
                bot("No.")]}),
        ),
    ];
    for (format, row, chat) in cases {
        assert_eq!(
            parsed(&row, supervised(format)),
            parsed(&chat, supervised(Chat)),
            "{row}"
        );
    }
}

/// As LLaMA-Factory has tools: a list of functions, as a text.
fn weather_text() -> String {
    json!([weather()]).to_string()
}

#[test]
fn pairs_of_answers_are_those_of_the_preference_format() {
    let expected = |messages: Value| json!({"input": {"messages": messages}, "preferred_output": [bot("3")], "non_preferred_output": [bot("4")]});
    let turns = json!([{"from": "human", "value": "1 and 2?"}]);
    let pair = |chosen: Value, rejected: Value| json!({"conversations": turns, "chosen": chosen, "rejected": rejected});
    let gpt = |text: &str| json!({"from": "gpt", "value": text});
    for (format, row, messages) in [
        (
            Alpaca,
            json!({"instruction": "1 and 2?", "input": "", "chosen": "3", "rejected": "4"}),
            json!([user("1 and 2?")]),
        ),
        (
            Alpaca,
            json!({"instruction": "Add.", "input": "1 and 2", "chosen": "3", "rejected": "4", "history": [["a", "b"]], "output": "unread"}),
            json!([user("a"), bot("b"), user("Add.\n1 and 2")]),
        ),
        (
            QueryResponse,
            json!({"query": "1 and 2?", "response": "3", "rejected_response": "4", "system": "You add."}),
            json!([system("You add."), user("1 and 2?")]),
        ),
        (
            ShareGpt,
            pair(gpt("3"), gpt("4")),
            json!([user("1 and 2?")]),
        ),
        (
            ShareGpt,
            pair(json!([gpt("3")]), json!("4")),
            json!([user("1 and 2?")]),
        ),
    ] {
        assert_eq!(
            parsed(&row, preference(format)),
            parsed(&expected(messages), preference(Chat)),
            "{row}"
        );
    }
}

#[test]
fn judged_answers_are_those_of_the_chat_format() {
    let chat = |label: bool| json!({"messages": [user("1 and 2?"), bot("3")], "label": label});
    let turns = json!([{"from": "human", "value": "1 and 2?"}, {"from": "gpt", "value": "3"}]);
    for (format, row, label) in [
        (
            Alpaca,
            json!({"instruction": "1 and 2?", "input": "", "output": "3", "kto_tag": true}),
            true,
        ),
        (
            Alpaca,
            json!({"label": false, "instruction": "1 and 2?", "output": "3", "kto_tag": null}),
            false,
        ),
        (
            QueryResponse,
            json!({"query": "1 and 2?", "response": "3", "label": false}),
            false,
        ),
        (
            ShareGpt,
            json!({"conversations": turns, "label": "maths", "kto_tag": true}),
            true,
        ),
    ] {
        let (found, expected) = (
            parsed(&row, unpaired(format)),
            parsed(&chat(label), unpaired(Chat)),
        );
        assert_eq!(found, expected, "{row}");
    }
    // What is no judgement is left unread where nothing is judged.
    let row = json!({"instruction": "1 and 2?", "output": "3", "label": "maths"});
    let plain = json!({"messages": [user("1 and 2?"), bot("3")]});
    assert_eq!(
        parsed(&row, supervised(Alpaca)),
        parsed(&plain, supervised(Chat))
    );
}

#[test]
fn a_row_without_a_judgement_is_refused_where_answers_are_judged() {
    let turns =
        r#"[{"from":"human","value":"?"},{"from":"gpt","value":"!"},{"from":"human","value":"?"}]"#;
    let ends_with_a_question = format!(r#"{{"conversations":{turns},"label":true}}"#);
    for (format, row, kind, pointer, reason) in [
        (
            Alpaca,
            r#"{"instruction":"a","output":"b"}"#,
            Kind::MissingKey,
            "",
            "'label'",
        ),
        (
            Alpaca,
            r#"{"instruction":"a","output":"b","kto_tag":"good"}"#,
            Kind::InvalidValue,
            "/kto_tag",
            "neither true nor false",
        ),
        (
            Alpaca,
            r#"{"instruction":"a","chosen":"b","rejected":"c"}"#,
            Kind::WrongFormat(RowFormat::Preference),
            "",
            "an x_loss_type other than 'kto'",
        ),
        (
            ShareGpt,
            &ends_with_a_question,
            Kind::NoAssistant,
            "/conversations",
            "must end with",
        ),
    ] {
        let error = refused(row, unpaired(format));
        assert_eq!(
            (error.kind, error.pointer.as_str()),
            (kind, pointer),
            "{row}"
        );
        assert!(error.reason.contains(reason), "{row}: {}", error.reason);
    }
    let judged = r#"{"instruction":"a","output":"b","label":true}"#;
    let error = refused(judged, preference(Alpaca));
    assert_eq!(error.kind, Kind::WrongFormat(RowFormat::UnpairedPreference));
    assert_eq!(error.reason, "needs method 'dpo' and x_loss_type 'kto'");
}

fn refused(row: &str, expected: Expected) -> RowError {
    match parse_row(row, expected) {
        Err(error) => error,
        Ok(example) => panic!("{row} was taken: {example:?}"),
    }
}

#[test]
fn every_bad_row_is_refused_by_its_own_keys() {
    let turns =
        |turns: &str| format!(r#"{{"conversations":[{{"from":"human","value":"?"}},{turns}]}}"#);
    let cases: &[(DataFormat, String, Kind, &str, &str)] = &[
        (Alpaca, r#"{"output":"3"}"#.into(), Kind::MissingKey, "", "is missing key 'instruction'"),
        (Alpaca, r#"{"instruction":"a"}"#.into(), Kind::MissingKey, "", "is missing key 'output'"),
        (Alpaca, r#"{"instruction":"a","output":null}"#.into(), Kind::MissingKey, "", "is missing key 'output'"),
        (Alpaca, r#"{"instruction":"a","output":7}"#.into(), Kind::InvalidValue, "/output", "expected a string"),
        (Alpaca, r#"{"instruction":["a"],"output":"b"}"#.into(), Kind::InvalidValue, "/instruction", "expected a string"),
        (Alpaca, r#"{"instruction":"a","output":""}"#.into(), Kind::NothingToTrain, "/output", "has an empty 'output'"),
        (Alpaca, r#"{"instruction":"a","instruction":"b","output":"c"}"#.into(), Kind::DuplicateKey, "", "'instruction' twice"),
        (Alpaca, r#"{"instruction":"a","output":"c","x":1,"x":1}"#.into(), Kind::DuplicateKey, "", "'x' twice"),
        (Alpaca, r#"{"instruction":"a","output":"c","history":[["q","r"],["q"]]}"#.into(), Kind::InvalidValue, "/history/1", "not a question and its answer"),
        (Alpaca, r#"{"instruction":"a","output":"c","history":[["q","r","s"]]}"#.into(), Kind::TooLarge, "/history/0", "more than 2 texts"),
        (Alpaca, r#"{"instruction":"a","output":"c","history":[["q",""]]}"#.into(), Kind::NothingToTrain, "/history/0/1", "an empty answer"),
        (Alpaca, r#"{"instruction":"a","output":"c","tools":"[{]"}"#.into(), Kind::InvalidValue, "/tools", "should be JSON"),
        (Alpaca, r#"{"instruction":"a","output":"c","tools":"[{\"description\":\"\"}]"}"#.into(), Kind::InvalidValue, "/tools/0/function", "without a name"),
        (Alpaca, r#"{"instruction":"a","output":"c","images":["x.png"]}"#.into(), Kind::Unsupported, "/images", "only text"),
        (Alpaca, r#"{"instruction":"a","output":"c","kto_tag":true}"#.into(), Kind::WrongFormat(RowFormat::UnpairedPreference), "", "is of method 'dpo'"),
        (Alpaca, r#"{"instruction":"a","output":"c","kto_tag":true,"label":true}"#.into(), Kind::InvalidValue, "/label", "both 'kto_tag' and 'label'"),
        (ShareGpt, turns(r#"{"from":"gpt","value":"!","label":true}"#), Kind::Unsupported, "/conversations/1/label", "beside the conversation"),
        (Alpaca, r#"{"instruction":"a","chosen":"c","rejected":"d"}"#.into(), Kind::WrongFormat(RowFormat::Preference), "", "is of method 'dpo'"),
        (Alpaca, "{oops".into(), Kind::InvalidJson, "", "invalid json"),
        (Alpaca, "[]".into(), Kind::UnexpectedFormat, "", "not a JSON object"),
        (QueryResponse, r#"{"response":"3"}"#.into(), Kind::MissingKey, "", "is missing key 'query'"),
        (QueryResponse, r#"{"query":"a","response":""}"#.into(), Kind::NothingToTrain, "/response", "empty 'response'"),
        (QueryResponse, r#"{"query":"a","response":"b","rejected_response":"c"}"#.into(), Kind::WrongFormat(RowFormat::Preference), "", "is of method 'dpo'"),
        (ShareGpt, "{}".into(), Kind::MissingKey, "", "is missing key 'conversations'"),
        (ShareGpt, r#"{"conversations":[]}"#.into(), Kind::InvalidValue, "/conversations", "has no turns"),
        (ShareGpt, turns(r#"{"value":"!"}"#), Kind::UnknownSpeaker, "/conversations/1/from", "is missing 'from'"),
        (ShareGpt, turns(r#"{"from":"robot","value":"!"}"#), Kind::UnknownSpeaker, "/conversations/1/from", "is from 'robot'"),
        (ShareGpt, turns(r#"{"role":"robot","content":"!"}"#), Kind::UnknownSpeaker, "/conversations/1/role", "is from 'robot'"),
        (ShareGpt, turns(r#"{"from":"gpt"}"#), Kind::InvalidValue, "/conversations/1/value", "is missing 'value'"),
        (ShareGpt, turns(r#"{"from":"gpt","value":""}"#), Kind::NothingToTrain, "/conversations/1/value", "empty 'value'"),
        (ShareGpt, turns(r#"{"from":"gpt","value":3}"#), Kind::InvalidValue, "/conversations/1/value", "wrong type"),
        (ShareGpt, turns(r#"{"from":"human","value":"?"}"#), Kind::NoAssistant, "/conversations", "at least one message from the assistant"),
        (ShareGpt, turns(r#"{"from":"gpt","value":"!","weight":0}"#), Kind::NothingToTrain, "/conversations", "nothing to train on"),
        (ShareGpt, turns(r#"{"from":"human","value":"!","weight":1}"#), Kind::InvalidWeight, "/conversations/1/weight", "only an answer"),
        (ShareGpt, turns(r#"{"from":"gpt","value":"!","weight":1,"loss":false}"#), Kind::InvalidWeight, "/conversations/1/loss", "contradicts"),
        (ShareGpt, turns(r#"{"from":"function_call","value":"now"}"#), Kind::InvalidValue, "/conversations/1/value", "should be JSON"),
        (ShareGpt, turns(r#"{"from":"function_call","value":"{\"name\":\"f\"}"}"#), Kind::InvalidValue, "/conversations/1/value", "without 'arguments'"),
        (ShareGpt, turns(r#"{"from":"observation","value":"4"}"#), Kind::InvalidValue, "/conversations/1", "no function was called"),
        (ShareGpt, turns(r#"{"from":"gpt","value":"","tool_calls":[]}"#), Kind::InvalidValue, "/conversations/1", "only the format \"chat\""),
        (ShareGpt, turns(r#"{"human":"a"}"#), Kind::InvalidValue, "/conversations/1", "both 'human' and 'assistant'"),
        (ShareGpt, r#"{"system":"a","conversations":[{"from":"system","value":"b"},{"from":"gpt","value":"c"}]}"#.into(), Kind::InvalidValue, "/system", "begins with one"),
        (PromptCompletion, r#"{"prompt":"a"}"#.into(), Kind::MissingKey, "", "is missing key 'completion'"),
        (PromptCompletion, r#"{"prompt":"a","completion":""}"#.into(), Kind::NothingToTrain, "/completion", "empty completion"),
        (PromptCompletion, r#"{"prompt":[],"completion":"b"}"#.into(), Kind::InvalidValue, "/prompt", "expected a string"),
        (PromptCompletion, r#"{"prompt":"a","completion":"b","id":1}"#.into(), Kind::ExtraKey, "", "extra \"id\""),
    ];
    for (format, row, kind, pointer, reason) in cases {
        let error = refused(row, supervised(*format));
        assert_eq!(
            (error.kind, error.pointer.as_str()),
            (*kind, *pointer),
            "{row}: {error:?}"
        );
        assert!(
            error.reason.contains(reason),
            "{row}: {:?} lacks {reason:?}",
            error.reason
        );
        assert!(error.byte_offset <= row.len() as u64, "{row}");
        assert!(!error.kind.suggested_fix().is_empty());
    }
    for (format, row, kind, reason) in [
        (
            Alpaca,
            r#"{"instruction":"a","chosen":"b"}"#,
            Kind::MissingKey,
            "'rejected'",
        ),
        (
            Alpaca,
            r#"{"instruction":"a","rejected":"b"}"#,
            Kind::MissingKey,
            "'chosen'",
        ),
        (
            Alpaca,
            r#"{"instruction":"a"}"#,
            Kind::MissingKey,
            "'chosen'",
        ),
        (
            Alpaca,
            r#"{"instruction":"a","output":"b"}"#,
            Kind::WrongFormat(RowFormat::Chat),
            "method 'supervised'",
        ),
        (
            QueryResponse,
            r#"{"query":"a","response":"b"}"#,
            Kind::WrongFormat(RowFormat::Chat),
            "method 'supervised'",
        ),
        (
            ShareGpt,
            r#"{"conversations":[{"from":"human","value":"?"}],"chosen":"a"}"#,
            Kind::MissingKey,
            "'rejected'",
        ),
        (
            ShareGpt,
            r#"{"conversations":[{"from":"human","value":"?"}],"chosen":{"from":"human","value":"a"},"rejected":"b"}"#,
            Kind::InvalidValue,
            "one text from the assistant",
        ),
    ] {
        let error = refused(row, preference(format));
        assert_eq!(error.kind, kind, "{row}: {error:?}");
        assert!(error.reason.contains(reason), "{row}: {}", error.reason);
    }
}

#[test]
fn an_error_stands_at_its_byte() {
    let row = r#"{"instruction":"a","output":"b","history":[["q",7]]}"#;
    let error = refused(row, supervised(Alpaca));
    assert_eq!(error.pointer, "/history/0/1");
    let place = row.find('7').unwrap() as u64;
    assert!((place..place + 2).contains(&error.byte_offset), "{error:?}");
}

#[test]
fn a_pair_behind_an_answer_is_refused() {
    let row = r#"{"conversations":[{"from":"human","value":"?"},{"from":"gpt","value":"3"}],"chosen":"3","rejected":"4"}"#;
    let error = refused(row, preference(ShareGpt));
    assert_eq!(error.pointer, "/conversations");
    assert!(error.reason.contains("leave it out"), "{}", error.reason);
}

#[test]
fn a_row_that_another_name_would_not_help_is_told_what_is_wrong() {
    let row = r#"{"messages":[{"role":"user","content":"?"},{"role":"assistant","content":""}]}"#;
    assert_eq!(
        refused(row, supervised(ShareGpt)).pointer,
        "/messages/1/content"
    );
    let pair = refused(r#"{"prompt":"a","completion":"b"}"#, preference(Chat));
    assert!(!matches!(pair.kind, Kind::WrittenAs(_)), "{:?}", pair.kind);
}

#[test]
fn a_row_in_another_format_is_told_which_one_to_set() {
    let rows = [
        (
            Chat,
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
        ),
        (Alpaca, r#"{"instruction":"a","input":"","output":"b"}"#),
        (
            ShareGpt,
            r#"{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}"#,
        ),
        (QueryResponse, r#"{"query":"a","response":"b"}"#),
        (PromptCompletion, r#"{"prompt":"a","completion":"b"}"#),
    ];
    for (written, row) in rows {
        assert!(parse_row(row, supervised(written)).is_ok(), "{row}");
        for (expected, _) in rows {
            // A list of messages with roles and contents is read as ShareGPT's, too.
            if expected == written || (expected, written) == (ShareGpt, Chat) {
                continue;
            }
            let error = refused(row, supervised(expected));
            assert_eq!(
                error.kind,
                Kind::WrittenAs(written),
                "{row} as {expected:?}"
            );
            let fix = format!("Set x_training.data.format to \"{}\".", written.as_str());
            assert_eq!(error.kind.suggested_fix(), fix);
        }
    }
    let turns = r#"{"messages":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}"#;
    assert_eq!(
        refused(turns, supervised(Chat)).kind,
        Kind::WrittenAs(ShareGpt)
    );
    assert_eq!(
        refused(r#"{"foo":1}"#, supervised(Chat)).kind,
        Kind::UnexpectedFormat
    );
}

#[test]
fn a_job_on_a_file_in_another_format_fails_with_the_word_to_set() {
    let job_error = |row: &str| {
        let mut parser = text::dataset::DatasetParser::new(RowFormat::Chat);
        let mut report = DatasetReport::default();
        parser.push(format!("{row}\n{row}\n").as_bytes(), &mut |row| {
            report.add(&row)
        });
        let error = report
            .job_error(FileRole::Training, "file-X", "supervised")
            .unwrap();
        (error.code, error.message)
    };
    for (row, message) in [
        (
            r#"{"instruction":"a","input":"","output":"b"}"#,
            "The job failed due to an invalid training file. Unexpected file format, expected either prompt/completion pairs or chat messages. The rows look like alpaca; set x_training.data.format to \"alpaca\".",
        ),
        (
            r#"{"prompt":"a","completion":"b"}"#,
            "The job failed due to an invalid training file. Invalid file format. Input file file-X is in the fine-tune-completions format, but the model is fine-tuned on chat messages. The rows look like prompt_completion; set x_training.data.format to \"prompt_completion\".",
        ),
    ] {
        assert_eq!(
            job_error(row),
            ("invalid_training_file".to_owned(), message.to_owned())
        );
    }
}
