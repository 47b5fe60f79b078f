//! Calls of functions with real templates: what a template writes is read again, and a grammar of calls allows just that.

use std::panic::catch_unwind;
use std::sync::Arc;

use domain::generation::{ChatMessage, ResponseFormat, Role, ToolCall, ToolChoice};
use serde_json::{Value, json};
use text::chat_model::ChatModel;
use text::grammar::{Grammar, Wanted};
use text::tools::Heard;

use crate::labels::model;
use crate::{FAMILIES, Family, list, source};

/// Templates with calls in a form that is not understood: a call is an expression of Python or of a language of its own, its name
/// stands in its id alone, or the template needs more than messages and tools.
const NOT_UNDERSTOOD: [&str; 41] = [
    "axolotl/command_a",
    "axolotl/gemma4",
    "llama.cpp/CohereForAI-c4ai-command-r-plus-tool_use",
    "llama.cpp/Kimi-K2-Instruct",
    "llama.cpp/Kimi-K2-Thinking",
    "llama.cpp/Kimi-K3",
    "llama.cpp/LFM2.5-8B-A1B",
    "llama.cpp/MiniMax-M3",
    "llama.cpp/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "llama.cpp/deepseek-ai-DeepSeek-V3.2",
    "llama.cpp/deepseek-ai-DeepSeek-V4",
    "llama.cpp/deepseek-ai-DeepSeek-V4-Flash-0731",
    "llama.cpp/fireworks-ai-llama-3-firefunction-v2",
    "llama.cpp/google-gemma-4-31B-it",
    "llama.cpp/google-gemma-4-31B-it-interleaved",
    "llama.cpp/llama-cpp-deepseek-r1",
    "llama.cpp/meetkai-functionary-medium-v3.2",
    "llama.cpp/muse-glimmer",
    "llama.cpp/openbmb-MiniCPM5-1B",
    "ollama-utils/firefunction-v2:70b",
    "trl/diffusion_gemma",
    "trl/diffusion_gemma_training",
    "trl/gemma4",
    "trl/gemma4_v2",
    "trl/gemma4_v3",
    "trl/gemma4_v4",
    "trl/gemma4_v5",
    "trl/lfm2_2_5_v2",
    "trl/lfm2_2_5_vl",
    "trl/lfm2_v2",
    "trl/lfm2_v2_training",
    "trl/muse_glimmer_training",
    "vllm/tool_chat_template_functiongemma",
    "vllm/tool_chat_template_gemma3_pythonic",
    "vllm/tool_chat_template_gemma4",
    "vllm/tool_chat_template_granite_20b_fc",
    "vllm/tool_chat_template_llama3.2_pythonic",
    "vllm/tool_chat_template_llama4_pythonic",
    "vllm/tool_chat_template_muse_glimmer",
    "vllm/tool_chat_template_phi4_mini",
    "vllm/tool_chat_template_toolace",
];

fn tools() -> Vec<Value> {
    let function = |name: &str, properties: Value, required: &[&str]| {
        json!({"type": "function", "function": {
            "name": name,
            "description": "Does it.",
            "parameters": {"type": "object", "properties": properties, "required": required, "additionalProperties": false},
        }})
    };
    vec![
        function(
            "get_weather",
            json!({"city": {"type": "string"}, "days": {"type": "integer"}}),
            &["city"],
        ),
        function(
            "add",
            json!({"numbers": {"type": "array", "items": {"type": "number"}}, "exact": {"type": "boolean"}}),
            &["numbers"],
        ),
        function("list_files", json!({}), &[]),
        function(
            "save",
            json!({"path": {"type": "string"}, "options": {"type": "object", "properties": {"mode": {"enum": ["new", "any"]}}}}),
            &["path", "options"],
        ),
    ]
}

fn call(i: usize, name: &str, arguments: Value) -> ToolCall {
    ToolCall {
        id: format!("abcdef12{i}"),
        name: name.to_owned(),
        arguments: arguments.to_string(),
    }
}

/// Turns that call functions, the first of them one alone.
fn turns() -> Vec<Vec<ToolCall>> {
    vec![
        vec![call(0, "get_weather", json!({"city": "Zürich", "days": 3}))],
        vec![call(
            0,
            "get_weather",
            json!({"city": "\"O}'\\Hara\", {IL}\nUSA"}),
        )],
        vec![
            call(0, "get_weather", json!({"city": "Oslo"})),
            call(1, "add", json!({"numbers": [1, -2.5, 3], "exact": true})),
        ],
        vec![
            call(
                0,
                "save",
                json!({"path": "a/b", "options": {"mode": "new"}}),
            ),
            call(1, "list_files", json!({})),
            call(2, "get_weather", json!({"city": "Roma"})),
        ],
    ]
}

