//! Owns the weights that are exported: a base's files, and what an adapter changes in them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;

use super::ExportError;
use crate::lora::{Adapter, Change};
use crate::stored::{Encoding, Files, Stored};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// A tensor of the base, as it leaves.
pub(super) struct BaseTensor {
    stored: Stored,
    change: Option<Change>,
}

impl BaseTensor {
    /// Hugging Face's name.
    pub fn name(&self) -> &str {
        &self.stored.name
    }

    /// What its values are written in: blocks become bf16.
    pub fn dtype(&self) -> Dtype {
        match self.stored.encoding {
            Encoding::Numbers(dtype) => dtype,
            Encoding::Blocks(_) => Dtype::BF16,
        }
    }

    pub fn shape(&self) -> &[usize] {
        &self.stored.shape
    }

    /// Values side by side: the last axis.
    pub fn width(&self) -> usize {
        self.stored.width()
    }

    /// Rows of that width; a vector is one row.
    pub fn n_rows(&self) -> usize {
        self.stored.n_rows()
    }

    /// Bytes as written.
    pub fn size_bytes(&self) -> usize {
        self.shape().iter().product::<usize>() * self.dtype().bitsize() / 8
    }

    /// Whether [`Source::row`] can read it.
    pub fn is_float(&self) -> bool {
        self.stored.is_float()
    }

    /// Whether the file holds the very bytes that are written.
    pub fn is_as_stored(&self) -> bool {
        let is_number = matches!(self.stored.encoding, Encoding::Numbers(_));
        self.change.is_none() && is_number && self.stored.n_interleaved.is_none()
    }

    fn as_head(&self) -> Self {
        let mut stored = self.stored.clone();
        stored.name = HEAD.to_owned();
        Self {
            stored,
            change: None,
        }
    }
}

/// Every tensor of a model, with its adapter's change.
pub(super) struct Source {
    files: Files,
    /// In the order of the files, and of the bytes within them.
    tensors: Vec<BaseTensor>,
    adapter: Option<Arc<Adapter>>,
    is_untied: bool,
}

impl Source {
    /// `is_tied`: the base's head is its embedding, and is no tensor of its own, unless the adapter has trained one of them.
    /// Errors: the folder's weights cannot be read, or the adapter changes what they have not.
    pub fn open(
        dir: &Path,
        adapter: Option<Arc<Adapter>>,
        is_tied: bool,
    ) -> Result<Self, ExportError> {
        let files = Files::open(dir)?;
        let unchanged = |stored: &Stored| BaseTensor {
            stored: stored.clone(),
            change: None,
        };
        let mut tensors: Vec<BaseTensor> = files.tensors().iter().map(unchanged).collect();
        let is_untied = is_tied && adapter.as_ref().is_some_and(|adapter| adapter.unties());
        if is_tied {
            tensors.retain(|tensor| tensor.name() != HEAD);
        }
        if is_untied {
            let embedding = tensors.iter().find(|tensor| tensor.name() == EMBEDDING);
            tensors.extend(embedding.map(BaseTensor::as_head));
        }
        if let Some(adapter) = &adapter {
            assign(adapter.changes(), &mut tensors)?;
        }
        Ok(Self {
            files,
            tensors,
            adapter,
            is_untied,
        })
    }

    /// Whether embedding and head are no longer one, though the base's `config.json` says so.
    pub fn is_untied(&self) -> bool {
        self.is_untied
    }

    pub fn tensors(&self) -> &[BaseTensor] {
        &self.tensors
    }

    /// The tensor's bytes as the base has them.
    pub fn bytes(&self, tensor: &BaseTensor) -> &[u8] {
        self.files.bytes(&tensor.stored)
    }

    /// Row `i` of a tensor of floats, in f32, with what the adapter changes.
    pub fn row(&self, tensor: &BaseTensor, i: usize, out: &mut [f32]) {
        self.files.read(&tensor.stored, i, out);
        if let (Some(adapter), Some(change)) = (&self.adapter, &tensor.change) {
            adapter.change_row(change, i, out);
        }
    }
}

/// Gives every tensor its change. Errors: `NotInBase`.
fn assign(
    mut changes: HashMap<String, Change>,
    tensors: &mut [BaseTensor],
) -> Result<(), ExportError> {
    for tensor in tensors {
        tensor.change = changes.remove(tensor.name());
        let fits = |change: &Change| change.shape == tensor.shape() && tensor.is_float();
        if !tensor.change.as_ref().is_none_or(fits) {
            let name = tensor.name().to_owned();
            return Err(ExportError::NotInBase { name });
        }
    }
    match changes.into_keys().min() {
        Some(name) => Err(ExportError::NotInBase { name }),
        None => Ok(()),
    }
}
