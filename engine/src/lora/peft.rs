//! Owns the tensors of PEFT's adapter folders: `adapter_model.safetensors`. Beside it lies [`super::adapter_config`]'s file.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

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
        let config = adapter_config::read(config_json)?;
        let layout = Layout::new(model, &config)?;
        let tensors = SafeTensors::deserialize(safetensors)?;
        let mut values = vec![0.0; layout.n_values()];
        for tensor in layout.tensors() {
            read_tensor(&tensors, tensor, &mut values[tensor.place.clone()])?;
        }
        let known: HashSet<&str> = layout.tensors().iter().map(|t| &*t.name).collect();
        match tensors
            .names()
            .into_iter()
            .find(|name| !known.contains(*name))
        {
            Some(name) => Err(AdapterError::UnexpectedTensor {
                name: name.to_owned(),
            }),
            None => Ok(Self::from_parts(config, Arc::new(layout), values)),
        }
    }
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

fn read_tensor(
    tensors: &SafeTensors<'_>,
    Tensor { name, shape, .. }: &Tensor,
    out: &mut [f32],
) -> Result<(), AdapterError> {
    let missing = |_| AdapterError::MissingTensor { name: name.clone() };
    let view = tensors.tensor(name).map_err(missing)?;
    if view.shape() != shape || !matches!(view.dtype(), Dtype::F32 | Dtype::BF16 | Dtype::F16) {
        return Err(AdapterError::WrongTensor {
            name: name.clone(),
            found: format!("{:?} {:?}", view.dtype(), view.shape()),
            expected: format!("F32, BF16 or F16 {shape:?}"),
        });
    }
    widen(view.dtype(), view.data(), out);
    match out.iter().find(|x| !x.is_finite()) {
        Some(x) => Err(AdapterError::WrongTensor {
            name: name.clone(),
            found: format!("not finite ({x})"),
            expected: "finite".to_owned(),
        }),
        None => Ok(()),
    }
}
