//! Owns the bytes of a GGUF file: its head, and the elements of tensors. Source: GGUF version 3.

use half::{bf16, f16};

use super::{ALIGNMENT, FileType, Metadata, Tensor, Value};
use crate::export::source::BaseTensor;
use crate::quant::encode_q8_0;

/// Values of a q8_0 block.
const BLOCK: usize = 32;

/// How a tensor's elements are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    F16,
    Bf16,
    Q8_0,
}

impl Kind {
    /// llama.cpp wants vectors and routers in f32.
    pub fn of(file_type: FileType, tensor: &BaseTensor, name: &str) -> Self {
        if tensor.shape().len() < 2 || name.contains("ffn_gate_inp") {
            return Kind::F32;
        }
        match file_type {
            FileType::F32 => Kind::F32,
            FileType::F16 => Kind::F16,
            FileType::Bf16 => Kind::Bf16,
            FileType::Q8_0 if tensor.width().is_multiple_of(BLOCK) => Kind::Q8_0,
            FileType::Q8_0 => Kind::F16,
        }
    }

    /// ggml's number of the type.
    fn number(self) -> u32 {
        match self {
            Kind::F32 => 0,
            Kind::F16 => 1,
            Kind::Q8_0 => 8,
            Kind::Bf16 => 30,
        }
    }

    /// Bytes of `n` values; for q8_0 of whole blocks.
    pub fn n_bytes(self, n: usize) -> usize {
        match self {
            Kind::F32 => 4 * n,
            Kind::F16 | Kind::Bf16 => 2 * n,
            Kind::Q8_0 => n / BLOCK * (BLOCK + 2),
        }
    }

    /// The elements of a row.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.n_bytes(values.len()));
        match self {
            Kind::F32 => bytes.extend(values.iter().flat_map(|x| x.to_le_bytes())),
            Kind::F16 => bytes.extend(values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes())),
            Kind::Bf16 => {
                bytes.extend(values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()));
            }
            Kind::Q8_0 => {
                let (blocks, _) = values.as_chunks::<BLOCK>();
                blocks
                    .iter()
                    .for_each(|block| encode_q8_0(block, &mut bytes));
            }
        }
        bytes
    }
}

/// Everything before the first tensor, padded.
pub(super) fn head(metadata: &Metadata, tensors: &[Tensor]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(key, &mut bytes);
        bytes.extend(value_number(value).to_le_bytes());
        write_value(value, &mut bytes);
    }
    let mut offset = 0;
    for tensor in tensors {
        text(&tensor.name, &mut bytes);
        bytes.extend((tensor.dims.len() as u32).to_le_bytes());
        for &dim in &tensor.dims {
            bytes.extend((dim as u64).to_le_bytes());
        }
        bytes.extend(tensor.kind.number().to_le_bytes());
        bytes.extend((offset as u64).to_le_bytes());
        offset += tensor.padded_bytes();
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}

fn text(text: &str, bytes: &mut Vec<u8>) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// GGUF's number of a value's type.
fn value_number(value: &Value) -> u32 {
    match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    }
}

fn write_value(value: &Value, bytes: &mut Vec<u8>) {
    match value {
        Value::U8(x) => bytes.push(*x),
        Value::I8(x) => bytes.extend(x.to_le_bytes()),
        Value::U16(x) => bytes.extend(x.to_le_bytes()),
        Value::I16(x) => bytes.extend(x.to_le_bytes()),
        Value::U32(x) => bytes.extend(x.to_le_bytes()),
        Value::I32(x) => bytes.extend(x.to_le_bytes()),
        Value::F32(x) => bytes.extend(x.to_le_bytes()),
        Value::U64(x) => bytes.extend(x.to_le_bytes()),
        Value::I64(x) => bytes.extend(x.to_le_bytes()),
        Value::F64(x) => bytes.extend(x.to_le_bytes()),
        Value::Bool(x) => bytes.push(u8::from(*x)),
        Value::String(x) => text(x, bytes),
        Value::Array(values) => {
            // An empty array has a type too: any.
            let number = values.first().map_or(8, value_number);
            bytes.extend(number.to_le_bytes());
            bytes.extend((values.len() as u64).to_le_bytes());
            for value in values {
                write_value(value, bytes);
            }
        }
    }
}
