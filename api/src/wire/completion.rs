//! What a client asks of `POST /v1/completions`, the older form without messages.

use domain::generation::{Priority, SamplingParams};
use domain::message::Prompt;
use poem_openapi::Object;
use serde_json::Value;

use super::decode::{At, Fields};
use super::generation::{
    MAX_TOKEN, ReplyForm, StreamOptions, reckoned_tokens, reply_form, sampling, small, stop,
    stop_token_ids,
};
use crate::body::Decode;
use crate::error::ApiError;

/// Tokens of an answer that asks for no number of them.
const DEFAULT_MAX_TOKENS: u32 = 16;
const MAX_PROMPTS: usize = 128;
/// Longer than any context. Tokens.
const MAX_PROMPT_TOKENS: usize = 1 << 20;
const MAX_BEST_OF: u32 = 20;

/// The body of `POST /v1/completions`.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct CreateCompletionRequest {
    /// A base model, a tuned model or a checkpoint of one.
    pub model: String,
    /// A text or an array of up to 128, each of which may be an array of token ids. No text becomes a control token, whatever it spells.
    pub prompt: Option<Value>,
    /// Default 16. 0 generates nothing: with `echo` and `logprobs` it scores the prompt.
    pub max_tokens: Option<u32>,
    /// 0–2, default 1; 0 always takes the likeliest token.
    pub temperature: Option<f64>,
    /// 0–1, default 1.
    pub top_p: Option<f64>,
    /// An extension: only so many of the likeliest tokens are drawn from, at least 1. Default: all.
    pub top_k: Option<u32>,
    /// An extension: only tokens at least so likely, as a share of the likeliest, are drawn from. 0–1, default 0.
    pub min_p: Option<f64>,
    /// 1–128 answers to each prompt, default 1.
    pub n: Option<u32>,
    /// Draws so many (at most 20), and shows the `n` with the highest mean log-probability of a token.
    pub best_of: Option<u32>,
    /// Begins each answer with its prompt, and its `logprobs` with those of the prompt's tokens.
    pub echo: Option<bool>,
    /// 0–5: log-probabilities of the tokens, with so many of the likeliest at each place.
    pub logprobs: Option<u32>,
    /// A string or up to four; the answer ends before the first that appears.
    pub stop: Option<Value>,
    /// An extension: ids of tokens that end the answer, up to 64; none of them appears in it.
    pub stop_token_ids: Option<Vec<u32>>,
    /// The same seed and request give the same answer on the same device.
    pub seed: Option<i64>,
    /// −2–2.
    pub frequency_penalty: Option<f64>,
    /// −2–2.
    pub presence_penalty: Option<f64>,
    /// Token id → −100–100, added to the token's logit.
    pub logit_bias: Option<std::collections::BTreeMap<String, f64>>,
    /// Whether to answer as server-sent events.
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    /// Accepted without effect.
    pub user: Option<String>,
}

/// The request, judged as far as it can be without the model.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionOrder {
    pub model: String,
    /// At least one.
    pub prompts: Vec<Prompt>,
    pub max_tokens: u32,
    /// Shown for each prompt.
    pub n: u32,
    /// Drawn for each prompt, at least `n`.
    pub best_of: u32,
    pub echo: bool,
    pub top_logprobs: Option<u8>,
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<u32>,
    pub sampling: SamplingParams,
    pub reply: ReplyForm,
    /// What comes by the route is live.
    pub priority: Priority,
}

impl CompletionOrder {
    /// What the request is taken to use of a limit before it is answered.
    pub fn reckoned_tokens(&self) -> u64 {
        let tokens = |prompt: &Prompt| match prompt {
            Prompt::Text(text) => reckoned_tokens(text.len(), self.best_of, Some(self.max_tokens)),
            Prompt::Tokens(ids) => {
                ids.len() as u64 + reckoned_tokens(0, self.best_of, Some(self.max_tokens))
            }
        };
        self.prompts.iter().map(tokens).sum()
    }
}

