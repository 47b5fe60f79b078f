//! Owns what a GGUF file says of a model's shape, from the model's `config.json`; what llama.cpp would compute
//! differently is refused.

use serde_json::{Map, Value as Json};

use super::family::Family;
use super::{FileType, Metadata, Value};
use crate::export::ExportError;

/// A `config.json`, by key. A null is as good as nothing.
pub(super) struct Config(Map<String, Json>);

impl Config {
    pub fn parse(text: &str) -> Result<Self, ExportError> {
        Ok(Self(serde_json::from_str(text)?))
    }

    /// Errors: `UnknownArchitecture`.
    pub fn family(&self) -> Result<&'static Family, ExportError> {
        let names = self.get("architectures").and_then(Json::as_array);
        let class = names.and_then(|names| names.first()?.as_str());
        Family::find(class.unwrap_or_default())
    }

    /// Whether the head's weight is the embedding's.
    pub fn is_tied(&self, family: &Family) -> bool {
        let default = family.architecture.starts_with("gemma");
        self.flag("tie_word_embeddings").unwrap_or(default)
    }

    pub fn n_heads(&self) -> Result<usize, ExportError> {
        self.size("num_attention_heads")
    }

    pub fn n_kv_heads(&self) -> Result<usize, ExportError> {
        self.size("num_key_value_heads").or_else(|_| self.n_heads())
    }

    pub fn n_experts(&self) -> Result<usize, ExportError> {
        self.size("num_experts")
            .or_else(|_| self.size("num_local_experts"))
    }

    fn head_dim(&self) -> Result<usize, ExportError> {
        let shared = Ok(self.size("hidden_size")? / self.n_heads()?.max(1));
        self.size("head_dim").or(shared)
    }

    /// Everything but the vocabulary. Errors: `MissingKey`, `Unsupported`.
    pub fn metadata(
        &self,
        family: &Family,
        file_type: FileType,
        name: &str,
    ) -> Result<Metadata, ExportError> {
        let mut out = Keys {
            architecture: family.architecture,
            metadata: Vec::new(),
        };
        out.general(
            "architecture",
            Value::String(family.architecture.to_owned()),
        );
        out.general("type", Value::String("model".to_owned()));
        out.general("name", Value::String(name.to_owned()));
        out.general("file_type", Value::U32(number_of(file_type)));
        if file_type == FileType::Q8_0 {
            out.general("quantization_version", Value::U32(2));
        }
        self.sizes(&mut out)?;
        self.attention(family, &mut out)?;
        self.rope(family, &mut out)?;
        if let Ok(n_experts) = self.n_experts() {
            out.size("expert_count", n_experts);
            out.size("expert_used_count", self.size("num_experts_per_tok")?);
            if let Ok(width) = self.size("moe_intermediate_size") {
                out.size("expert_feed_forward_length", width);
            }
        }
        Ok(out.metadata)
    }

    fn sizes(&self, out: &mut Keys) -> Result<(), ExportError> {
        out.size("vocab_size", self.size("vocab_size")?);
        out.size("embedding_length", self.size("hidden_size")?);
        out.size("feed_forward_length", self.size("intermediate_size")?);
        out.size("block_count", self.size("num_hidden_layers")?);
        Ok(())
    }

    fn attention(&self, family: &Family, out: &mut Keys) -> Result<(), ExportError> {
        let mut context = self.size("max_position_embeddings").unwrap_or(2048);
        out.size("attention.head_count", self.n_heads()?);
        out.size("attention.head_count_kv", self.n_kv_heads()?);
        out.size("attention.key_length", self.head_dim()?);
        out.size("attention.value_length", self.head_dim()?);
        let eps = self.number("rms_norm_eps").unwrap_or(1e-6);
        out.float("attention.layer_norm_rms_epsilon", eps);
        for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if let Some(cap) = self.number(key) {
                out.float(key, cap);
            }
        }
        if let Ok(window) = self.size("sliding_window") {
            match family.architecture {
                "gemma2" | "gemma3" => {
                    out.size("attention.sliding_window", window);
                    self.window_pattern(out);
                }
                // Differs: llama.cpp knows no window here. Up to its length there is none to be seen, so the file
                // promises no more.
                "llama" | "phi3" => context = context.min(window),
                _ => {}
            }
        }
        out.size("context_length", context);
        Ok(())
    }

    /// Which blocks look through the window.
    fn window_pattern(&self, out: &mut Keys) {
        if let Some(kinds) = self.get("layer_types").and_then(Json::as_array) {
            let slides = |kind: &Json| Value::Bool(kind == "sliding_attention");
            let pattern = Value::Array(kinds.iter().map(slides).collect());
            out.push("attention.sliding_window_pattern", pattern);
        }
    }

    fn rope(&self, family: &Family, out: &mut Keys) -> Result<(), ExportError> {
        let rope = self.rotary("full_attention");
        let share = rope
            .number("partial_rotary_factor")
            .or_else(|| self.number("partial_rotary_factor"));
        let default_share = if family.architecture == "glm4" {
            0.5
        } else {
            1.0
        };
        let n_rotary = self.head_dim()? as f64 * share.unwrap_or(default_share);
        out.size("rope.dimension_count", n_rotary as usize);
        let default_base = if family.architecture == "gemma3" {
            1e6
        } else {
            1e4
        };
        let base = rope
            .number("rope_theta")
            .or_else(|| self.number("rope_theta"));
        out.float("rope.freq_base", base.unwrap_or(default_base));
        if family.architecture == "gemma3" {
            let base = self
                .number("rope_local_base_freq")
                .or_else(|| self.rotary("sliding_attention").number("rope_theta"));
            out.float("rope.freq_base_swa", base.unwrap_or(1e4));
        }
        match rope.kind() {
            "default" | "llama3" => {}
            "linear" => {
                out.push("rope.scaling.type", Value::String("linear".to_owned()));
                let factor = rope.number("factor");
                let factor = factor.ok_or(ExportError::MissingKey { key: "factor" })?;
                out.float("rope.scaling.factor", factor);
            }
            other => {
                let reason = "default, linear and llama3 can be";
                return unsupported("rope_type", other, reason);
            }
        }
        Ok(())
    }

    /// By how much llama3's scaling divides each frequency (C/2). Source: Llama 3.1.
    pub fn rope_factors(&self) -> Result<Option<Vec<f32>>, ExportError> {
        let rope = self.rotary("full_attention");
        if rope.kind() != "llama3" {
            return Ok(None);
        }
        let number = |key| rope.number(key).ok_or(ExportError::MissingKey { key });
        let (factor, head_dim) = (number("factor")?, self.head_dim()?);
        let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
        let context = number("original_max_position_embeddings")?;
        let base = rope
            .number("rope_theta")
            .or_else(|| self.number("rope_theta"))
            .unwrap_or(1e4);
        let factor_of = |i: usize| {
            let wavelength =
                2.0 * std::f64::consts::PI * base.powf(2.0 * i as f64 / head_dim as f64);
            // 0 where the frequency is divided, 1 where it is kept.
            let kept = ((context / wavelength - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - kept) / factor + kept)) as f32
        };
        Ok(Some((0..head_dim / 2).map(factor_of).collect()))
    }

    /// The rotary positions of a kind of attention: one place since transformers 5, by kind where there are several.
    fn rotary(&self, attention: &str) -> Config {
        let places = ["rope_parameters", "rope_scaling"];
        let place = places.iter().find_map(|key| self.get(key)?.as_object());
        let place = place.map(|place| match place.get(attention) {
            Some(Json::Object(of_kind)) => of_kind.clone(),
            _ => place.clone(),
        });
        Config(place.unwrap_or_default())
    }

    fn kind(&self) -> &str {
        let kind = self.get("rope_type").or_else(|| self.get("type"));
        kind.and_then(Json::as_str).unwrap_or("default")
    }

    /// `is_untied`: the head became a tensor of its own. Errors: what llama.cpp fixes and this model has otherwise.
    pub fn check(&self, family: &Family, is_untied: bool) -> Result<(), ExportError> {
        let (hidden, heads) = (self.size("hidden_size")?, self.n_heads()?);
        let head_dim = self.head_dim()?;
        if family.is_square && heads * head_dim != hidden {
            let reason = "llama.cpp takes hidden_size / num_attention_heads";
            return unsupported("head_dim", head_dim, reason);
        }
        if self.flag("use_sliding_window") == Some(true) {
            let reason = "llama.cpp knows no window in this architecture";
            return unsupported("use_sliding_window", true, reason);
        }
        if family.architecture == "gemma2" && (is_untied || !self.is_tied(family)) {
            let reason = "llama.cpp takes the embedding for the head";
            return unsupported("tie_word_embeddings", false, reason);
        }
        if family.architecture == "olmo2" && self.is_tied(family) && !is_untied {
            let reason = "llama.cpp wants a head";
            return unsupported("tie_word_embeddings", true, reason);
        }
        match family.architecture {
            "gemma2" | "gemma3" => self.check_gemma(family, hidden, heads, head_dim),
            "qwen3moe" => self.check_experts(),
            "smollm3" => self.check_no_rope(),
            _ => Ok(()),
        }
    }

    fn check_gemma(
        &self,
        family: &Family,
        hidden: usize,
        heads: usize,
        head_dim: usize,
    ) -> Result<(), ExportError> {
        // llama.cpp tells the largest models by their depth.
        let largest = if family.architecture == "gemma2" {
            46
        } else {
            62
        };
        let expected = match self.size("num_hidden_layers")? == largest {
            true => hidden / heads,
            false => head_dim,
        };
        let scalar = self.number("query_pre_attn_scalar").unwrap_or(256.0);
        if scalar != expected as f64 {
            let reason = "llama.cpp scales by head_dim (the largest by hidden_size / heads)";
            return unsupported("query_pre_attn_scalar", scalar, reason);
        }
        let caps = self.number("attn_logit_softcapping").is_some();
        if caps != (family.architecture == "gemma2") {
            let reason = "llama.cpp caps Gemma 2's attention and no other's";
            return unsupported("attn_logit_softcapping", caps, reason);
        }
        Ok(())
    }

    fn check_experts(&self) -> Result<(), ExportError> {
        if self.flag("norm_topk_prob") != Some(true) {
            let reason = "llama.cpp lets the chosen experts' weights sum to 1";
            return unsupported("norm_topk_prob", false, reason);
        }
        Ok(())
    }

    fn check_no_rope(&self) -> Result<(), ExportError> {
        let layers = self.get("no_rope_layers").and_then(Json::as_array);
        let every_fourth = |(i, has_rope): (usize, &Json)| *has_rope == u64::from((i + 1) % 4 != 0);
        if layers.is_some_and(|layers| !layers.iter().enumerate().all(every_fourth)) {
            let reason = "llama.cpp leaves every fourth block without positions";
            return unsupported("no_rope_layers", "another pattern", reason);
        }
        Ok(())
    }

    fn get(&self, key: &str) -> Option<&Json> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn size(&self, key: &'static str) -> Result<usize, ExportError> {
        let size = self.get(key).and_then(Json::as_u64);
        size.map(|n| n as usize)
            .ok_or(ExportError::MissingKey { key })
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.get(key).and_then(Json::as_f64)
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).and_then(Json::as_bool)
    }
}

fn unsupported<T>(
    key: &'static str,
    value: impl ToString,
    reason: &'static str,
) -> Result<T, ExportError> {
    let value = value.to_string();
    Err(ExportError::Unsupported { key, value, reason })
}

/// `general.file_type`.
fn number_of(file_type: FileType) -> u32 {
    match file_type {
        FileType::F32 => 0,
        FileType::F16 => 1,
        FileType::Q8_0 => 7,
        FileType::Bf16 => 32,
    }
}

/// The metadata as it grows.
struct Keys {
    architecture: &'static str,
    metadata: Metadata,
}

impl Keys {
    fn general(&mut self, key: &str, value: Value) {
        self.metadata.push((format!("general.{key}"), value));
    }

    fn push(&mut self, key: &str, value: Value) {
        let key = format!("{}.{key}", self.architecture);
        self.metadata.push((key, value));
    }

    fn size(&mut self, key: &str, size: usize) {
        self.push(key, Value::U32(size as u32));
    }

    fn float(&mut self, key: &str, x: f64) {
        self.push(key, Value::F32(x as f32));
    }
}