fn wanted<'w>(tools: &'w [Value], choice: &'w ToolChoice) -> Wanted<'w> {
    Wanted {
        format: &ResponseFormat::Text,
        tools,
        choice,
        parallel: true,
    }
}

/// What the template writes for a turn, up to its end; `None` where it refuses the turn or writes less of it.
fn written(model: &ChatModel, ends: &[&str], turn: &[ToolCall]) -> Option<String> {
    let question = ChatMessage::new(Role::User, "zq-question");
    let turn = ChatMessage {
        tool_calls: turn.to_vec(),
        ..ChatMessage::new(Role::Assistant, "")
    };
    let text = model
        .conversation_text(&[question.clone(), turn], Some(&tools()))
        .ok()?;
    let answer = ChatMessage::new(Role::Assistant, "zq-answer");
    let other = model
        .conversation_text(&[question, answer], Some(&tools()))
        .ok()?;
    let same = |(left, right): &(char, char)| left == right;
    let n_same = text.chars().zip(other.chars()).take_while(same);
    let mut start = n_same.map(|(c, _)| c.len_utf8()).sum();
    // The tags of an answer and of calls may begin alike.
    if let Some(tag) = text[..start]
        .rfind("<|")
        .filter(|tag| !text[*tag..start].contains("|>"))
    {
        start = tag;
    }
    let text = &text[start..];
    let end = ends.iter().filter_map(|end| text.find(end)).min();
    let text = text[..end.unwrap_or(text.len())].trim_end();
    // Some write objects as Python does.
    (!text.is_empty() && !text.contains("{'mode'")).then(|| text.to_owned())
}

