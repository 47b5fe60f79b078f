//! Which file of a Hugging Face folder says what.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use chrono::NaiveDateTime;
use serde_json::Value;

use super::{ChatModel, RenderError};
use crate::chat_template::{ChatTemplate, TemplateError};
use crate::tokenizer::{Tokenizer, TokenizerError};

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not valid: {reason}", path.display())]
    Invalid { path: PathBuf, reason: String },
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("{} holds no chat template: neither chat_template.jinja nor 'chat_template' in tokenizer_config.json", .0.display())]
    NoTemplate(PathBuf),
    #[error("{} names no chat template 'default', only '{}'", .0.display(), .1)]
    NoDefaultTemplate(PathBuf, String),
    #[error("chat template '{name}': {source}")]
    Template { name: String, source: TemplateError },
    #[error("the chat template fails on one question and one answer: {0}")]
    Probe(RenderError),
    #[error("{} names no token that ends a turn, and the chat template writes none", .0.display())]
    NoStopToken(PathBuf),
}

/// The special tokens that transformers gives to templates.
const SPECIAL_TOKENS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// What is assumed where no file says how much a model can read. Tokens.
const DEFAULT_CONTEXT_LENGTH: usize = 2048;

pub(super) fn load(dir: &Path, now: Option<NaiveDateTime>) -> Result<ChatModel, LoadError> {
    let tokenizer = Tokenizer::from_file(&dir.join("tokenizer.json"))?;
    let tokenizer_config = read_json(dir, "tokenizer_config.json")?.unwrap_or_default();
    let config = read_json(dir, "config.json")?.unwrap_or_default();
    let generation_config = read_json(dir, "generation_config.json")?.unwrap_or_default();

    let compile = |(name, source): (String, String)| {
        ChatTemplate::new(&source, special_tokens(&tokenizer_config), now)
            .map_err(|source| LoadError::Template { name, source })
    };
    let sources = template_sources(dir, &tokenizer_config)?;
    let mut model = ChatModel {
        template: compile(sources.chat)?,
        tool_template: sources.tools.map(compile).transpose()?,
        stop_token_ids: Vec::new(),
        opener_id: None,
        context_length: context_length(&config),
        takes_system: OnceLock::new(),
        call_habits: OnceLock::new(),
        tool_syntax: OnceLock::new(),
        grammars: OnceLock::new(),
        tokenizer,
    };

    let mut stops = ids(&generation_config["eos_token_id"]);
    stops.extend(ids(&config["eos_token_id"]));
    let eos = token_content(&tokenizer_config["eos_token"]);
    stops.extend(eos.and_then(|eos| model.tokenizer.token_to_id(&eos)));
    let bos = token_content(&tokenizer_config["bos_token"]);
    let bos_id = bos.and_then(|bos| model.tokenizer.token_to_id(&bos));
    let end_of_turn = model
        .end_of_turn(&stops, bos_id)
        .map_err(LoadError::Probe)?;
    model.opener_id = end_of_turn
        .as_ref()
        .filter(|end| end.opens_next)
        .map(|end| end.id);
    stops.extend(end_of_turn.map(|end| end.id));
    for id in stops {
        if !model.stop_token_ids.contains(&id) {
            model.stop_token_ids.push(id);
        }
    }
    if model.stop_token_ids.is_empty() {
        return Err(LoadError::NoStopToken(dir.to_owned()));
    }
    Ok(model)
}

/// A file's JSON; `None` if the file is not there.
pub(crate) fn read_json(dir: &Path, name: &str) -> Result<Option<Value>, LoadError> {
    let path = dir.join(name);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LoadError::Read { path, source }),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| LoadError::Invalid {
            path,
            reason: error.to_string(),
        })
}

/// Templates with their names.
struct Sources {
    chat: (String, String),
    tools: Option<(String, String)>,
}

/// As transformers looks for them: the files `chat_template.jinja` and `additional_chat_templates/NAME.jinja`, else
/// what `tokenizer_config.json` holds, else the `chat_template.json` of older models that see images.
fn template_sources(dir: &Path, tokenizer_config: &Value) -> Result<Sources, LoadError> {
    let mut named = template_files(dir)?;
    if named.is_empty() {
        named = templates_in(&tokenizer_config["chat_template"]);
    }
    if named.is_empty() {
        let older = read_json(dir, "chat_template.json")?.unwrap_or_default();
        named = templates_in(&older["chat_template"]);
    }
    let find = |wanted: &str| named.iter().find(|(name, _)| name == wanted).cloned();
    let Some(chat) = find("default") else {
        let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
        return Err(match names[..] {
            [] => LoadError::NoTemplate(dir.to_owned()),
            _ => LoadError::NoDefaultTemplate(dir.to_owned(), names.join("', '")),
        });
    };
    Ok(Sources {
        chat,
        tools: find("tool_use"),
    })
}

fn template_files(dir: &Path) -> Result<Vec<(String, String)>, LoadError> {
    let additional = dir.join("additional_chat_templates");
    let files = [
        ("default", dir.join("chat_template.jinja")),
        ("tool_use", additional.join("tool_use.jinja")),
    ];
    let mut named = Vec::new();
    for (name, path) in files {
        match std::fs::read_to_string(&path) {
            Ok(source) => named.push((name.to_owned(), source)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(LoadError::Read { path, source }),
        }
    }
    Ok(named)
}

/// One template, a list of `{"name", "template"}`, or an object of templates by name.
fn templates_in(value: &Value) -> Vec<(String, String)> {
    let pair =
        |name: &str, template: &Value| Some((name.to_owned(), template.as_str()?.to_owned()));
    match value {
        Value::String(template) => vec![("default".to_owned(), template.clone())],
        Value::Array(list) => list
            .iter()
            .filter_map(|one| pair(one["name"].as_str()?, &one["template"]))
            .collect(),
        Value::Object(named) => named
            .iter()
            .filter_map(|(name, template)| pair(name, template))
            .collect(),
        _ => Vec::new(),
    }
}

/// The template that answers are asked for with, and the one for requests with tools, if that is another.
pub(crate) fn chat_templates(
    dir: &Path,
    tokenizer_config: &Value,
) -> Result<(String, Option<String>), LoadError> {
    let Sources { chat, tools } = template_sources(dir, tokenizer_config)?;
    Ok((chat.1, tools.map(|(_, source)| source)))
}

/// A token of `tokenizer_config.json`, written as text or as an object with `content`.
pub(crate) fn token_content(token: &Value) -> Option<String> {
    token
        .as_str()
        .or_else(|| token["content"].as_str())
        .map(str::to_owned)
}

/// Those that are absent are undefined: a template that prints one prints nothing, as in transformers.
fn special_tokens(tokenizer_config: &Value) -> Vec<(String, String)> {
    let named = SPECIAL_TOKENS.iter().filter_map(|name| {
        let token = token_content(&tokenizer_config[*name])?;
        Some(((*name).to_owned(), token))
    });
    named.collect()
}

/// One id, or an array of them.
fn ids(value: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(values) => values.iter().filter_map(one).collect(),
        value => one(value).into_iter().collect(),
    }
}

fn context_length(config: &Value) -> usize {
    let length = config["max_position_embeddings"].as_u64();
    length
        .and_then(|length| usize::try_from(length).ok())
        .unwrap_or(DEFAULT_CONTEXT_LENGTH)
}
