//! What every request for generated text may ask.

use domain::generation::SamplingParams;
use poem_openapi::Object;

use super::decode::{At, Fields};
use crate::error::ApiError;

const MAX_STOPS: usize = 4;
const MAX_STOP_TOKENS: usize = 64;
/// Longest stop string. Characters.
const MAX_STOP_CHARS: usize = 256;
const MAX_LOGIT_BIASES: usize = 1024;
/// Few answers use what they may have. Tokens.
const MAX_RECKONED: u32 = 4096;
/// More than any vocabulary has.
pub(super) const MAX_TOKEN: u32 = 1 << 24;

#[derive(Debug, Clone, PartialEq, Object)]
pub struct StreamOptions {
    /// Sends one more chunk at the end, with the usage of the whole request.
    pub include_usage: Option<bool>,
}

/// How the answer travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyForm {
    Whole,
    Stream { include_usage: bool },
}

/// What a request is taken to use before it is answered: a token for four characters, and what the answer may have,
/// where that is said. Tokens.
pub(super) fn reckoned_tokens(n_chars: usize, n_answers: u32, max_tokens: Option<u32>) -> u64 {
    let answer = max_tokens.unwrap_or(0).min(MAX_RECKONED);
    n_chars.div_ceil(4) as u64 + u64::from(n_answers) * u64::from(answer)
}

pub(super) fn small(at: At, min: u32, max: u32) -> Result<u32, ApiError> {
    let value = at.integer(i64::from(min)..=i64::from(max))?;
    Ok(u32::try_from(value).expect("within a range of u32 — a bug in At::integer"))
}

pub(super) fn stop(at: At) -> Result<Vec<String>, ApiError> {
    let items = if at.is_array() {
        at.items(0, MAX_STOPS)?
    } else {
        vec![at]
    };
    let read = |at: At| {
        let path = at.path.clone();
        let text = at.string_up_to(MAX_STOP_CHARS)?;
        if text.is_empty() {
            let message = format!("Invalid '{path}': expected a string that is not empty.");
            return Err(ApiError::invalid(path, "invalid_value", message));
        }
        Ok(text)
    };
    items.into_iter().map(read).collect()
}

pub(super) fn stop_token_ids(at: At) -> Result<Vec<u32>, ApiError> {
    let ids = at.items(0, MAX_STOP_TOKENS)?.into_iter();
    ids.map(|at| small(at, 0, MAX_TOKEN)).collect()
}

pub(super) fn sampling(body: &mut Fields) -> Result<SamplingParams, ApiError> {
    let mut number = |key: &str, min: f64, max: f64, default: f32| match body.take(key) {
        Some(at) => at.decimal(min, max).map(|value| value as f32),
        None => Ok(default),
    };
    let (temperature, top_p) = (
        number("temperature", 0.0, 2.0, 1.0)?,
        number("top_p", 0.0, 1.0, 1.0)?,
    );
    let min_p = number("min_p", 0.0, 1.0, 0.0)?;
    let frequency_penalty = number("frequency_penalty", -2.0, 2.0, 0.0)?;
    let presence_penalty = number("presence_penalty", -2.0, 2.0, 0.0)?;
    let seed = body
        .take("seed")
        .map(|at| at.integer(i64::MIN..=i64::MAX))
        .transpose()?;
    Ok(SamplingParams {
        temperature,
        top_p,
        top_k: body
            .take("top_k")
            .map(|at| small(at, 1, MAX_TOKEN))
            .transpose()?,
        min_p,
        frequency_penalty,
        presence_penalty,
        // The bits are the seed; the sign has no meaning.
        seed: seed.map(|seed| seed as u64),
        logit_bias: body.take("logit_bias").map_or(Ok(Vec::new()), logit_bias)?,
    })
}

fn logit_bias(at: At) -> Result<Vec<(u32, f32)>, ApiError> {
    let read = |(key, at): (String, At)| {
        let Ok(token) = key.parse::<u32>() else {
            let message = format!(
                "Invalid '{}': expected the id of a token as the key.",
                at.path
            );
            return Err(ApiError::invalid("logit_bias", "invalid_value", message));
        };
        Ok((token, at.decimal(-100.0, 100.0)? as f32))
    };
    at.pairs(MAX_LOGIT_BIASES)?.into_iter().map(read).collect()
}

pub(super) fn reply_form(body: &mut Fields) -> Result<ReplyForm, ApiError> {
    let stream = body.take("stream").map_or(Ok(false), At::boolean)?;
    let Some(options) = body.take("stream_options") else {
        return Ok(match stream {
            true => ReplyForm::Stream {
                include_usage: false,
            },
            false => ReplyForm::Whole,
        });
    };
    if !stream {
        let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
        return Err(ApiError::invalid(
            "stream_options",
            "invalid_value",
            message,
        ));
    }
    let mut options = options.object()?;
    let include_usage = options
        .take("include_usage")
        .map_or(Ok(false), At::boolean)?;
    options.ignore(&["include_obfuscation"]);
    options.finish()?;
    Ok(ReplyForm::Stream { include_usage })
}
