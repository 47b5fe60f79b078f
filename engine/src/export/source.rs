//! Owns the weights that are exported: a base's files, mapped, and what an adapter changes in them.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::ExportError;
use crate::lora::{Adapter, Change};
use crate::weights::{LoadError, map_files, widen};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// A tensor of the base.
pub(super) struct Stored {
    /// Hugging Face's name.
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    file: usize,
    bytes: Range<usize>,
    change: Option<Change>,
}

impl Stored {
    /// Values side by side: the last axis.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows of that width; a vector is one row.
    pub fn n_rows(&self) -> usize {
        self.shape.iter().product::<usize>() / self.width().max(1)
    }

    /// Bytes as stored, and as merged.
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    fn as_head(&self) -> Self {
        Self {
            name: HEAD.to_owned(),
            dtype: self.dtype,
            shape: self.shape.clone(),
            file: self.file,
            bytes: self.bytes.clone(),
            change: None,
        }
    }

    pub fn is_changed(&self) -> bool {
        self.change.is_some()
    }
}

/// Every tensor of a model, with its adapter's change.
pub(super) struct Source {
    files: Vec<Mmap>,
    /// In the order of the files, and of the bytes within them.
    tensors: Vec<Stored>,
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
        let (mut files, mut tensors) = (Vec::new(), Vec::new());
        for (path, map) in map_files(dir)? {
            let stored = read_header(&map, files.len());
            tensors.extend(stored.map_err(|error| LoadError::Malformed {
                path,
                reason: error.to_string(),
            })?);
            files.push(map);
        }
        let is_untied = is_tied && adapter.as_ref().is_some_and(|adapter| adapter.unties());
        if is_tied {
            tensors.retain(|tensor: &Stored| tensor.name != HEAD);
        }
        if is_untied {
            let embedding = tensors.iter().find(|tensor| tensor.name == EMBEDDING);
            tensors.extend(
                embedding
                    .map(|embedding| embedding.as_head())
                    .into_iter()
                    .collect::<Vec<_>>(),
            );
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

    pub fn tensors(&self) -> &[Stored] {
        &self.tensors
    }

    /// The tensor's bytes as the base has them.
    pub fn bytes(&self, tensor: &Stored) -> &[u8] {
        &self.files[tensor.file][tensor.bytes.clone()]
    }

    /// Row `i` of a tensor of floats, in f32, with what the adapter changes.
    pub fn row(&self, tensor: &Stored, i: usize, out: &mut [f32]) {
        let n_bytes = out.len() * tensor.dtype.bitsize() / 8;
        let bytes = &self.bytes(tensor)[i * n_bytes..][..n_bytes];
        widen(tensor.dtype, bytes, out);
        if let (Some(adapter), Some(change)) = (&self.adapter, &tensor.change) {
            adapter.change_row(change, i, out);
        }
    }
}

/// Gives every tensor its change. Errors: `NotInBase`.
fn assign(mut changes: HashMap<String, Change>, tensors: &mut [Stored]) -> Result<(), ExportError> {
    for tensor in tensors {
        tensor.change = changes.remove(&tensor.name);
        let fits = |change: &Change| change.shape == tensor.shape && is_float(tensor.dtype);
        if !tensor.change.as_ref().is_none_or(fits) {
            let name = tensor.name.clone();
            return Err(ExportError::NotInBase { name });
        }
    }
    match changes.into_keys().min() {
        Some(name) => Err(ExportError::NotInBase { name }),
        None => Ok(()),
    }
}

/// Whether [`Source::row`] can read it.
pub(super) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16)
}

fn read_header(map: &[u8], file: usize) -> Result<Vec<Stored>, safetensors::SafeTensorError> {
    // Checks that shapes and places agree with the file's length.
    SafeTensors::deserialize(map)?;
    let (n_header, metadata) = SafeTensors::read_metadata(map)?;
    let start = 8 + n_header;
    let mut tensors: Vec<Stored> = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| Stored {
            dtype: info.dtype,
            shape: info.shape.clone(),
            file,
            bytes: start + info.data_offsets.0..start + info.data_offsets.1,
            change: None,
            name,
        })
        .collect();
    tensors.sort_by_key(|tensor| (tensor.bytes.start, tensor.bytes.end));
    Ok(tensors)
}
