//! Judges the sizes of a model: what no decoder could compute.

use super::{ConfigError, ModelConfig};

fn invalid(key: &'static str, value: usize, reason: &'static str) -> ConfigError {
    let value = value.to_string();
    ConfigError::Invalid { key, value, reason }
}

impl ModelConfig {
    pub(super) fn check_sizes(&self) -> Result<(), ConfigError> {
        let mut sizes = vec![
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("partial_rotary_factor times head_dim", self.rotary_dim),
        ];
        let windows = self.layers.iter().filter_map(|layer| layer.sliding_window);
        sizes.extend(windows.map(|window| ("sliding_window", window)));
        if let Some(experts) = &self.experts {
            sizes.extend([
                ("num_experts", experts.num_experts),
                ("num_experts_per_tok", experts.num_experts_per_tok),
                ("moe_intermediate_size", experts.intermediate_size),
            ]);
        }
        match sizes.iter().find(|(_, size)| *size == 0 || *size > 1 << 28) {
            Some((key, size)) => Err(invalid(key, *size, "a size is in 1..=2^28")),
            None => self.check_relations(),
        }
    }

    /// How sizes depend on each other; none of them is 0.
    fn check_relations(&self) -> Result<(), ConfigError> {
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(kv_heads) {
            let reason = "it must divide num_attention_heads";
            return Err(invalid("num_key_value_heads", kv_heads, reason));
        }
        let pairs = "rotary positions need pairs";
        if !self.head_dim.is_multiple_of(2) {
            return Err(invalid("head_dim", self.head_dim, pairs));
        }
        let rotary = "partial_rotary_factor times head_dim";
        if !self.rotary_dim.is_multiple_of(2) {
            return Err(invalid(rotary, self.rotary_dim, pairs));
        }
        if self.rotary_dim > self.head_dim {
            return Err(invalid(rotary, self.rotary_dim, "it is at most head_dim"));
        }
        match &self.experts {
            Some(e) if e.num_experts_per_tok > e.num_experts => {
                let reason = "it is at most the number of experts";
                Err(invalid(
                    "num_experts_per_tok",
                    e.num_experts_per_tok,
                    reason,
                ))
            }
            _ => Ok(()),
        }
    }
}
