//! Judges whether the decoder computes what a model's switches ask for. The list below shrinks as the decoder grows.

use super::{ConfigError, ModelConfig};

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
        let has_experts = self.experts.is_some();
        vec![
            when(self.mlp_bias, "mlp_bias = true"),
            when(
                has_experts && self.norms.after_mlp.is_some(),
                "a norm after experts",
            ),
        ]
    }
}
