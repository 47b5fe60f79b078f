//! Owns the place of every value of an adapter in one flat vector.

use std::ops::Range;

use crate::config::ModelConfig;
use crate::lora::targets::{Targets, path};
use crate::lora::{AdapterError, Init, LoraConfig};

/// The linears of a decoder block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Module {
    /// In the order of the block.
    pub const ALL: [Module; 7] = [
        Module::Q,
        Module::K,
        Module::V,
        Module::O,
        Module::Gate,
        Module::Up,
        Module::Down,
    ];

    /// The name in Hugging Face's models.
    pub fn name(self) -> &'static str {
        match self {
            Module::Q => "q_proj",
            Module::K => "k_proj",
            Module::V => "v_proj",
            Module::O => "o_proj",
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

    pub(crate) fn fused(self) -> Fused {
        match self {
            Module::Q | Module::K | Module::V => Fused::Qkv,
            Module::O => Fused::O,
            Module::Gate | Module::Up => Fused::GateUp,
            Module::Down => Fused::Down,
        }
    }

    /// (in, out)
    pub(crate) fn sizes(self, model: &ModelConfig) -> (usize, usize) {
        let (hidden, inner) = (model.hidden_size, model.intermediate_size);
        match self {
            Module::Q => (hidden, model.query_size()),
            Module::K | Module::V => (hidden, model.key_value_size()),
            Module::O => (model.query_size(), hidden),
            Module::Gate | Module::Up => (hidden, inner),
            Module::Down => (inner, hidden),
        }
    }

    /// First column of its output within the fused linear's.
    fn column(self, model: &ModelConfig) -> usize {
        let before = Module::ALL.into_iter().take_while(|&module| module != self);
        let beside = before.filter(|module| module.fused() == self.fused());
        beside.map(|module| module.sizes(model).1).sum()
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

/// One change of a linear: s·B·A.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Slot {
    pub layer: usize,
    pub module: Module,
    pub n_in: usize,
    pub n_out: usize,
    /// First column of its output within the fused linear's.
    pub column: usize,
    pub r: usize,
    /// The factor s.
    pub scale: f32,
    pub role: Role,
    /// Place of A (r, in).
    pub a: Range<usize>,
    /// Place of B (out, r).
    pub b: Range<usize>,
}

/// What a slot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Trained,
    /// Takes away what the trained slot of the same linear began with, so that the sum began with the base. Never trained.
    Initial,
}

impl Slot {
    /// The path of the linear in Hugging Face's models.
    pub fn path(&self) -> String {
        path(self.layer, self.module)
    }
}

/// One matrix of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tensor {
    pub kind: Kind,
    pub role: Role,
    /// PEFT's name, where PEFT has it.
    pub name: String,
    pub shape: [usize; 2],
    pub place: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    A,
    B,
}

