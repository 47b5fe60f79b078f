//! Embeddings: what a client asks for, and vectors as it reads them.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use domain::generation::Priority;
use domain::message::Prompt;
use poem_openapi::Object;
use serde_json::Value;

use super::completion::prompts;
use super::decode::{At, Fields};
use super::generation::{reckoned_tokens, small};
use super::reply::reply;
use crate::body::Decode;
use crate::error::ApiError;

/// Texts of one request.
const MAX_INPUTS: usize = 2048;

/// The body of `POST /v1/embeddings`.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct CreateEmbeddingRequest {
    /// A base model, a tuned model or a checkpoint of one.
    pub model: String,
    /// A text, texts, the tokens of a text, or those of several; up to 2048.
    pub input: Value,
    /// `float`, the default, or `base64`: of 32-bit floats, the least byte first.
    pub encoding_format: Option<String>,
    /// Only so many numbers of each vector, of unit length again; at most the model's width.
    pub dimensions: Option<u32>,
    /// Accepted without effect.
    pub user: Option<String>,
}

/// How a vector travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Float,
    Base64,
}

/// The request, judged as far as it can be without the model.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingOrder {
    pub model: String,
    /// At least one.
    pub inputs: Vec<Prompt>,
    pub encoding: Encoding,
    /// `None`: the model's width.
    pub dimensions: Option<usize>,
    /// What comes by the route is live.
    pub priority: Priority,
}

impl Decode for EmbeddingOrder {
    type Schema = CreateEmbeddingRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let encoding = body.take("encoding_format");
        let encoding = encoding.map(|at| at.one_of(&["float", "base64"]));
        let dimensions = body.take("dimensions");
        let dimensions = dimensions.map(|at| small(at, 1, i32::MAX as u32));
        let order = Self {
            model: body.require("model")?.string_up_to(512)?,
            inputs: inputs(body.require("input")?)?,
            encoding: match encoding.transpose()? {
                Some("base64") => Encoding::Base64,
                _ => Encoding::Float,
            },
            dimensions: dimensions.transpose()?.map(|n| n as usize),
            priority: Priority::Live,
        };
        body.ignore(&["user"]);
        body.finish()?;
        Ok(order)
    }
}

impl EmbeddingOrder {
    /// What the request is taken to use of a limit before it is answered.
    pub fn reckoned_tokens(&self) -> u64 {
        let tokens = |input: &Prompt| match input {
            Prompt::Text(text) => reckoned_tokens(text.len(), 0, None),
            Prompt::Tokens(ids) => ids.len() as u64,
        };
        self.inputs.iter().map(tokens).sum()
    }
}

fn inputs(at: At) -> Result<Vec<Prompt>, ApiError> {
    let inputs = prompts(at, MAX_INPUTS)?;
    let empty = inputs
        .iter()
        .position(|input| *input == Prompt::Text(String::new()));
    match empty {
        None => Ok(inputs),
        Some(i) => {
            let param = match inputs.len() {
                1 => "input".to_owned(),
                _ => format!("input[{i}]"),
            };
            let message = format!("Invalid '{param}': an empty text has no embedding.");
            Err(ApiError::invalid(param, "invalid_value", message))
        }
    }
}

/// The vector as it travels.
pub fn shown(vector: &[f32], encoding: Encoding) -> Value {
    match encoding {
        Encoding::Float => vector.iter().map(|x| f64::from(*x)).collect(),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            BASE64_STANDARD.encode(bytes).into()
        }
    }
}

reply! {
    /// Vectors, in the order of the texts.
    EmbeddingList as "CreateEmbeddingResponse" {
        /// `list`.
        object: &'static str,
        data: Vec<EmbeddingObject>,
        /// Its own name, by whichever it was asked for.
        model: String,
        usage: EmbeddingUsage,
    }

    EmbeddingObject as "Embedding" {
        /// `embedding`.
        object: &'static str,
        index: u32,
        /// Numbers, or base64 of them: the mean of the last layer's states, of unit length.
        embedding: Value,
    }

    EmbeddingUsage as "EmbeddingUsage" {
        prompt_tokens: u64,
        total_tokens: u64,
    }
}

impl EmbeddingList {
    pub fn new(model: String, vectors: impl Iterator<Item = Value>, total_tokens: u64) -> Self {
        let data = (0..)
            .zip(vectors)
            .map(|(index, embedding)| EmbeddingObject {
                object: "embedding",
                index,
                embedding,
            });
        Self {
            object: "list",
            data: data.collect(),
            model,
            usage: EmbeddingUsage {
                prompt_tokens: total_tokens,
                total_tokens,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_vector_travels_as_numbers_or_as_their_bytes() {
        let vector = [1.0, -0.5];
        assert_eq!(shown(&vector, Encoding::Float), json!([1.0, -0.5]));
        assert_eq!(shown(&vector, Encoding::Base64), "AACAPwAAAL8=");
    }

    #[test]
    fn what_has_no_embedding_is_refused_by_name() {
        for (fields, code, param) in [
            (json!({"input": ""}), "invalid_value", "input"),
            (json!({"input": ["a", ""]}), "invalid_value", "input[1]"),
            (json!({"input": []}), "empty_array", "input"),
            (json!({"input": [[]]}), "empty_array", "input[0]"),
            (
                json!({"input": vec!["a"; 2049]}),
                "array_above_max_length",
                "input",
            ),
            (json!({"input": 5}), "invalid_type", "input"),
            (
                json!({"input": [-1]}),
                "integer_below_min_value",
                "input[0]",
            ),
            (
                json!({"input": "a", "dimensions": 0}),
                "integer_below_min_value",
                "dimensions",
            ),
            (
                json!({"input": "a", "encoding_format": "int8"}),
                "invalid_value",
                "encoding_format",
            ),
            (json!({"input": "a", "x": 1}), "unknown_parameter", "x"),
        ] {
            let mut body = fields.clone();
            body["model"] = json!("m");
            let error = EmbeddingOrder::decode(Fields::root(body).unwrap()).unwrap_err();
            assert_eq!(
                (error.code, error.param.as_deref()),
                (Some(code), Some(param)),
                "{fields}"
            );
        }
    }
}
