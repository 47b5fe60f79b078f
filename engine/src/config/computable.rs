//! Judges whether the decoder computes what a model's switches ask for. The list below shrinks as the decoder grows.

use super::{
    Activation, BlockNorms, ConfigError, LayerRope, ModelConfig, NormWeight, QkNorm, RopePairs,
};

impl ModelConfig {
    /// Refuses a model with a switch that the decoder does not know, naming each.
    /// Errors: `NotComputable`.
    pub fn check_computable(&self) -> Result<(), ConfigError> {
        let switches: Vec<String> = self.not_computed().into_iter().flatten().collect();
        if switches.is_empty() {
            return Ok(());
        }
        let architecture = self.architecture.name();
        Err(ConfigError::NotComputable {
            architecture,
            switches,
        })
    }

    fn not_computed(&self) -> Vec<Option<String>> {
        let when = |is_set: bool, what: &str| is_set.then(|| what.to_owned());
        let window = self.layers.iter().find_map(|layer| layer.sliding_window);
        let has_scale = self.attention_scale != (self.head_dim as f64).powf(-0.5) as f32;
        vec![
            when(self.norm_weight != NormWeight::Plain, "norms by 1 + weight"),
            when(
                self.norms != BlockNorms::BEFORE,
                "norms after attention or feed-forward",
            ),
            when(self.qk_norm != QkNorm::None, "q_norm and k_norm"),
            when(
                self.hidden_act != Activation::Silu,
                "hidden_act = gelu_pytorch_tanh",
            ),
            when(has_scale, "query_pre_attn_scalar other than head_dim"),
            self.attn_logit_softcapping
                .map(|c| format!("attn_logit_softcapping = {c}")),
            self.final_logit_softcapping
                .map(|c| format!("final_logit_softcapping = {c}")),
            when(self.embedding_scale != 1.0, "scaled embeddings"),
            when(self.long_rope.is_some(), "rope_type = longrope"),
            when(
                self.rotary_dim != self.head_dim,
                "partial_rotary_factor below 1",
            ),
            when(
                self.rope_pairs != RopePairs::Halves,
                "interleaved rotary pairs",
            ),
            when(self.mlp_bias, "mlp_bias = true"),
            when(self.fused_qkv, "qkv_proj as one tensor"),
            when(self.fused_gate_up, "gate_up_proj as one tensor"),
            self.experts.map(|e| format!("{} experts", e.num_experts)),
            window.map(|window| format!("sliding_window = {window}")),
            self.own_ropes(),
        ]
    }

    fn own_ropes(&self) -> Option<String> {
        self.layers.iter().find_map(|layer| match layer.rope {
            LayerRope::Model => None,
            LayerRope::None => Some("layers without rotary positions".to_owned()),
            LayerRope::Theta(theta) => Some(format!("rope_theta = {theta} in some layers")),
        })
    }
}
