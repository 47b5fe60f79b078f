//! Owns what llama.cpp calls the architectures and tensors of Hugging Face's models.

use super::ExportError;

/// How the models of one class are written.
pub(super) struct Family {
    /// The name in `architectures`.
    pub class: &'static str,
    /// `general.architecture`.
    pub architecture: &'static str,
    /// llama.cpp turns neighbouring values of a head by one angle, Hugging Face those half a head apart; so the rows
    /// of q and k change places.
    pub is_interleaved: bool,
    /// What is added to the weight of every norm: Gemma's scale by 1 + w.
    pub norm_offset: f32,
    /// `post_attention_layernorm` scales the attention's output, not the feed-forward's input.
    has_post_norms: bool,
    /// llama.cpp takes H·C for D.
    pub is_square: bool,
}

const PLAIN: Family = Family {
    class: "",
    architecture: "",
    is_interleaved: false,
    norm_offset: 0.0,
    has_post_norms: false,
    is_square: false,
};

const LLAMA: Family = Family {
    architecture: "llama",
    is_interleaved: true,
    ..PLAIN
};

const GEMMA: Family = Family {
    norm_offset: 1.0,
    has_post_norms: true,
    ..PLAIN
};

static FAMILIES: [Family; 12] = [
    Family {
        class: "LlamaForCausalLM",
        ..LLAMA
    },
    Family {
        class: "MistralForCausalLM",
        ..LLAMA
    },
    Family {
        class: "MixtralForCausalLM",
        ..LLAMA
    },
    Family {
        class: "Qwen2ForCausalLM",
        architecture: "qwen2",
        is_square: true,
        ..PLAIN
    },
    Family {
        class: "Qwen3ForCausalLM",
        architecture: "qwen3",
        ..PLAIN
    },
    Family {
        class: "Qwen3MoeForCausalLM",
        architecture: "qwen3moe",
        ..PLAIN
    },
    Family {
        class: "Gemma2ForCausalLM",
        architecture: "gemma2",
        ..GEMMA
    },
    Family {
        class: "Gemma3ForCausalLM",
        architecture: "gemma3",
        ..GEMMA
    },
    Family {
        class: "Phi3ForCausalLM",
        architecture: "phi3",
        is_square: true,
        ..PLAIN
    },
    Family {
        class: "Olmo2ForCausalLM",
        architecture: "olmo2",
        has_post_norms: true,
        is_square: true,
        ..PLAIN
    },
    Family {
        class: "SmolLM3ForCausalLM",
        architecture: "smollm3",
        is_interleaved: true,
        ..PLAIN
    },
    // Its own rotary positions are those of neighbours.
    Family {
        class: "Glm4ForCausalLM",
        architecture: "glm4",
        ..PLAIN
    },
];

/// Modules outside of the blocks: Hugging Face's name, GGUF's.
const TOP: [(&str, &str); 3] = [
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
];

/// Modules of a block.
const MODULES: [(&str, &str); 19] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("post_self_attn_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("post_mlp_layernorm", "post_ffw_norm"),
];

/// Modules of an expert.
const EXPERTS: [(&str, &str); 6] = [
    ("gate_proj", "ffn_gate_exps"),
    ("up_proj", "ffn_up_exps"),
    ("down_proj", "ffn_down_exps"),
    ("w1", "ffn_gate_exps"),
    ("w3", "ffn_up_exps"),
    ("w2", "ffn_down_exps"),
];

/// Where a tensor goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub name: String,
    /// Its number in the stack of all experts.
    pub expert: Option<usize>,
}

impl Family {
    pub fn find(class: &str) -> Result<&'static Self, ExportError> {
        let found = FAMILIES.iter().find(|family| family.class == class);
        found.ok_or_else(|| ExportError::UnknownArchitecture {
            found: class.to_owned(),
        })
    }

    /// `model.layers.3.self_attn.q_proj.weight` → `blk.3.attn_q.weight`; `None` for what holds no weights.
    /// Errors: `UnknownTensor`.
    pub fn target(&self, name: &str) -> Result<Option<Target>, ExportError> {
        // Older files keep the frequencies of the rotary positions, which every reader makes anew.
        if name.ends_with("rotary_emb.inv_freq") {
            return Ok(None);
        }
        let target = self.place(name).map(Some);
        target.ok_or_else(|| ExportError::UnknownTensor {
            name: name.to_owned(),
            architecture: self.architecture,
        })
    }

    fn place(&self, name: &str) -> Option<Target> {
        let (module, kind) = name.rsplit_once('.')?;
        if let Some(top) = find(&TOP, module) {
            let name = format!("{top}.{kind}");
            return Some(Target { name, expert: None });
        }
        let (layer, module) = module.strip_prefix("model.layers.")?.split_once('.')?;
        let (module, expert) = match module.split_once(".experts.") {
            Some((_, expert)) => {
                let (expert, module) = expert.split_once('.')?;
                (find(&EXPERTS, module)?, Some(expert.parse().ok()?))
            }
            None if self.has_post_norms && module == "post_attention_layernorm" => {
                ("post_attention_norm", None)
            }
            None => (find(&MODULES, module)?, None),
        };
        let name = format!("blk.{layer}.{module}.{kind}");
        Some(Target { name, expert })
    }
}

fn find(table: &[(&'static str, &'static str)], name: &str) -> Option<&'static str> {
    let found = table.iter().find(|(from, _)| *from == name);
    found.map(|(_, to)| *to)
}

/// The classes that can be written.
pub(in crate::export) fn known_names() -> String {
    FAMILIES.each_ref().map(|family| family.class).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_have_llama_cpps_names() {
        let block = "model.layers.11";
        let cases = [
            (
                "LlamaForCausalLM",
                "self_attn.q_proj.weight",
                "attn_q.weight",
                None,
            ),
            (
                "Qwen2ForCausalLM",
                "self_attn.k_proj.bias",
                "attn_k.bias",
                None,
            ),
            (
                "Qwen3ForCausalLM",
                "self_attn.k_norm.weight",
                "attn_k_norm.weight",
                None,
            ),
            (
                "LlamaForCausalLM",
                "post_attention_layernorm.weight",
                "ffn_norm.weight",
                None,
            ),
            (
                "Gemma2ForCausalLM",
                "post_attention_layernorm.weight",
                "post_attention_norm.weight",
                None,
            ),
            (
                "Glm4ForCausalLM",
                "post_attention_layernorm.weight",
                "ffn_norm.weight",
                None,
            ),
            (
                "Phi3ForCausalLM",
                "mlp.gate_up_proj.weight",
                "ffn_up.weight",
                None,
            ),
            (
                "MixtralForCausalLM",
                "block_sparse_moe.experts.7.w2.weight",
                "ffn_down_exps.weight",
                Some(7),
            ),
            (
                "Qwen3MoeForCausalLM",
                "mlp.experts.12.up_proj.weight",
                "ffn_up_exps.weight",
                Some(12),
            ),
        ];
        for (class, name, expected, expert) in cases {
            let target = Family::find(class)
                .unwrap()
                .target(&format!("{block}.{name}"));
            let name = format!("blk.11.{expected}");
            assert_eq!(target.unwrap(), Some(Target { name, expert }), "{class}");
        }
        let llama = Family::find("LlamaForCausalLM").unwrap();
        let frequencies = format!("{block}.self_attn.rotary_emb.inv_freq");
        assert_eq!(llama.target(&frequencies).unwrap(), None);
        assert!(llama.target("model.layers.0.self_attn.sinks").is_err());
    }
}
