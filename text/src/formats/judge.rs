//! Whether the keys of a row make an example of the format that is expected.

use domain::generation::{ChatMessage, Role};
use serde::de;
use serde_json::{Map, Value, json};

use super::message::Message;
use super::row::{Input, Keys};
use super::strict::{Trail, shorten};
use super::{
    ChatExample, LineErrorKind as Kind, PreferenceExample, ReinforcementExample, RowFormat,
    TrainingExample, UnpairedExample,
};

/// Messages in one row. Real conversations stay far below; a template is run once per assistant message.
pub const MAX_MESSAGES: usize = 2048;

/// Tools, and tool calls, in one row: OpenAI's limit on `tools`.
pub const MAX_TOOLS: usize = 128;

pub(super) fn judge<E: de::Error>(
    keys: Keys,
    expected: RowFormat,
    trail: &Trail,
) -> Result<TrainingExample, E> {
    let Some(found) = recognise(&keys) else {
        return Err(unrecognised(expected, trail));
    };
    match (expected, found) {
        (RowFormat::Chat, RowFormat::Chat) => chat(keys, trail).map(TrainingExample::Chat),
        (RowFormat::UnpairedPreference, RowFormat::Chat | RowFormat::UnpairedPreference) => {
            unpaired(keys, trail).map(TrainingExample::Unpaired)
        }
        (RowFormat::Reinforcement, RowFormat::Chat | RowFormat::UnpairedPreference) => {
            reinforcement(keys, trail).map(TrainingExample::Reinforcement)
        }
        (RowFormat::Preference, RowFormat::Preference) => {
            preference(keys, trail).map(TrainingExample::Preference)
        }
        (RowFormat::Completion, RowFormat::Completion) => completion(keys, trail),
        (_, found) => {
            let reason = format!(
                "is in the {} format, but a file in the {} format is expected",
                found.name(),
                expected.name()
            );
            Err(trail.fail(Kind::WrongFormat(found), reason))
        }
    }
}

/// The key that says whether a row's one answer is a good one.
pub(super) const LABEL: &str = "label";

/// Any key that only one format has decides. Reinforcement rows look like chat rows, or like judged ones.
fn recognise(keys: &Keys) -> Option<RowFormat> {
    if keys.input.is_some() || keys.preferred.is_some() || keys.non_preferred.is_some() {
        Some(RowFormat::Preference)
    } else if keys.messages.is_some() && keys.extra.get(LABEL).is_some_and(Value::is_boolean) {
        Some(RowFormat::UnpairedPreference)
    } else if keys.messages.is_some() {
        Some(RowFormat::Chat)
    } else if keys.prompt.is_some() || keys.completion.is_some() {
        Some(RowFormat::Completion)
    } else {
        None
    }
}

fn unrecognised<E: de::Error>(expected: RowFormat, trail: &Trail) -> E {
    match expected {
        RowFormat::Preference => missing("input", trail),
        RowFormat::UnpairedPreference | RowFormat::Reinforcement => missing("messages", trail),
        RowFormat::Chat | RowFormat::Completion => {
            let reason = "has neither 'messages' nor 'prompt' and 'completion'";
            trail.fail(Kind::UnexpectedFormat, reason)
        }
    }
}

pub(super) fn missing<E: de::Error>(key: &'static str, trail: &Trail) -> E {
    trail.fail(Kind::MissingKey, format!("is missing key '{key}'"))
}

pub(super) fn no_boolean<E: de::Error>(key: &'static str, trail: &Trail) -> E {
    let reason = format!("has a '{key}' that is neither true nor false");
    trail.fail_at(key, Kind::InvalidValue, reason)
}

fn refuse_extra<E: de::Error>(extra: &Map<String, Value>, trail: &Trail) -> Result<(), E> {
    match extra.keys().next() {
        Some(key) => {
            let reason = format!("contains an extra \"{}\"", shorten(key));
            Err(trail.fail(Kind::ExtraKey, reason))
        }
        None => Ok(()),
    }
}

