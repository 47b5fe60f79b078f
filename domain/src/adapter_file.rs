//! The two files of an adapter, as PEFT names them, and what can be said of one without knowing its base model:
//! that its weights are safetensors in a sober form. What the tensors must be called and how large they must be is
//! for whoever loads it onto a base.

use serde::Deserialize;
use serde_json::Value;

use crate::x_training::Pairs;

pub const CONFIG_FILE: &str = "adapter_config.json";
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// PEFT's own is about 1 KB; long module lists make it longer. Bytes.
pub const MAX_CONFIG_BYTES: u64 = 64 * 1024;
/// Room for [`MAX_TENSORS`] long names. Bytes.
pub const MAX_HEADER_BYTES: u64 = 1024 * 1024;
/// Seven linears with A and B in 128 layers make 1,792. The safetensors format itself allows any number, empty ones
/// too, which cost time and memory before a size is ever compared.
pub const MAX_TENSORS: usize = 4096;
/// The length of the header stands before it. Bytes.
pub const LENGTH_BYTES: usize = 8;

/// Why a file is not taken for an adapter's weights.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadWeights {
    #[error("it is no safetensors file: {0}")]
    Malformed(String),
    #[error("its header has {0} bytes, more than {MAX_HEADER_BYTES}")]
    HeaderTooLarge(u64),
    #[error("it has more than {MAX_TENSORS} tensors")]
    TooManyTensors,
    #[error("tensor {0} is there twice")]
    Duplicate(String),
    #[error("tensor {name} is {dtype}, not F32, BF16 or F16")]
    Dtype { name: String, dtype: String },
}

#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's size out of the first [`LENGTH_BYTES`] of a file. Bytes. Errors: `HeaderTooLarge`.
pub fn header_bytes(length: [u8; LENGTH_BYTES]) -> Result<u64, BadWeights> {
    match u64::from_le_bytes(length) {
        n if n > MAX_HEADER_BYTES => Err(BadWeights::HeaderTooLarge(n)),
        n => Ok(n),
    }
}

/// Judges a header; `data_bytes` follow it in the file. Tensors of floats, each once, that together are the whole data
/// without gap or overlap. Errors: as they are named.
pub fn check_header(header: &[u8], data_bytes: u64) -> Result<(), BadWeights> {
    let malformed = |reason: String| BadWeights::Malformed(reason);
    let entries: Pairs<Value> =
        serde_json::from_slice(header).map_err(|error| malformed(error.to_string()))?;
    if entries.0.len() > MAX_TENSORS {
        return Err(BadWeights::TooManyTensors);
    }
    let mut names = std::collections::HashSet::new();
    let mut places = Vec::new();
    for (name, entry) in entries.0 {
        if !names.insert(name.clone()) {
            return Err(BadWeights::Duplicate(name));
        }
        if name == "__metadata__" {
            continue;
        }
        let tensor: Tensor = serde_json::from_value(entry)
            .map_err(|error| malformed(format!("tensor {name}: {error}")))?;
        places.push(place(name, &tensor)?);
    }
    places.sort_unstable();
    let mut end = 0;
    for (from, to) in places {
        if from != end {
            return Err(malformed(format!(
                "a tensor begins at {from}, not at {end}"
            )));
        }
        end = to;
    }
    if end != data_bytes {
        let reason = format!("its tensors have {end} bytes, the file holds {data_bytes}");
        return Err(malformed(reason));
    }
    Ok(())
}

/// Where a tensor lies, which must be as long as its shape says. Bytes.
fn place(name: String, tensor: &Tensor) -> Result<(u64, u64), BadWeights> {
    let width = match tensor.dtype.as_str() {
        "F32" => 4,
        "BF16" | "F16" => 2,
        other => {
            let dtype = other.to_owned();
            return Err(BadWeights::Dtype { name, dtype });
        }
    };
    let (from, to) = tensor.data_offsets;
    let n_bytes = tensor
        .shape
        .iter()
        .try_fold(width, |n: u64, size| n.checked_mul(*size));
    if n_bytes.is_none_or(|n| n == 0 || from.checked_add(n) != Some(to)) {
        let reason = format!(
            "tensor {name} of shape {:?} lies at {from}..{to}",
            tensor.shape
        );
        return Err(BadWeights::Malformed(reason));
    }
    Ok((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &str, data_bytes: u64) -> Result<(), BadWeights> {
        check_header(header.as_bytes(), data_bytes)
    }

    #[test]
    fn tensors_that_fill_the_file_are_an_adapter_s_weights() {
        let header = r#"{"__metadata__": {"format": "pt"},
            "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
            "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}"#;
        assert_eq!(check(header, 22), Ok(()));
        assert!(matches!(check(header, 23), Err(BadWeights::Malformed(_))));
    }

    #[test]
    fn a_header_with_tricks_is_refused() {
        let one = |dtype: &str, shape: &str, from: u64, to: u64| {
            format!(
                r#"{{"a": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{from}, {to}]}}}}"#
            )
        };
        let twice = r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#;
        assert_eq!(check(twice, 8), Err(BadWeights::Duplicate("a".into())));
        let dtype = BadWeights::Dtype {
            name: "a".into(),
            dtype: "I8".into(),
        };
        assert_eq!(check(&one("I8", "[4]", 0, 4), 4), Err(dtype));
        for header in [
            one("F32", "[1]", 4, 8),
            one("F32", "[2]", 0, 4),
            one("F32", "[0]", 0, 0),
            one("F32", "[4611686018427387904, 4]", 0, 0),
            one("F32", "[1]", u64::MAX, 3),
            "{}x".to_owned(),
            "[]".to_owned(),
        ] {
            let refused = check(&header, 8);
            assert!(matches!(refused, Err(BadWeights::Malformed(_))), "{header}");
        }
        let overlap = r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#;
        assert!(matches!(check(overlap, 8), Err(BadWeights::Malformed(_))));
    }

    #[test]
    fn a_header_of_very_many_tensors_is_refused() {
        let entries: Vec<String> = (0..=MAX_TENSORS)
            .map(|i| format!(r#""{i}": {{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}"#))
            .collect();
        let header = format!("{{{}}}", entries.join(","));
        assert_eq!(check(&header, 0), Err(BadWeights::TooManyTensors));
        assert_eq!(
            header_bytes([0xff; LENGTH_BYTES]),
            Err(BadWeights::HeaderTooLarge(u64::MAX))
        );
        assert_eq!(header_bytes(4u64.to_le_bytes()), Ok(4));
    }
}
