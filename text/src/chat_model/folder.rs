//! Which file of a Hugging Face folder says what.

use std::io;
use std::path::{Path, PathBuf};

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
        context_length: context_length(&config),
        tokenizer,
    };

    let mut stops = ids(&generation_config["eos_token_id"]);
    stops.extend(ids(&config["eos_token_id"]));
    let eos = token_content(&tokenizer_config["eos_token"]);
    stops.extend(eos.and_then(|eos| model.tokenizer.token_to_id(&eos)));
    stops.extend(model.end_of_turn().map_err(LoadError::Probe)?);
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
fn read_json(dir: &Path, name: &str) -> Result<Option<Value>, LoadError> {
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

/// The file goes before the config; a config may hold one template, or several by name.
fn template_sources(dir: &Path, tokenizer_config: &Value) -> Result<Sources, LoadError> {
    let path = dir.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(source) => {
            return Ok(Sources {
                chat: ("chat_template.jinja".to_owned(), source),
                tools: None,
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(LoadError::Read { path, source }),
    }
    let named = |name: &str| {
        let all = tokenizer_config["chat_template"].as_array()?;
        let one = all.iter().find(|template| template["name"] == name)?;
        Some((name.to_owned(), one["template"].as_str()?.to_owned()))
    };
    let only = tokenizer_config["chat_template"].as_str();
    let only = only.map(|source| ("chat_template".to_owned(), source.to_owned()));
    let chat = only.or_else(|| named("default"));
    let chat = chat.ok_or_else(|| LoadError::NoTemplate(dir.to_owned()))?;
    Ok(Sources {
        chat,
        tools: named("tool_use"),
    })
}

/// A token of `tokenizer_config.json`, written as text or as an object with `content`.
fn token_content(token: &Value) -> Option<String> {
    token
        .as_str()
        .or_else(|| token["content"].as_str())
        .map(str::to_owned)
}

/// Those that are absent are empty: a template that prints one prints nothing, as in transformers.
fn special_tokens(tokenizer_config: &Value) -> Vec<(String, String)> {
    let token = |name: &str| token_content(&tokenizer_config[name]).unwrap_or_default();
    SPECIAL_TOKENS
        .iter()
        .map(|name| ((*name).to_owned(), token(name)))
        .collect()
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