/// An answer as it is read when it comes in pieces of `n` characters.
fn read(
    model: &ChatModel,
    choice: &ToolChoice,
    answer: &str,
    n: usize,
) -> (String, Vec<(String, Value)>) {
    let tools = tools();
    let mut reader = model.call_reader(&wanted(&tools, choice)).unwrap();
    let chars: Vec<char> = answer.chars().collect();
    let mut heard: Vec<Heard> = chars
        .chunks(n)
        .flat_map(|piece| reader.push(&piece.iter().collect::<String>()))
        .collect();
    heard.extend(reader.finish());
    let (mut said, mut calls) = (String::new(), Vec::<(String, String)>::new());
    for heard in heard {
        match heard {
            Heard::Text(text) => said += &text,
            Heard::Call { name } => calls.push((name, String::new())),
            Heard::Arguments(text) => calls.last_mut().unwrap().1 += &text,
        }
    }
    assert_eq!(reader.n_whole(), calls.len(), "{answer}");
    let json = |text: String| {
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    (
        said,
        calls
            .into_iter()
            .map(|(name, text)| (name, json(text)))
            .collect(),
    )
}

fn expected(turn: &[ToolCall]) -> Vec<(String, Value)> {
    let json = |call: &ToolCall| {
        (
            call.name.clone(),
            serde_json::from_str(&call.arguments).unwrap(),
        )
    };
    turn.iter().map(json).collect()
}

/// What is wrong with the calls of one template, and how many turns it wrote.
fn check_reading(name: &str, model: &ChatModel, ends: &[&str]) -> (usize, Vec<String>) {
    let (mut n_written, mut wrong) = (0, Vec::new());
    let syntax_takes =
        |turn: &[ToolCall]| turn.len() == 1 || model.tool_syntax().unwrap().takes_several();
    for turn in turns().into_iter().filter(|turn| syntax_takes(turn)) {
        let Some(answer) = written(model, ends, &turn) else {
            continue;
        };
        n_written += 1;
        let mut check = |choice: &ToolChoice, answer: &str, said: &str, n: usize| {
            let (heard, calls) = read(model, choice, answer, n);
            if heard != said || calls != expected(&turn) {
                wrong.push(format!(
                    "{name}, {n} at a time: {heard:?} and {calls:?} in {answer}"
                ));
            }
        };
        for n in [1, 3, usize::MAX] {
            check(&ToolChoice::Required, &answer, "", n);
            check(&ToolChoice::Auto, &answer, "", n);
            if model.tool_syntax().unwrap().may_follow_text() {
                check(
                    &ToolChoice::Auto,
                    &format!("Let me <see> [it].\n{answer}"),
                    "Let me <see> [it].",
                    n,
                );
            }
        }
    }
    (n_written, wrong)
}

/// The template's own control tokens, by their look; those that end a turn first.
fn control_tokens(template: &str) -> (Vec<&'static str>, Vec<&'static str>) {
    let mut found: Vec<&str> = Vec::new();
    for (open, close) in [("<|", "|>"), ("<｜", "｜>"), ("[", "]"), ("<", ">")] {
        for (at, _) in template.match_indices(open) {
            let inner = &template[at + open.len()..];
            let Some(inner) = inner.find(close).map(|end| &inner[..end]) else {
                continue;
            };
            let is_word = !inner.is_empty()
                && inner
                    .chars()
                    .all(|c| c.is_alphanumeric() || "_▁/-".contains(c));
            let is_control = match open {
                "[" => {
                    inner.len() > 2
                        && inner
                            .chars()
                            .all(|c| c.is_ascii_uppercase() || "_/".contains(c))
                }
                "<" => inner.contains("_of_turn"),
                _ => true,
            };
            let token = &template[at..at + open.len() + inner.len() + close.len()];
            if is_word && is_control && !found.contains(&token) {
                found.push(token);
            }
        }
    }
    let is_end = |token: &str| {
        let token = token.to_lowercase();
        let ends = ["end", "eot", "eom", "eos", "return", "<|call|>"];
        let opens = ["tool", "header", "think", "python", "action"];
        ends.iter().any(|word| token.contains(word))
            && !opens.iter().any(|word| token.contains(word))
    };
    let leaked = found.into_iter().map(|token| &*token.to_owned().leak());
    let (mut ends, control): (Vec<&'static str>, Vec<_>) = leaked.partition(|token| is_end(token));
    ends.push("</s>");
    (ends, control)
}

#[test]
fn calls_that_a_template_writes_are_read_again() {
    let (mut wrong, mut not_understood, mut n_read) = (Vec::new(), Vec::new(), 0);
    let list = list();
    for listed in &list {
        let Some(template) = source(listed).filter(|text| text.contains("tool_calls")) else {
            continue;
        };
        let (ends, control) = control_tokens(&template);
        let family = Family {
            name: listed.name,
            template: listed.name,
            ends: ends.leak(),
            control: control.leak(),
            n_answered: 0,
        };
        let loaded = catch_unwind(|| model(&family, &template)).ok();
        let Some(model) = loaded.filter(|model| model.tool_syntax().is_some()) else {
            not_understood.push(listed.name);
            continue;
        };
        let (n_written, errors) = check_reading(listed.name, &model, family.ends);
        if n_written == 0 {
            wrong.push(format!("{} writes no turn", listed.name));
        }
        n_read += 1;
        wrong.extend(errors);
    }
    not_understood.retain(|name| !NOT_UNDERSTOOD.contains(name));
    assert!(
        not_understood.is_empty(),
        "no longer understood: {not_understood:?}"
    );
    assert!(
        wrong.is_empty(),
        "{} wrong of {n_read}\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    println!("{n_read} templates");
}

fn family_models() -> impl Iterator<Item = (&'static Family, ChatModel)> {
    FAMILIES.iter().filter_map(|family| {
        let listed = list()
            .into_iter()
            .find(|listed| listed.name == family.template)?;
        Some((family, model(family, &source(&listed)?)))
    })
}

fn grammar(model: &ChatModel, choice: &ToolChoice) -> Arc<Grammar> {
    let tools = tools();
    Arc::new(model.grammar(&wanted(&tools, choice)).unwrap().unwrap())
}

fn is_in(words: &[u32], token: u32) -> bool {
    words
        .get(token as usize / 32)
        .is_some_and(|word| word >> (token % 32) & 1 == 1)
}

/// Whether the grammar allows `answer` and then its end; else where it stops.
fn check_allowed(model: &ChatModel, grammar: &Arc<Grammar>, answer: &str) -> Result<(), String> {
    let mut walk = grammar.begin();
    let tokens = model
        .tokenizer()
        .encode_template(answer, '\u{e000}')
        .unwrap()
        .ids;
    for (at, token) in tokens.iter().enumerate() {
        let allowed = walk.allowed()?;
        if allowed.is_some_and(|words| !is_in(words, *token)) {
            let read = model.tokenizer().decode(&tokens[..at]);
            return Err(format!(
                "{:?} may not follow {read}",
                model.token_text(*token).0
            ));
        }
        if walk.take(*token) && at + 1 < tokens.len() {
            return Err("it ends too early".to_owned());
        }
    }
    let end = model.stop_token_ids()[0];
    match walk.allowed()? {
        Some(words) if !is_in(words, end) => Err("it does not end".to_owned()),
        _ => Ok(()),
    }
}

#[test]
fn a_grammar_allows_the_calls_that_the_template_writes_in_every_family() {
    let mut wrong = Vec::new();
    for (family, model) in family_models() {
        let takes =
            |turn: &Vec<ToolCall>| turn.len() == 1 || model.tool_syntax().unwrap().takes_several();
        for turn in turns().into_iter().filter(takes) {
            let answer = written(&model, family.ends, &turn).unwrap();
            for (choice, answer) in [
                (ToolChoice::Required, answer.clone()),
                (ToolChoice::Auto, answer.clone()),
                (ToolChoice::Auto, "It is {\"name\" that counts.".to_owned()),
            ] {
                if let Err(error) = check_allowed(&model, &grammar(&model, &choice), &answer) {
                    wrong.push(format!("{}, {choice:?}: {error} in {answer}", family.name));
                }
            }
            // The same calls with a function that is not there are none.
            let answer = answer.replace("get_weather", "get_whether");
            if turn[0].name == "get_weather"
                && check_allowed(&model, &grammar(&model, &ToolChoice::Required), &answer).is_ok()
            {
                wrong.push(format!("{}: {answer}", family.name));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn what_only_looks_like_a_call_is_said_in_every_family() {
    for (family, model) in family_models() {
        let call = written(&model, family.ends, &turns()[0]).unwrap();
        let other = call.replace("get_weather", "get_whether");
        let object = "{\"name\": \"Bob\", \"age\": 3}".to_owned();
        for n in [1, 3, usize::MAX] {
            for answer in [&other, &object] {
                let (said, calls) = read(&model, &ToolChoice::Auto, answer, n);
                assert_eq!((said, calls), (answer.clone(), vec![]), "{}", family.name);
            }
            if model.tool_syntax().unwrap().may_follow_text() {
                let both = format!("{other}\n{call}");
                let (said, calls) = read(&model, &ToolChoice::Auto, &both, n);
                assert_eq!(
                    (said, calls),
                    (other.clone(), expected(&turns()[0])),
                    "{}",
                    family.name
                );
            }
        }
    }
}

/// A number below `n`, out of a state that moves on.
fn draw(state: &mut u64, n: usize) -> usize {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize % n
}

/// The next character of what closes something, where the answer has begun to say it.
fn closing(answer: &str) -> Option<char> {
    ["</arg_value>"].iter().find_map(|end| {
        let said = (1..end.len())
            .rev()
            .find(|n| answer.ends_with(&end[..*n]))?;
        end[said..].chars().next()
    })
}

/// An answer drawn from what a grammar allows; what ends something comes more often than it would.
fn drawn(model: &ChatModel, grammar: &Arc<Grammar>, seed: u64) -> String {
    let (mut state, mut answer, mut walk) = (seed, Vec::new(), grammar.begin());
    for _ in 0..20_000 {
        let allowed = walk.allowed().unwrap().unwrap();
        let ids = 0..model.tokenizer().n_tokens() as u32;
        let tokens: Vec<u32> = ids.filter(|token| is_in(allowed, *token)).collect();
        let text = |token: &u32| model.token_text(*token).0;
        let read = String::from_utf8_lossy(&answer).into_owned();
        let ends: Vec<u32> = match closing(&read) {
            Some(next) => tokens
                .iter()
                .copied()
                .filter(|token| text(token) == next.to_string())
                .collect(),
            None => tokens
                .iter()
                .copied()
                .filter(|token| ["\"", "}", "]", "<"].contains(&&*text(token)))
                .collect(),
        };
        let from = if ends.is_empty() || closing(&read).is_none() && draw(&mut state, 2) == 0 {
            &tokens
        } else {
            &ends
        };
        let token = from[draw(&mut state, from.len())];
        if model.stop_token_ids().contains(&token) {
            return read;
        }
        answer.extend(model.tokenizer().token_bytes(token));
        if walk.take(token) {
            return String::from_utf8(answer).unwrap();
        }
    }
    panic!("no end: {}", String::from_utf8_lossy(&answer))
}

#[test]
fn whatever_a_grammar_allows_is_read_as_calls_that_fit_in_every_family() {
    for (family, model) in family_models() {
        for choice in [ToolChoice::Required, ToolChoice::Named("add".to_owned())] {
            let grammar = grammar(&model, &choice);
            for seed in 0..8 {
                let answer = drawn(&model, &grammar, seed);
                let (said, calls) = read(&model, &choice, &answer, usize::MAX);
                assert_eq!(said, "", "{}: {answer}", family.name);
                assert!(!calls.is_empty(), "{}: {answer}", family.name);
                for (name, arguments) in calls {
                    let fits = match (name.as_str(), &choice) {
                        ("add", _) => arguments["numbers"]
                            .as_array()
                            .unwrap()
                            .iter()
                            .all(Value::is_number),
                        (_, ToolChoice::Named(_)) => false,
                        ("get_weather", _) => {
                            arguments["city"].is_string()
                                && arguments.get("days").is_none_or(Value::is_number)
                        }
                        ("list_files", _) => arguments == json!({}),
                        ("save", _) => {
                            arguments["path"].is_string() && arguments["options"].is_object()
                        }
                        _ => false,
                    };
                    assert!(fits, "{}: {name} {arguments} in {answer}", family.name);
                }
            }
        }
    }
}
