//! Owns the tensors of PEFT's adapter folders: `adapter_model.safetensors`. Beside it lies [`super::adapter_config`]'s file.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use safetensors::tensor::{Metadata, TensorInfo, TensorView};
use safetensors::{Dtype, SafeTensorError};

use crate::config::ModelConfig;
use crate::lora::adapter_config;
use crate::lora::layout::Layout;
use crate::lora::slots::Tensor;
use crate::lora::{Adapter, AdapterError};
use crate::stored::widen;

impl Adapter {
    /// `adapter_model.safetensors` of [`Self::to_plain`]: PEFT's tensor names, f32.
    pub fn to_safetensors(&self) -> Vec<u8> {
        let plain = self.to_plain();
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        serialize(
            named(plain.layout().tensors(), plain.values(), ""),
            metadata,
        )
    }

    /// `adapter_config.json` of [`Self::to_plain`], with every key that PEFT writes.
    pub fn config_json(&self, base_model_name_or_path: &str) -> String {
        let slots = self.layout().slots().iter();
        let linears: Vec<&str> = slots.map(|slot| slot.module.name()).collect();
        adapter_config::write(self.to_plain().config(), &linears, base_model_name_or_path)
    }

    /// Reads an adapter that PEFT, or this engine, has written; lower precisions are widened to f32.
    /// Errors: anything that would make the adapter another function than PEFT's, by name: nothing is skipped.
    pub fn from_peft(
        config_json: &str,
        safetensors: &[u8],
        model: &ModelConfig,
    ) -> Result<Self, AdapterError> {
        let read_at = |at: u64, out: &mut [u8]| {
            let from = safetensors.get(at as usize..).unwrap_or_default();
            let from = from.get(..out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(from);
            Ok(())
        };
        Self::read(config_json, safetensors.len() as u64, read_at, model)
    }

    /// The same of `adapter_model.safetensors`: its values go where they belong, and the file is never in memory as a whole.
    /// Errors: `Unreadable`, too.
    pub fn from_peft_file(
        config_json: &str,
        safetensors: &File,
        model: &ModelConfig,
    ) -> Result<Self, AdapterError> {
        let n_bytes = safetensors.metadata()?.len();
        let read_at = |at, out: &mut [u8]| safetensors.read_exact_at(out, at);
        Self::read(config_json, n_bytes, read_at, model)
    }

    fn read(
        config_json: &str,
        n_bytes: u64,
        read_at: impl Fn(u64, &mut [u8]) -> io::Result<()>,
        model: &ModelConfig,
    ) -> Result<Self, AdapterError> {
        let config = adapter_config::read(config_json)?;
        let layout = Layout::new(model, &config)?;
        let (start, head) = head(n_bytes, &read_at)?;
        let mut wanted = Vec::new();
        for tensor in layout.tensors() {
            wanted.push((info(&head, tensor)?, tensor));
        }
        // A disk is fastest from the beginning to the end.
        wanted.sort_by_key(|(info, _)| info.data_offsets);
        let mut values = vec![0.0; layout.n_values()];
        let mut narrow = Vec::new();
        for (info, tensor) in wanted {
            let out: &mut [f32] = &mut values[tensor.place.clone()];
            let at = start + info.data_offsets.0 as u64;
            if info.dtype == Dtype::F32 {
                read_at(at, bytemuck::cast_slice_mut(out))?;
                for x in out.iter_mut() {
                    *x = f32::from_bits(u32::from_le(x.to_bits()));
                }
            } else {
                narrow.resize(2 * out.len(), 0);
                read_at(at, &mut narrow)?;
                widen(info.dtype, &narrow, out);
            }
            if let Some(x) = out.iter().find(|x| !x.is_finite()) {
                return Err(AdapterError::WrongTensor {
                    name: tensor.name.clone(),
                    found: format!("not finite ({x})"),
                    expected: "finite".to_owned(),
                });
            }
        }
        let known: HashSet<&str> = layout.tensors().iter().map(|t| &*t.name).collect();
        let unexpected = head.offset_keys().into_iter();
        match unexpected.into_iter().find(|name| !known.contains(&**name)) {
            Some(name) => Err(AdapterError::UnexpectedTensor { name }),
            None => Ok(Self::from_parts(config, Arc::new(layout), values)),
        }
    }
}

/// Longest head that is read; safetensors has the same limit. Bytes.
const MAX_HEAD_BYTES: u64 = 100_000_000;

/// What a safetensors file of `n_bytes` holds, and where its values begin.
/// Errors: `Unreadable`; `MalformedTensors` unless shapes and places agree with each other and the file's length.
fn head(
    n_bytes: u64,
    read_at: impl Fn(u64, &mut [u8]) -> io::Result<()>,
) -> Result<(u64, Metadata), AdapterError> {
    let mut length = [0; 8];
    if n_bytes < length.len() as u64 {
        return Err(SafeTensorError::HeaderTooSmall.into());
    }
    read_at(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEAD_BYTES {
        return Err(SafeTensorError::HeaderTooLarge.into());
    }
    let start = 8 + length;
    if start > n_bytes {
        return Err(SafeTensorError::InvalidHeaderLength.into());
    }
    let mut text = vec![0; length as usize];
    read_at(8, &mut text)?;
    let head: Metadata =
        serde_json::from_slice(&text).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
    if start + head.data_len() as u64 != n_bytes {
        return Err(SafeTensorError::MetadataIncompleteBuffer.into());
    }
    Ok((start, head))
}

/// Where a tensor is. Errors: `MissingTensor`, `WrongTensor` where it has another shape or is no float.
fn info<'a>(
    head: &'a Metadata,
    Tensor { name, shape, .. }: &Tensor,
) -> Result<&'a TensorInfo, AdapterError> {
    let missing = || AdapterError::MissingTensor { name: name.clone() };
    let info = head.info(name).ok_or_else(missing)?;
    if info.shape != *shape || !matches!(info.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
        return Err(AdapterError::WrongTensor {
            name: name.clone(),
            found: format!("{:?} {:?}", info.dtype, info.shape),
            expected: format!("F32, BF16 or F16 {shape:?}"),
        });
    }
    Ok(info)
}

/// A tensor to be written: its name, shape and values.
pub(crate) type Named<'a> = (String, Vec<usize>, &'a [f32]);

/// `tensors` with their share of an adapter's `values`, `suffix` after their names.
pub(crate) fn named<'a>(
    tensors: impl IntoIterator<Item = &'a Tensor>,
    values: &'a [f32],
    suffix: &str,
) -> Vec<Named<'a>> {
    let tensors = tensors.into_iter().map(|tensor| {
        let name = format!("{}{suffix}", tensor.name);
        (name, tensor.shape.to_vec(), &values[tensor.place.clone()])
    });
    tensors.collect()
}

/// One safetensors file of f32 tensors.
pub(crate) fn serialize(tensors: Vec<Named<'_>>, metadata: HashMap<String, String>) -> Vec<u8> {
    let views = tensors.into_iter().map(|(name, shape, values)| {
        let bytes = bytemuck::cast_slice(values);
        (
            name,
            TensorView::new(Dtype::F32, shape, bytes)
                .expect("shape and bytes agree — a bug in the layout"),
        )
    });
    safetensors::serialize(views, Some(metadata))
        .expect("names are distinct and shapes agree — a bug in the layout")
}
