//! Small random models, written as Hugging Face folders.
#![allow(dead_code)]

use std::path::Path;
use std::sync::Arc;

use engine::batch::Example;
use engine::lora::{Adapter, LoraConfig};
use engine::pool::Pool;
use engine::weights::BaseModel;
use safetensors::{Dtype, tensor::TensorView};

/// A shape whose sizes are no multiples of a vector, so that every edge is met.
#[derive(Clone, Copy)]
pub struct Tiny {
    pub architecture: &'static str,
    pub hidden: usize,
    pub inner: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub tied: bool,
}

pub const LLAMA: Tiny = Tiny {
    architecture: "LlamaForCausalLM",
    hidden: 40,
    inner: 72,
    layers: 2,
    heads: 6,
    kv_heads: 2,
    head_dim: 10,
    vocab: 101,
    tied: true,
};

pub const QWEN2: Tiny = Tiny {
    architecture: "Qwen2ForCausalLM",
    kv_heads: 3,
    tied: false,
    ..LLAMA
};

/// Numbers in (−1, 1) that look random and never change.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as f32 / (1u64 << 30) as f32) - 1.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        ((self.next() + 1.0) / 2.0 * n as f32) as usize % n
    }
}

impl Tiny {
    pub fn config_json(&self) -> String {
        format!(
            r#"{{"architectures":["{}"],"hidden_size":{},"intermediate_size":{},"num_hidden_layers":{},
            "num_attention_heads":{},"num_key_value_heads":{},"head_dim":{},"vocab_size":{},"rms_norm_eps":1e-5,
            "max_position_embeddings":512,"rope_theta":10000.0,"tie_word_embeddings":{},"eos_token_id":2}}"#,
            self.architecture,
            self.hidden,
            self.inner,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.vocab,
            self.tied
        )
    }

    /// (name, shape) of every tensor.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, inner) = (self.hidden, self.inner);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = vec![
            (
                "model.embed_tokens.weight".to_owned(),
                vec![self.vocab, hidden],
            ),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        if !self.tied {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocab, hidden]));
        }
        for i in 0..self.layers {
            let mut push = |name: &str, shape: &[usize]| {
                tensors.push((format!("model.layers.{i}.{name}"), shape.to_vec()))
            };
            push("input_layernorm.weight", &[hidden]);
            push("post_attention_layernorm.weight", &[hidden]);
            push("self_attn.q_proj.weight", &[q, hidden]);
            push("self_attn.k_proj.weight", &[kv, hidden]);
            push("self_attn.v_proj.weight", &[kv, hidden]);
            push("self_attn.o_proj.weight", &[hidden, q]);
            push("mlp.gate_proj.weight", &[inner, hidden]);
            push("mlp.up_proj.weight", &[inner, hidden]);
            push("mlp.down_proj.weight", &[hidden, inner]);
            if self.architecture == "Qwen2ForCausalLM" {
                push("self_attn.q_proj.bias", &[q]);
                push("self_attn.k_proj.bias", &[kv]);
                push("self_attn.v_proj.bias", &[kv]);
            }
        }
        tensors
    }

    pub fn values(&self, name: &str, n: usize) -> Vec<f32> {
        let seed = name
            .bytes()
            .fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        let mut numbers = Numbers(seed);
        let spread = if name.contains("embed") || name.contains("head") {
            0.5
        } else {
            0.3
        };
        let offset = if name.contains("norm") { 1.0 } else { 0.0 };
        // Cut to bf16, so that storage in it loses nothing.
        let cut = |x: f32| f32::from_bits(x.to_bits() & 0xffff_0000);
        (0..n)
            .map(|_| cut(offset + spread * numbers.next()))
            .collect()
    }

    pub fn write(&self, dir: &Path) {
        self.write_changed(dir, |_, _, _| ());
    }

    /// As `write`, after `change` had each tensor: its name, shape and values.
    pub fn write_changed(&self, dir: &Path, change: impl Fn(&str, &[usize], &mut [f32])) {
        std::fs::write(dir.join("config.json"), self.config_json()).unwrap();
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = self
            .tensors()
            .into_iter()
            .map(|(name, shape)| {
                let mut values = self.values(&name, shape.iter().product());
                change(&name, &shape, &mut values);
                (
                    name,
                    shape,
                    values.iter().flat_map(|x| x.to_le_bytes()).collect(),
                )
            })
            .collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            (
                name,
                TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
            )
        });
        std::fs::write(
            dir.join("model.safetensors"),
            safetensors::serialize(views, None).unwrap(),
        )
        .unwrap();
    }

    pub fn load(&self, pool: &Pool) -> Arc<BaseModel> {
        let dir = tempfile::tempdir().unwrap();
        self.write(dir.path());
        Arc::new(BaseModel::load(dir.path(), pool).unwrap())
    }
}

/// An adapter whose B is not zero, so that every gradient flows.
pub fn adapter(base: &BaseModel, config: &LoraConfig, seed: u64) -> Adapter {
    let fresh = Adapter::init(base.config(), config, seed).unwrap();
    with_values(&fresh, base, |name, i, x| {
        if name.contains("lora_B") {
            0.2 * noise(seed, name, i)
        } else {
            x
        }
    })
}

fn noise(seed: u64, name: &str, i: usize) -> f32 {
    let h = name
        .bytes()
        .fold(seed, |h, b| h.wrapping_mul(131).wrapping_add(u64::from(b)));
    let mut numbers = Numbers(h.wrapping_add(i as u64 * 7919));
    numbers.next();
    numbers.next()
}

/// The adapter with each value replaced by `f(tensor name, index, value)`.
pub fn with_values(
    from: &Adapter,
    base: &BaseModel,
    f: impl Fn(&str, usize, f32) -> f32,
) -> Adapter {
    let mut bytes = from.to_safetensors();
    let places: Vec<(String, usize, usize)> = {
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let start = bytes.as_ptr() as usize;
        tensors
            .iter()
            .map(|(name, t)| {
                (
                    name.to_owned(),
                    t.data().as_ptr() as usize - start,
                    t.data().len() / 4,
                )
            })
            .collect()
    };
    for (name, start, n) in places {
        for i in 0..n {
            let at = start + 4 * i;
            let x = f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            bytes[at..at + 4].copy_from_slice(&f(&name, i, x).to_le_bytes());
        }
    }
    Adapter::from_peft(&from.config_json("base"), &bytes, base.config()).unwrap()
}

/// Every value of an adapter, by tensor.
pub fn tensors_of(adapter: &Adapter) -> Vec<(String, Vec<f32>)> {
    let bytes = adapter.to_safetensors();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<(String, Vec<f32>)> = tensors
        .iter()
        .map(|(name, t)| {
            let values = t
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            (name.to_owned(), values.collect())
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// An example of random tokens, labels after the first third.
pub fn example(vocab: usize, len: usize, seed: u64) -> Example {
    let mut numbers = Numbers(seed * 7919 + 1);
    let tokens = (0..len).map(|_| numbers.below(vocab) as u32).collect();
    Example {
        tokens,
        mask: (0..len).map(|i| i >= len / 3 && i % 7 != 3).collect(),
    }
}
