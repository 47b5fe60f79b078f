//! Owns the place of every value of an adapter in one flat vector.

use std::ops::Range;

use crate::config::ModelConfig;
use crate::lora::slots::{BiasSlot, Role, Saved, Slot, Tensor};
use crate::lora::targets::{Targets, path};
use crate::lora::{AdapterError, Bias, Init, LoraConfig};

/// The linears of a decoder block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// q, k and v in models that keep them as one.
    Qkv,
    Q,
    K,
    V,
    O,
    /// gate and up in models that keep them as one.
    GateUp,
    Gate,
    Up,
    Down,
}

impl Module {
    /// In the order of the block, those of all models.
    pub const ALL: [Module; 9] = [
        Module::Qkv,
        Module::Q,
        Module::K,
        Module::V,
        Module::O,
        Module::GateUp,
        Module::Gate,
        Module::Up,
        Module::Down,
    ];

    /// The name in Hugging Face's models.
    pub fn name(self) -> &'static str {
        match self {
            Module::Qkv => "qkv_proj",
            Module::Q => "q_proj",
            Module::K => "k_proj",
            Module::V => "v_proj",
            Module::O => "o_proj",
            Module::GateUp => "gate_up_proj",
            Module::Gate => "gate_proj",
            Module::Up => "up_proj",
            Module::Down => "down_proj",
        }
    }

    /// The path below the block.
    pub(crate) fn path(self) -> String {
        let parent = if matches!(self.fused(), Fused::Qkv | Fused::O) {
            "self_attn"
        } else {
            "mlp"
        };
        format!("{parent}.{}", self.name())
    }

    /// Those that a block of `model` has outside of experts, in order.
    pub(crate) fn of(model: &ModelConfig, layer: usize) -> impl Iterator<Item = Module> {
        let (fused_qkv, fused_gate_up) = (model.fused_qkv, model.fused_gate_up);
        let is_sparse = model.layers.get(layer).is_some_and(|layer| layer.sparse);
        Module::ALL.into_iter().filter(move |module| match module {
            Module::Qkv => fused_qkv,
            Module::Q | Module::K | Module::V => !fused_qkv,
            Module::O => true,
            Module::GateUp => fused_gate_up && !is_sparse,
            Module::Gate | Module::Up => !fused_gate_up && !is_sparse,
            Module::Down => !is_sparse,
        })
    }

    pub(crate) fn fused(self) -> Fused {
        match self {
            Module::Qkv | Module::Q | Module::K | Module::V => Fused::Qkv,
            Module::O => Fused::O,
            Module::GateUp | Module::Gate | Module::Up => Fused::GateUp,
            Module::Down => Fused::Down,
        }
    }

    /// (in, out)
    pub(crate) fn sizes(self, model: &ModelConfig) -> (usize, usize) {
        let (hidden, inner) = (model.hidden_size, model.intermediate_size);
        match self {
            Module::Qkv => (hidden, model.query_size() + 2 * model.key_value_size()),
            Module::Q => (hidden, model.query_size()),
            Module::K | Module::V => (hidden, model.key_value_size()),
            Module::O => (model.query_size(), hidden),
            Module::GateUp => (hidden, 2 * inner),
            Module::Gate | Module::Up => (hidden, inner),
            Module::Down => (inner, hidden),
        }
    }

    /// Whether models of this shape have a bias here.
    fn has_bias(self, model: &ModelConfig) -> bool {
        match self {
            Module::Qkv | Module::Q | Module::K | Module::V => model.qkv_bias,
            Module::O => model.o_bias,
            Module::GateUp | Module::Gate | Module::Up | Module::Down => model.mlp_bias,
        }
    }

    /// First column of its output within the fused linear's.
    pub(super) fn column(self, model: &ModelConfig) -> usize {
        let (q, kv) = (model.query_size(), model.key_value_size());
        match self {
            Module::K => q,
            Module::V => q + kv,
            Module::Up => model.intermediate_size,
            _ => 0,
        }
    }
}

/// Linears with a common input, multiplied as one; in the order of the forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fused {
    Qkv = 0,
    O = 1,
    GateUp = 2,
    Down = 3,
}

impl Fused {
    pub const ALL: [Fused; 4] = [Fused::Qkv, Fused::O, Fused::GateUp, Fused::Down];
}

/// Where everything is. The A matrices of a fused linear lie one after the other, so that they are one matrix (R, in).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layout {
    pub n_layers: usize,
    slots: Vec<Slot>,
    /// For each layer and fused linear, its range of `slots`.
    fused: Vec<Range<usize>>,
    /// In the order of layers and modules.
    biases: Vec<BiasSlot>,
    saved: Vec<(Saved, Range<usize>)>,
    /// (V, D)
    saved_shape: [usize; 2],
    tensors: Vec<Tensor>,
    n_values: usize,
    /// Width of the result of each fused linear.
    n_outs: [usize; 4],
}