/// Where everything is. The A matrices of a fused linear lie one after the other, so that they are one matrix (R, in).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layout {
    pub n_layers: usize,
    slots: Vec<Slot>,
    /// For each layer and fused linear, its range of `slots`.
    fused: Vec<Range<usize>>,
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
        targets.check(model.num_hidden_layers)?;
        let mut slots = Vec::new();
        for layer in 0..model.num_hidden_layers {
            for module in Module::ALL {
                let path = path(layer, module);
                if targets.contains(layer, &path) {
                    slots.push(Slot::new(model, config, &targets, layer, module)?);
                }
            }
        }
        if slots.is_empty() {
            return Err(AdapterError::NoTargets);
        }
        if config.init_lora_weights == Init::Pissa {
            let initial = |slot: &Slot| Slot {
                role: Role::Initial,
                ..slot.clone()
            };
            slots.extend(slots.iter().map(initial).collect::<Vec<_>>());
        }
        let n_outs = Fused::ALL.map(|fused| {
            let modules = Module::ALL.into_iter().filter(|m| m.fused() == fused);
            modules.map(|module| module.sizes(model).1).sum()
        });
        Ok(Self::place(model.num_hidden_layers, n_outs, slots))
    }

    /// The layout of the plain adapter that a trained slot and its initial one are together: one slot of twice the rank.
    pub fn folded(&self) -> Self {
        let twice = |slot: &Slot| Slot {
            r: 2 * slot.r,
            ..slot.clone()
        };
        let trained = self.slots.iter().filter(|slot| slot.role == Role::Trained);
        Self::place(self.n_layers, self.n_outs, trained.map(twice).collect())
    }

    /// Whether the adapter can change a model of this shape.
    pub fn fits(&self, model: &ModelConfig) -> bool {
        self.n_layers == model.num_hidden_layers
            && self.slots.iter().all(|slot| {
                (slot.n_in, slot.n_out) == slot.module.sizes(model)
                    && slot.column == slot.module.column(model)
            })
    }

    /// In the order of the forward.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// All matrices: A and B of each slot, in the slots' order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The matrices that are trained.
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

    /// The lowest place, in the order of the forward, that has an adapter: gradients need go no further down.
    pub fn lowest(&self) -> (usize, Fused) {
        let i = self
            .fused
            .iter()
            .position(|slots| !slots.is_empty())
            .expect("a layout has targets — a bug in `new`");
        (i / Fused::ALL.len(), Fused::ALL[i % Fused::ALL.len()])
    }

    fn place(n_layers: usize, n_outs: [usize; 4], mut slots: Vec<Slot>) -> Self {
        // A linear's initial slot beside its trained one: their ranks reach the same columns.
        slots.sort_by_key(|slot| (slot.layer, slot.module as usize));
        let (mut fused, mut n_values, mut end) = (Vec::new(), 0, 0);
        let mut take = |n: usize| {
            n_values += n;
            n_values - n..n_values
        };
        for layer in 0..n_layers {
            for part in Fused::ALL {
                let start = end;
                let is_here = |slot: &Slot| (slot.layer, slot.module.fused()) == (layer, part);
                end += slots[start..].iter().take_while(|s| is_here(s)).count();
                for slot in &mut slots[start..end] {
                    slot.a = take(slot.r * slot.n_in);
                }
                for slot in &mut slots[start..end] {
                    slot.b = take(slot.n_out * slot.r);
                }
                fused.push(start..end);
            }
        }
        Self {
            n_layers,
            n_outs,
            tensors: slots.iter().flat_map(tensors).collect(),
            slots,
            fused,
            n_values,
        }
    }
}

impl Slot {
    fn new(
        model: &ModelConfig,
        config: &LoraConfig,
        targets: &Targets<'_>,
        layer: usize,
        module: Module,
    ) -> Result<Self, AdapterError> {
        let (n_in, n_out) = module.sizes(model);
        let path = path(layer, module);
        let (r, scale) = (targets.r(&path), targets.scale(&path));
        // Singular values there are only as many as the smaller side has, and a root of the scale only if it is positive.
        let (limit, is_good) = match config.init_lora_weights {
            Init::Pissa => (n_in.min(n_out), scale > 0.0),
            _ => (model.hidden_size.min(model.intermediate_size), true),
        };
        if r == 0 || r > limit || !scale.is_finite() || !is_good {
            return Err(AdapterError::BadRank {
                r,
                limit,
                scale,
                path,
            });
        }
        Ok(Self {
            layer,
            module,
            n_in,
            n_out,
            column: module.column(model),
            r,
            scale,
            role: Role::Trained,
            a: 0..0,
            b: 0..0,
        })
    }
}

fn tensors(slot: &Slot) -> [Tensor; 2] {
    let prefix = match slot.role {
        Role::Trained => "",
        Role::Initial => "initial_",
    };
    let tensor = |kind, letter, shape, place: &Range<usize>| Tensor {
        kind,
        role: slot.role,
        name: format!(
            "base_model.model.{}.{prefix}lora_{letter}.weight",
            slot.path()
        ),
        shape,
        place: place.clone(),
    };
    [
        tensor(Kind::A, 'A', [slot.r, slot.n_in], &slot.a),
        tensor(Kind::B, 'B', [slot.n_out, slot.r], &slot.b),
    ]
}
