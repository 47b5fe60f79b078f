//! Owns the weights of a decoder block, and where the files have them.

use crate::config::{self, ModelConfig, NormWeight, QkNorm};
use crate::cpu::gemm::Weight;
use crate::lora::Fused;
use crate::nn::qk_norm;
use crate::weights::{Linear, LoadError, Reader};

/// The weights of one decoder block; linears that read the same input are one matrix.
pub(crate) struct Layer {
    /// Norms of the model's kind: what is multiplied with, whatever the file adds 1 to. (D) each.
    pub before_attention: Option<Vec<f32>>,
    /// q, k and v below each other.
    pub qkv: Linear,
    pub qk_norm: Option<qk_norm::Weights>,
    pub o: Linear,
    pub after_attention: Option<Vec<f32>>,
    pub before_mlp: Option<Vec<f32>>,
    pub mlp: Mlp,
    pub after_mlp: Option<Vec<f32>>,
}

/// The weights of a feed-forward.
pub(crate) enum Mlp {
    Dense(Dense),
    Experts(Experts),
}

/// A feed-forward, or one expert.
pub(crate) struct Dense {
    /// gate and up below each other.
    pub gate_up: Linear,
    pub down: Linear,
}

pub(crate) struct Experts {
    /// (E, D), never quantised: few values decide over much.
    pub router: Weight,
    pub experts: Vec<Dense>,
}

impl Dense {
    fn n_bytes(&self) -> usize {
        self.gate_up.n_bytes() + self.down.n_bytes()
    }

    fn n_parameters(&self) -> usize {
        self.gate_up.n_parameters() + self.down.n_parameters()
    }
}

impl Mlp {
    fn n_bytes(&self) -> usize {
        match self {
            Mlp::Dense(dense) => dense.n_bytes(),
            Mlp::Experts(Experts { router, experts }) => {
                router.n_bytes() + experts.iter().map(Dense::n_bytes).sum::<usize>()
            }
        }
    }

    fn n_parameters(&self) -> usize {
        match self {
            Mlp::Dense(dense) => dense.n_parameters(),
            Mlp::Experts(Experts { router, experts }) => {
                router.n_values() + experts.iter().map(Dense::n_parameters).sum::<usize>()
            }
        }
    }
}

impl Layer {
    /// A linear of the attention, or of a feed-forward that is dense.
    pub(crate) fn linear(&self, fused: Fused) -> &Linear {
        match fused {
            Fused::Qkv => &self.qkv,
            Fused::O => &self.o,
            Fused::GateUp => &self.dense().gate_up,
            Fused::Down => &self.dense().down,
        }
    }

    fn dense(&self) -> &Dense {
        let dense = match &self.mlp {
            Mlp::Dense(dense) => Some(dense),
            Mlp::Experts(_) => None,
        };
        dense.expect("experts are not one linear — a bug in the caller")
    }

    /// The norm after the branch that ends with a linear.
    pub(crate) fn norm_after(&self, fused: Fused) -> Option<&[f32]> {
        match fused {
            Fused::O => self.after_attention.as_deref(),
            Fused::Down => self.after_mlp.as_deref(),
            Fused::Qkv | Fused::GateUp => None,
        }
    }

    pub(super) fn n_parameters(&self) -> u64 {
        let in_linears = self.qkv.n_parameters() + self.o.n_parameters() + self.mlp.n_parameters();
        (self.n_in_norms() + in_linears) as u64
    }

    /// Bytes of memory.
    pub(super) fn n_bytes(&self) -> usize {
        let in_linears = self.qkv.n_bytes() + self.o.n_bytes() + self.mlp.n_bytes();
        self.n_in_norms() * size_of::<f32>() + in_linears
    }

    /// Numbers in norms.
    fn n_in_norms(&self) -> usize {
        let norms = [
            &self.before_attention,
            &self.after_attention,
            &self.before_mlp,
            &self.after_mlp,
        ];
        let norms: usize = norms.into_iter().flatten().map(Vec::len).sum();
        norms + self.qk_norm.as_ref().map_or(0, |w| w.q.len() + w.k.len())
    }
}