/// Refuses a key that another format knows, which is extra here.
fn refuse_foreign<E: de::Error>(foreign: &[(bool, &'static str)], trail: &Trail) -> Result<(), E> {
    match foreign.iter().find(|(given, _)| *given) {
        Some((_, key)) => Err(trail.fail(Kind::ExtraKey, format!("contains an extra \"{key}\""))),
        None => Ok(()),
    }
}

fn chat<E: de::Error>(keys: Keys, trail: &Trail) -> Result<ChatExample, E> {
    refuse_extra(&keys.extra, trail)?;
    let foreign = [
        (keys.prompt.is_some(), "prompt"),
        (keys.completion.is_some(), "completion"),
    ];
    refuse_foreign(&foreign, trail)?;
    let messages = some_messages(keys.messages, trail)?;
    let tools = all_tools(keys.tools, keys.functions, trail)?;
    let mut chat = trail.key("messages", || conversation(messages, tools, trail))?;
    chat.parallel_tool_calls = keys.parallel_tool_calls.flatten();
    Ok(chat)
}

fn unpaired<E: de::Error>(mut keys: Keys, trail: &Trail) -> Result<UnpairedExample, E> {
    let label = match keys.extra.shift_remove(LABEL) {
        Some(Value::Bool(label)) => label,
        Some(_) => return Err(no_boolean(LABEL, trail)),
        None => return Err(missing(LABEL, trail)),
    };
    let chat = chat(keys, trail)?;
    trail.key("messages", || judged(chat, label, trail))
}

/// A conversation of which only the answer at its end is learned, which was judged.
pub(super) fn judged<E: de::Error>(
    mut chat: ChatExample,
    label: bool,
    trail: &Trail,
) -> Result<UnpairedExample, E> {
    let last = chat.messages.len() - 1;
    if chat.messages[last].role != Role::Assistant {
        let reason = "must end with the message from the assistant that 'label' judges";
        return Err(trail.fail(Kind::NoAssistant, reason));
    }
    if !chat.trained[last] {
        let reason = "ends with a message whose weight is 0: there is nothing to train on";
        return Err(trail.fail(Kind::NothingToTrain, reason));
    }
    chat.trained[..last].fill(false);
    Ok(UnpairedExample { chat, label })
}

/// Messages of which something is learned.
pub(super) fn conversation<E: de::Error>(
    messages: Vec<Message>,
    tools: Vec<Value>,
    trail: &Trail,
) -> Result<ChatExample, E> {
    let assistants = messages
        .iter()
        .filter(|m| m.message.role == Role::Assistant);
    if assistants.clone().next().is_none() {
        let reason = "must have at least one message from the assistant";
        return Err(trail.fail(Kind::NoAssistant, reason));
    }
    if assistants
        .clone()
        .all(|message| message.weight == Some(false))
    {
        let reason = "must have at least one assistant message with a weight of 1: there is nothing to train on";
        return Err(trail.fail(Kind::NothingToTrain, reason));
    }
    let trained = messages
        .iter()
        .map(|m| m.message.role == Role::Assistant && m.weight != Some(false))
        .collect();
    Ok(ChatExample {
        messages: messages.into_iter().map(|m| m.message).collect(),
        trained,
        tools,
        parallel_tool_calls: None,
    })
}

fn reinforcement<E: de::Error>(keys: Keys, trail: &Trail) -> Result<ReinforcementExample, E> {
    let mut item = keys.extra;
    for (key, text) in [("prompt", keys.prompt), ("completion", keys.completion)] {
        if let Some(text) = text {
            item.insert(key.to_owned(), Value::String(text));
        }
    }
    Ok(ReinforcementExample {
        messages: plain(some_messages(keys.messages, trail)?),
        tools: all_tools(keys.tools, keys.functions, trail)?,
        item,
    })
}

fn preference<E: de::Error>(keys: Keys, trail: &Trail) -> Result<PreferenceExample, E> {
    refuse_extra(&keys.extra, trail)?;
    let foreign = [
        (keys.messages.is_some(), "messages"),
        (keys.tools.is_some(), "tools"),
        (keys.functions.is_some(), "functions"),
        (keys.parallel_tool_calls.is_some(), "parallel_tool_calls"),
        (keys.prompt.is_some(), "prompt"),
        (keys.completion.is_some(), "completion"),
    ];
    refuse_foreign(&foreign, trail)?;
    let Some(Input {
        messages,
        tools,
        parallel_tool_calls,
    }) = keys.input
    else {
        return Err(missing("input", trail));
    };
    let messages = trail.key("input", || some_messages(messages, trail))?;
    Ok(PreferenceExample {
        messages: plain(messages),
        tools: trail.key("input", || all_tools(tools, None, trail))?,
        parallel_tool_calls: parallel_tool_calls.flatten(),
        preferred: answer("preferred_output", keys.preferred, trail)?,
        non_preferred: answer("non_preferred_output", keys.non_preferred, trail)?,
    })
}

/// The one assistant text of `preferred_output` or `non_preferred_output`.
fn answer<E: de::Error>(
    key: &'static str,
    messages: Option<Vec<Message>>,
    trail: &Trail,
) -> Result<ChatMessage, E> {
    let Some(messages) = messages else {
        return Err(missing(key, trail));
    };
    let Ok([message]) = <[Message; 1]>::try_from(messages) else {
        let reason = format!("must have exactly one message in '{key}'");
        return Err(trail.fail_at(key, Kind::InvalidValue, reason));
    };
    let message = message.message;
    if message.role != Role::Assistant || message.content.is_none() {
        let reason = format!("must have a text from the assistant in '{key}'");
        return Err(trail.fail_at(key, Kind::InvalidValue, reason));
    }
    Ok(message)
}

fn completion<E: de::Error>(keys: Keys, trail: &Trail) -> Result<TrainingExample, E> {
    refuse_extra(&keys.extra, trail)?;
    let foreign = [
        (keys.tools.is_some(), "tools"),
        (keys.functions.is_some(), "functions"),
        (keys.parallel_tool_calls.is_some(), "parallel_tool_calls"),
    ];
    refuse_foreign(&foreign, trail)?;
    let Some(prompt) = keys.prompt else {
        return Err(missing("prompt", trail));
    };
    let Some(completion) = keys.completion else {
        return Err(missing("completion", trail));
    };
    if completion.is_empty() {
        let reason = "has an empty completion: there is nothing to train on";
        return Err(trail.fail_at("completion", Kind::NothingToTrain, reason));
    }
    Ok(TrainingExample::Completion { prompt, completion })
}

fn some_messages<E: de::Error>(
    messages: Option<Vec<Message>>,
    trail: &Trail,
) -> Result<Vec<Message>, E> {
    match messages {
        None => Err(missing("messages", trail)),
        Some(messages) if messages.is_empty() => {
            Err(trail.fail_at("messages", Kind::InvalidValue, "has no messages"))
        }
        Some(messages) => Ok(messages),
    }
}

fn plain(messages: Vec<Message>) -> Vec<ChatMessage> {
    messages.into_iter().map(|m| m.message).collect()
}

/// `tools`, then `functions` in the form of tools.
fn all_tools<E: de::Error>(
    tools: Option<Option<Vec<Value>>>,
    functions: Option<Option<Vec<Value>>>,
    trail: &Trail,
) -> Result<Vec<Value>, E> {
    let tools = tools.flatten().unwrap_or_default();
    for (index, tool) in tools.iter().enumerate() {
        trail.key("tools", || trail.index(index, || check_tool(tool, trail)))?;
    }
    let functions = functions.flatten().unwrap_or_default();
    for (index, function) in functions.iter().enumerate() {
        trail.key("functions", || {
            trail.index(index, || check_function(function, trail))
        })?;
    }
    let wrap = |function| json!({"type": "function", "function": function});
    Ok(tools
        .into_iter()
        .chain(functions.into_iter().map(wrap))
        .collect())
}

pub(super) fn check_tool<E: de::Error>(tool: &Value, trail: &Trail) -> Result<(), E> {
    if tool.get("type").and_then(Value::as_str) != Some("function") {
        return Err(trail.fail(
            Kind::InvalidValue,
            "has a tool whose type is not 'function'",
        ));
    }
    trail.key("function", || check_function(&tool["function"], trail))
}

fn check_function<E: de::Error>(function: &Value, trail: &Trail) -> Result<(), E> {
    match function.get("name").and_then(Value::as_str) {
        Some(name) if !name.is_empty() => Ok(()),
        _ => Err(trail.fail(Kind::InvalidValue, "has a function without a name")),
    }
}
