//! Owns the place of every value of an adapter in one flat vector.

use std::ops::Range;

use crate::config::ModelConfig;
use crate::lora::{AdapterError, LoraConfig};

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

    fn fused(self) -> Fused {
        match self {
            Module::Q | Module::K | Module::V => Fused::Qkv,
            Module::O => Fused::O,
            Module::Gate | Module::Up => Fused::GateUp,
            Module::Down => Fused::Down,
        }
    }

    /// (in, out)
    fn sizes(self, model: &ModelConfig) -> (usize, usize) {
        let (hidden, inner) = (model.hidden_size, model.intermediate_size);
        match self {
            Module::Q => (hidden, model.query_size()),
            Module::K | Module::V => (hidden, model.key_value_size()),
            Module::O => (model.query_size(), hidden),
            Module::Gate | Module::Up => (hidden, inner),
            Module::Down => (inner, hidden),
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

/// One changed linear.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Slot {
    pub layer: usize,
    pub module: Module,
    pub n_in: usize,
    pub n_out: usize,
    /// First column of its output within the fused linear's.
    pub column: usize,
    /// Place of A (r, in).
    pub a: Range<usize>,
    /// Place of B (out, r).
    pub b: Range<usize>,
}

/// Where everything is. The A matrices of a fused linear lie one after the other, so that they are one matrix (R, in).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layout {
    pub r: usize,
    /// The factor `lora_alpha / r`.
    pub scale: f32,
    pub n_layers: usize,
    slots: Vec<Slot>,
    /// For each layer and fused linear, its range of `slots`.
    fused: Vec<Range<usize>>,
    n_values: usize,
    /// Width of the result of each fused linear.
    n_outs: [usize; 4],
}

impl Layout {
    /// Errors: `UnknownModule`, `BadRank`, `NoTargets`.
    pub fn new(model: &ModelConfig, config: &LoraConfig) -> Result<Self, AdapterError> {
        let known = |name: &String| Module::ALL.iter().any(|module| module.name() == name);
        if let Some(name) = config.target_modules.iter().find(|name| !known(name)) {
            return Err(AdapterError::UnknownModule { name: name.clone() });
        }
        if config.target_modules.is_empty() {
            return Err(AdapterError::NoTargets);
        }
        if config.r == 0
            || config.r > model.hidden_size.min(model.intermediate_size)
            || !config.lora_alpha.is_finite()
        {
            return Err(AdapterError::BadRank {
                r: config.r,
                lora_alpha: config.lora_alpha,
            });
        }
        let mut layout = Self {
            r: config.r,
            scale: config.scale(),
            n_layers: model.num_hidden_layers,
            slots: Vec::new(),
            fused: Vec::new(),
            n_values: 0,
            n_outs: Fused::ALL.map(|fused| {
                let modules = Module::ALL.into_iter().filter(|m| m.fused() == fused);
                modules.map(|module| module.sizes(model).1).sum()
            }),
        };
        for layer in 0..model.num_hidden_layers {
            for fused in Fused::ALL {
                layout.push(model, config, layer, fused);
            }
        }
        Ok(layout)
    }

    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub fn n_values(&self) -> usize {
        self.n_values
    }

    /// Width of a fused linear's result.
    pub fn fused_n_out(&self, fused: Fused) -> usize {
        self.n_outs[fused as usize]
    }

    /// The changed linears within a fused one.
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

    fn push(&mut self, model: &ModelConfig, config: &LoraConfig, layer: usize, fused: Fused) {
        let first = self.slots.len();
        let mut column = 0;
        for module in Module::ALL
            .into_iter()
            .filter(|module| module.fused() == fused)
        {
            let (n_in, n_out) = module.sizes(model);
            if config
                .target_modules
                .iter()
                .any(|name| name == module.name())
            {
                self.slots.push(Slot {
                    layer,
                    module,
                    n_in,
                    n_out,
                    column,
                    a: 0..0,
                    b: 0..0,
                });
            }
            column += n_out;
        }
        for slot in &mut self.slots[first..] {
            slot.a = self.n_values..self.n_values + config.r * slot.n_in;
            self.n_values = slot.a.end;
        }
        for slot in &mut self.slots[first..] {
            slot.b = self.n_values..self.n_values + slot.n_out * config.r;
            self.n_values = slot.b.end;
        }
        self.fused.push(first..self.slots.len());
    }
}
