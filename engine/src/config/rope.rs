//! Owns how a `config.json` spells rotary positions: at the top level by transformers 4, in `rope_parameters` by 5.

use serde::Deserialize;

use super::ConfigError;

/// How frequencies change so that positions reach beyond the trained context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Positions are used as they are.
    None,
    /// All frequencies are divided by `factor`.
    Linear { factor: f32 },
    /// Low frequencies are divided by `factor`, high ones kept, those between interpolated. Source: Llama 3.1.
    Llama3 {
        factor: f32,
        low_freq_factor: f32,
        high_freq_factor: f32,
        original_max_position_embeddings: f32,
    },
}

/// Frequencies divided by a factor each, of which there are two sets. Source: LongRoPE (arXiv:2402.13753), Phi-3.
///
/// Frequency j is 1/(factor_j · `rope_theta`^(2j/`rotary_dim`)), with `long_factor` for every position of a document that has
/// more than `original_max_position_embeddings` tokens, else `short_factor`. A generation takes the set of the longest that
/// it can become, prompt and new tokens, from its first token on: the reference changes set when a sequence grows past the
/// length, and keeps the keys of the other set. Cosine and sine are multiplied by `attention_factor` in both sets.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// (`rotary_dim`/2)
    pub short_factor: Vec<f32>,
    /// (`rotary_dim`/2)
    pub long_factor: Vec<f32>,
    pub original_max_position_embeddings: usize,
    pub attention_factor: f32,
}

/// `rope_parameters`, `rope_scaling`, or the part of one kind of layers.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct RopeFile {
    rope_type: Option<String>,
    /// The older name of `rope_type`; many files have both.
    r#type: Option<String>,
    pub rope_theta: Option<f32>,
    pub partial_rotary_factor: Option<f64>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
    short_factor: Option<Vec<f32>>,
    long_factor: Option<Vec<f32>>,
    attention_factor: Option<f32>,
    /// Of the layers that see everything, where kinds of layers differ.
    pub full_attention: Option<Box<RopeFile>>,
    /// Of the layers with a window.
    pub sliding_attention: Option<Box<RopeFile>>,
}

/// A rule for the frequencies, or two sets of factors.
pub(super) enum Stretch {
    Scaling(RopeScaling),
    Long(LongRope),
}

/// What the file says elsewhere and the factors depend on.
pub(super) struct Context {
    pub max_position_embeddings: usize,
    /// At the top level of the file, where it stands before the one in `rope_parameters`.
    pub original_max_position_embeddings: Option<usize>,
    pub rotary_dim: usize,
}

fn positive(key: &'static str, value: Option<f32>) -> Result<f32, ConfigError> {
    match value {
        Some(x) if x > 0.0 && x.is_finite() => Ok(x),
        other => Err(ConfigError::Invalid {
            key,
            value: other.map_or("null".to_owned(), |x| x.to_string()),
            reason: "it must be a positive number",
        }),
    }
}

impl RopeFile {
    /// How frequencies change; `default`: they do not.
    pub fn rope_type(&self) -> &str {
        let named = self.rope_type.as_deref().or(self.r#type.as_deref());
        named.unwrap_or("default")
    }

    /// Errors: `Unsupported` names the type, `Invalid` a number that is missing or cannot be.
    pub fn stretch(&self, context: &Context) -> Result<Stretch, ConfigError> {
        let key = "original_max_position_embeddings";
        let outer = context.original_max_position_embeddings.map(|n| n as f32);
        let original = || positive(key, outer.or(self.original_max_position_embeddings));
        let factor = || positive("factor", self.factor);
        let scaling = match self.rope_type() {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: factor()? },
            "llama3" => RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor: positive("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: positive("high_freq_factor", self.high_freq_factor)?,
                original_max_position_embeddings: original()?,
            },
            "longrope" | "su" => return Ok(Stretch::Long(self.long(context, original()?)?)),
            other => {
                return Err(ConfigError::Unsupported {
                    key: "rope_type",
                    value: other.to_owned(),
                    supported: "default, linear, llama3, longrope",
                });
            }
        };
        Ok(Stretch::Scaling(scaling))
    }

    fn long(&self, context: &Context, original: f32) -> Result<LongRope, ConfigError> {
        let factors = |key, factors: &Option<Vec<f32>>| match factors {
            Some(list) if list.len() == context.rotary_dim / 2 => list
                .iter()
                .map(|&factor| positive(key, Some(factor)))
                .collect::<Result<Vec<f32>, _>>(),
            other => Err(ConfigError::Invalid {
                key,
                value: format!("{} numbers", other.as_ref().map_or(0, Vec::len)),
                reason: "there is one for each two channels that are turned",
            }),
        };
        Ok(LongRope {
            short_factor: factors("short_factor", &self.short_factor)?,
            long_factor: factors("long_factor", &self.long_factor)?,
            original_max_position_embeddings: original as usize,
            attention_factor: self.attention_factor(context, original),
        })
    }

    /// √(1 + ln(factor)/ln(original)), where the file gives none; the factor is by default how much the context grew.
    fn attention_factor(&self, context: &Context, original: f32) -> f32 {
        let original = f64::from(original);
        let grown = context.max_position_embeddings as f64 / original;
        let factor = self.factor.map_or(grown, f64::from);
        self.attention_factor.unwrap_or(if factor <= 1.0 {
            1.0
        } else {
            (1.0 + factor.ln() / original.ln()).sqrt() as f32
        })
    }
}