impl Decode for CompletionOrder {
    type Schema = CreateCompletionRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let n = body.take("n").map_or(Ok(1), |at| small(at, 1, 128))?;
        let best_of = body.take("best_of").map(|at| small(at, 1, MAX_BEST_OF));
        let logprobs = body.take("logprobs").map(|at| small(at, 0, 5));
        let max_tokens = body.take("max_tokens");
        let order = Self {
            model: body.require("model")?.string_up_to(512)?,
            prompts: match body.take("prompt") {
                Some(at) => prompts(at, MAX_PROMPTS)?,
                None => vec![Prompt::Text(String::new())],
            },
            max_tokens: max_tokens
                .map_or(Ok(DEFAULT_MAX_TOKENS), |at| small(at, 0, i32::MAX as u32))?,
            n,
            best_of: best_of.transpose()?.unwrap_or(n),
            echo: body.take("echo").map_or(Ok(false), At::boolean)?,
            top_logprobs: logprobs.transpose()?.map(|n| n as u8),
            stop: body.take("stop").map_or(Ok(Vec::new()), stop)?,
            stop_token_ids: body
                .take("stop_token_ids")
                .map_or(Ok(Vec::new()), stop_token_ids)?,
            sampling: sampling(&mut body)?,
            reply: reply_form(&mut body)?,
            priority: Priority::Live,
        };
        order.check()?;
        body.refuse(&["suffix"], "This service does not insert text.")?;
        body.ignore(&["user"]);
        body.finish()?;
        Ok(order)
    }
}

impl CompletionOrder {
    fn check(&self) -> Result<(), ApiError> {
        let conflict = |param: &'static str, message: &str| {
            Err(ApiError::invalid(
                param,
                "invalid_parameter_combination",
                message,
            ))
        };
        if self.best_of < self.n {
            return conflict("best_of", "'best_of' must be at least 'n'.");
        }
        if self.best_of > self.n && self.reply != ReplyForm::Whole {
            let message = "Answers that are chosen from 'best_of' cannot be streamed.";
            return conflict("best_of", message);
        }
        Ok(())
    }
}

/// A text, texts, the tokens of a text, or those of several, up to `max`.
pub(super) fn prompts(at: At, max: usize) -> Result<Vec<Prompt>, ApiError> {
    let path = at.path.clone();
    if at.is_string() {
        return Ok(vec![Prompt::Text(at.string()?)]);
    }
    let items = at.items(1, MAX_PROMPT_TOKENS)?;
    if items[0].is_integer() {
        return Ok(vec![Prompt::Tokens(tokens(items)?)]);
    }
    if items.len() > max {
        let message = format!("Invalid '{path}': expected at most {max} texts.");
        return Err(ApiError::invalid(path, "array_above_max_length", message));
    }
    let read = |at: At| match at.is_string() {
        true => Ok(Prompt::Text(at.string()?)),
        false => Ok(Prompt::Tokens(tokens(at.items(1, MAX_PROMPT_TOKENS)?)?)),
    };
    items.into_iter().map(read).collect()
}

fn tokens(items: Vec<At>) -> Result<Vec<u32>, ApiError> {
    let ids = items.into_iter();
    ids.map(|at| small(at, 0, MAX_TOKEN)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn decode(extra: Value) -> Result<CompletionOrder, ApiError> {
        let mut body = json!({"model": "m", "prompt": "Once"});
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        CompletionOrder::decode(Fields::root(body).unwrap())
    }

    #[test]
    fn what_is_absent_has_openais_default() {
        let order = decode(json!({})).unwrap();
        assert_eq!((order.max_tokens, order.n, order.best_of), (16, 1, 1));
        assert_eq!(order.sampling, SamplingParams::default());
        assert_eq!((order.echo, order.top_logprobs), (false, None));
        let nulls = json!({"max_tokens": null, "best_of": null, "suffix": null, "echo": null, "logprobs": null});
        assert_eq!(decode(nulls).unwrap(), order);
    }

    #[test]
    fn a_prompt_may_be_scored_without_an_answer() {
        let order = decode(json!({"echo": true, "logprobs": 1, "max_tokens": 0})).unwrap();
        assert_eq!((order.echo, order.top_logprobs), (true, Some(1)));
        assert_eq!((order.max_tokens, order.reckoned_tokens()), (0, 1));
    }

    #[test]
    fn a_prompt_is_text_or_tokens_one_or_many() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        for (prompt, expected) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
            (
                json!([[1, 2], [3]]),
                vec![Prompt::Tokens(vec![1, 2]), Prompt::Tokens(vec![3])],
            ),
            (Value::Null, vec![text("")]),
        ] {
            assert_eq!(decode(json!({"prompt": prompt})).unwrap().prompts, expected);
        }
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (extra, param) in [
            (json!({"n": 2, "best_of": 1}), "best_of"),
            (json!({"best_of": 2, "stream": true}), "best_of"),
            (json!({"best_of": 21}), "best_of"),
            (json!({"logprobs": 6}), "logprobs"),
            (json!({"max_tokens": -1}), "max_tokens"),
            (json!({"suffix": "x"}), "suffix"),
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": [[]]}), "prompt[0]"),
            (json!({"prompt": [1, "a"]}), "prompt[1]"),
            (json!({"messages": []}), "messages"),
        ] {
            let error = decode(extra.clone()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{extra}");
        }
    }
}