impl Reader<'_> {
    pub(super) fn layer(&self, config: &ModelConfig, i: usize) -> Result<Layer, LoadError> {
        let hidden = config.hidden_size;
        let (q, kv) = (config.query_size(), config.key_value_size());
        let name = |module: &str| format!("model.layers.{i}.{module}");
        let qkv: &[_] = match config.fused_qkv {
            true => &[("qkv_proj", q + 2 * kv)],
            false => &[("q_proj", q), ("k_proj", kv), ("v_proj", kv)],
        };
        let qkv = below(&name("self_attn"), qkv);
        let norm = |place: Option<&str>| {
            place
                .map(|module| self.norm(config, &name(&format!("{module}.weight")), hidden))
                .transpose()
        };
        let norms = config.norms;
        Ok(Layer {
            before_attention: norm(norms.before_attention)?,
            qkv: self.linear(&qkv, hidden)?,
            qk_norm: self.qk_norm(config, &name("self_attn"))?,
            o: self.linear(&[(name("self_attn.o_proj"), hidden)], q)?,
            after_attention: norm(norms.after_attention)?,
            before_mlp: norm(norms.before_mlp)?,
            mlp: match &config.experts {
                Some(experts) if config.layers[i].sparse => {
                    Mlp::Experts(self.experts(experts, hidden, &name(experts.names.block))?)
                }
                _ => Mlp::Dense(self.dense(config, &name("mlp"))?),
            },
            after_mlp: norm(norms.after_mlp)?,
        })
    }

    /// A norm's weight as what is multiplied with.
    pub(super) fn norm(
        &self,
        config: &ModelConfig,
        name: &str,
        n: usize,
    ) -> Result<Vec<f32>, LoadError> {
        let mut weight = self.vector(name, n)?;
        if config.norm_weight == NormWeight::PlusOne {
            weight.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(weight)
    }

    fn qk_norm(
        &self,
        config: &ModelConfig,
        block: &str,
    ) -> Result<Option<qk_norm::Weights>, LoadError> {
        let (query_size, key_size) = (config.query_size(), config.key_value_size());
        let (n_q, n_k) = match config.qk_norm {
            QkNorm::None => return Ok(None),
            QkNorm::PerHead => (config.head_dim, config.head_dim),
            QkNorm::Projection => (query_size, key_size),
        };
        Ok(Some(qk_norm::Weights {
            q: self.norm(config, &format!("{block}.q_norm.weight"), n_q)?,
            k: self.norm(config, &format!("{block}.k_norm.weight"), n_k)?,
            query_size,
            key_size,
        }))
    }

    fn dense(&self, config: &ModelConfig, block: &str) -> Result<Dense, LoadError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let gate_up: &[_] = match config.fused_gate_up {
            true => &[("gate_up_proj", 2 * inner)],
            false => &[("gate_proj", inner), ("up_proj", inner)],
        };
        Ok(Dense {
            gate_up: self.linear(&below(block, gate_up), hidden)?,
            down: self.linear(&below(block, &[("down_proj", hidden)]), inner)?,
        })
    }

    fn experts(
        &self,
        config: &config::Experts,
        hidden: usize,
        block: &str,
    ) -> Result<Experts, LoadError> {
        let (n, inner, names) = (config.num_experts, config.intermediate_size, config.names);
        let expert = |e| {
            let block = format!("{block}.experts.{e}");
            let gate_up = below(&block, &[(names.gate, inner), (names.up, inner)]);
            Ok(Dense {
                gate_up: self.linear(&gate_up, hidden)?,
                down: self.linear(&below(&block, &[(names.down, hidden)]), inner)?,
            })
        };
        Ok(Experts {
            router: self.matrix(&[(format!("{block}.gate.weight"), n)], hidden)?,
            experts: (0..n).map(expert).collect::<Result<_, LoadError>>()?,
        })
    }
}

/// The paths of modules below a block, with their rows.
fn below(block: &str, modules: &[(&str, usize)]) -> Vec<(String, usize)> {
    let path = |&(module, n): &(&str, usize)| (format!("{block}.{module}"), n);
    modules.iter().map(path).collect()
}
