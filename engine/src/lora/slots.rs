//! Owns the pieces of an adapter: what each is for, its shape and PEFT's name of it.

use std::ops::Range;

use crate::config::ModelConfig;
use crate::lora::layout::Module;
use crate::lora::targets::{Targets, path};
use crate::lora::{AdapterError, Init, LoraConfig};

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
    /// Place of DoRA's magnitudes (out).
    pub magnitude: Option<Range<usize>>,
}

/// What a slot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Trained,
    /// Takes away what the trained slot of the same linear began with, so that the sum began with the base. Never trained.
    Initial,
}

/// A bias of the base that is trained.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BiasSlot {
    pub layer: usize,
    pub module: Module,
    /// Its columns within the fused linear's output.
    pub columns: Range<usize>,
    pub place: Range<usize>,
    is_changed: bool,
}

/// A matrix (V, D) of the base that is trained whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Saved {
    EmbedTokens,
    LmHead,
}

/// One tensor of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tensor {
    pub kind: Kind,
    pub role: Role,
    /// PEFT's name, where PEFT has it.
    pub name: String,
    pub shape: Vec<usize>,
    pub place: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    A,
    B,
    Magnitude,
    Bias,
    Saved,
}

impl Slot {
    pub(super) fn new(
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
            magnitude: config.use_dora.then_some(0..0),
        })
    }

    /// The path of the linear in Hugging Face's models.
    pub fn path(&self) -> String {
        path(self.layer, self.module)
    }

    pub(super) fn magnitude_mut(&mut self) -> Option<(&mut Range<usize>, usize)> {
        self.magnitude.as_mut().map(|place| (place, self.n_out))
    }

    pub(super) fn tensors(&self) -> Vec<Tensor> {
        let prefix = match self.role {
            Role::Trained => "",
            Role::Initial => "initial_",
        };
        let tensor = |kind, name: &str, shape: &[usize], place: &Range<usize>| Tensor {
            kind,
            role: self.role,
            name: format!("base_model.model.{}.{prefix}{name}", self.path()),
            shape: shape.to_vec(),
            place: place.clone(),
        };
        let (a, b) = ([self.r, self.n_in], [self.n_out, self.r]);
        let mut tensors = vec![
            tensor(Kind::A, "lora_A.weight", &a, &self.a),
            tensor(Kind::B, "lora_B.weight", &b, &self.b),
        ];
        let magnitude = self.magnitude.iter();
        tensors.extend(magnitude.map(|place| {
            tensor(
                Kind::Magnitude,
                "lora_magnitude_vector",
                &[self.n_out],
                place,
            )
        }));
        tensors
    }
}

impl BiasSlot {
    pub(super) fn new(model: &ModelConfig, layer: usize, module: Module, is_changed: bool) -> Self {
        let column = module.column(model);
        Self {
            layer,
            module,
            columns: column..column + module.sizes(model).1,
            place: 0..0,
            is_changed,
        }
    }

    pub(super) fn tensor(&self) -> Tensor {
        // PEFT puts a changed linear into another module.
        let inner = if self.is_changed { ".base_layer" } else { "" };
        let path = path(self.layer, self.module);
        Tensor {
            kind: Kind::Bias,
            role: Role::Trained,
            name: format!("base_model.model.{path}{inner}.bias"),
            shape: vec![self.columns.len()],
            place: self.place.clone(),
        }
    }
}

impl Saved {
    /// The path of the module in Hugging Face's models.
    pub(super) fn path(self) -> &'static str {
        match self {
            Saved::EmbedTokens => "model.embed_tokens",
            Saved::LmHead => "lm_head",
        }
    }

    pub(super) fn tensor(self, shape: Vec<usize>, place: Range<usize>) -> Tensor {
        let path = self.path();
        Tensor {
            kind: Kind::Saved,
            role: Role::Trained,
            name: format!("base_model.model.{path}.weight"),
            shape,
            place,
        }
    }
}