impl Layout {
    /// Errors: what a configuration can have wrong, on its own and for this model.
    pub fn new(model: &ModelConfig, config: &LoraConfig) -> Result<Self, AdapterError> {
        config.check()?;
        let targets = Targets::new(config)?;
        targets.check(model)?;
        let (mut slots, mut biases) = (Vec::new(), Vec::new());
        for layer in 0..model.num_hidden_layers {
            for module in Module::of(model, layer) {
                let path = path(layer, module);
                let is_changed = targets.contains(layer, &path);
                if is_changed {
                    slots.push(Slot::new(model, config, &targets, layer, module)?);
                }
                let is_trained = match config.bias {
                    Bias::None => false,
                    Bias::All => true,
                    Bias::LoraOnly => is_changed,
                };
                if is_trained && module.has_bias(model) {
                    biases.push(BiasSlot::new(model, layer, module, is_changed));
                }
            }
        }
        if slots.is_empty() {
            return Err(AdapterError::NoTargets);
        }
        if config.init_lora_weights == Init::Pissa {
            let initial = |slot: &Slot| Slot {
                role: Role::Initial,
                magnitude: None,
                ..slot.clone()
            };
            slots.extend(slots.iter().map(initial).collect::<Vec<_>>());
        }
        let mut saved = config.saved()?;
        saved.sort_by_key(|&saved| saved as usize);
        saved.dedup();
        Ok(Self {
            n_layers: model.num_hidden_layers,
            slots,
            fused: Vec::new(),
            biases,
            saved: saved.into_iter().map(|saved| (saved, 0..0)).collect(),
            saved_shape: [model.vocab_size, model.hidden_size],
            tensors: Vec::new(),
            n_values: 0,
            n_outs: [
                Module::Qkv.sizes(model).1,
                Module::O.sizes(model).1,
                Module::GateUp.sizes(model).1,
                Module::Down.sizes(model).1,
            ],
        }
        .placed())
    }

    /// The layout of the plain adapter that a trained slot and its initial one are together: one slot of twice the rank.
    pub fn folded(&self) -> Self {
        let twice = |slot: &Slot| Slot {
            r: 2 * slot.r,
            ..slot.clone()
        };
        let trained = self.slots.iter().filter(|slot| slot.role == Role::Trained);
        Self {
            slots: trained.map(twice).collect(),
            ..self.clone()
        }
        .placed()
    }

    /// Whether the adapter can change a model of this shape.
    pub fn fits(&self, model: &ModelConfig) -> bool {
        self.n_layers == model.num_hidden_layers
            && (self.saved.is_empty() || self.saved_shape == [model.vocab_size, model.hidden_size])
            && self.biases.iter().all(|b| b.module.has_bias(model))
            && self.slots.iter().all(|slot| {
                Module::of(model, slot.layer).any(|module| module == slot.module)
                    && (slot.n_in, slot.n_out) == slot.module.sizes(model)
                    && slot.column == slot.module.column(model)
            })
    }

    /// In the order of the forward.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// All tensors: those of each slot in the slots' order, then biases, then what is saved whole.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensors that are trained.
    pub fn trained(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.iter().filter(|t| t.role == Role::Trained)
    }

    pub fn n_values(&self) -> usize {
        self.n_values
    }

    /// Width of a fused linear's result.
    pub fn fused_n_out(&self, fused: Fused) -> usize {
        self.n_outs[fused as usize]
    }

    /// The changes within a fused linear.
    pub fn fused(&self, layer: usize, fused: Fused) -> &[Slot] {
        &self.slots[self.fused[layer * Fused::ALL.len() + fused as usize].clone()]
    }

    /// All trained biases.
    pub fn biases(&self) -> &[BiasSlot] {
        &self.biases
    }

    /// Place of a matrix (V, D) that is trained whole.
    pub fn saved(&self, which: Saved) -> Option<Range<usize>> {
        let saved = self.saved.iter().find(|(saved, _)| *saved == which);
        saved.map(|(_, place)| place.clone())
    }

    /// The shape (V, D) of every matrix that is trained whole.
    pub(super) fn saved_shape(&self) -> [usize; 2] {
        self.saved_shape
    }

    /// The lowest place, in the order of the forward, that has something to train: gradients need go no further down.
    /// `None` is below all blocks.
    pub fn lowest(&self) -> Option<(usize, Fused)> {
        if self.saved(Saved::EmbedTokens).is_some() {
            return None;
        }
        let slots = self.slots.iter().map(|slot| (slot.layer, slot.module));
        let biases = self.biases.iter().map(|bias| (bias.layer, bias.module));
        let lowest = slots
            .chain(biases)
            .min_by_key(|(layer, m)| (*layer, *m as usize));
        lowest.map(|(layer, module)| (layer, module.fused()))
    }

    /// Gives everything its place.
    fn placed(mut self) -> Self {
        // A linear's initial slot beside its trained one: their ranks reach the same columns.
        self.slots
            .sort_by_key(|slot| (slot.layer, slot.module as usize));
        let (mut n_values, mut end) = (0, 0);
        let mut take = |n: usize| {
            n_values += n;
            n_values - n..n_values
        };
        self.fused.clear();
        for layer in 0..self.n_layers {
            for part in Fused::ALL {
                let start = end;
                let is_here = |slot: &Slot| (slot.layer, slot.module.fused()) == (layer, part);
                let here = self.slots[start..].iter().take_while(|slot| is_here(slot));
                end += here.count();
                let slots = &mut self.slots[start..end];
                for slot in &mut *slots {
                    slot.a = take(slot.r * slot.n_in);
                }
                for slot in &mut *slots {
                    slot.b = take(slot.n_out * slot.r);
                }
                for (place, n_out) in slots.iter_mut().filter_map(Slot::magnitude_mut) {
                    *place = take(n_out);
                }
                self.fused.push(start..end);
            }
        }
        for bias in &mut self.biases {
            bias.place = take(bias.columns.len());
        }
        for (_, place) in &mut self.saved {
            *place = take(self.saved_shape.iter().product());
        }
        self.n_values = n_values;
        self.tensors = self.slots.iter().flat_map(Slot::tensors).collect();
        self.tensors
            .extend(self.biases.iter().map(BiasSlot::tensor));
        let saved = self.saved.iter();
        let shape = self.saved_shape.to_vec();
        self.tensors
            .extend(saved.map(|(saved, place)| saved.tensor(shape.clone(), place.clone())));
        self
    }
}
