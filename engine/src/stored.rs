//! Owns a base's tensors as its files hold them, numbers in safetensors or the blocks of a GGUF file, and gives their rows in
//! Hugging Face's order. Knows no layout of the engine.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use crate::gguf;
use crate::quant::{GgmlType, Quantized, with_room};
use crate::weights::LoadError;

/// The one GGUF file of a model's folder; read where the folder has no safetensors.
pub(crate) const GGUF_FILE: &str = "model.gguf";
const SAFETENSORS_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// How a tensor's values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Numbers(Dtype),
    Blocks(GgmlType),
}

/// A tensor in one of the files.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// Hugging Face's name.
    pub name: String,
    pub encoding: Encoding,
    pub shape: Vec<usize>,
    /// Attention heads, where the halves of each one's rows alternate: llama.cpp's order for rotary positions.
    pub n_interleaved: Option<usize>,
    pub file: usize,
    pub bytes: Range<usize>,
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

    /// Whether its values can be read as f32.
    pub fn is_float(&self) -> bool {
        match self.encoding {
            Encoding::Numbers(dtype) => matches!(dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16),
            Encoding::Blocks(_) => true,
        }
    }

    /// Where place `i` of Hugging Face's order lies in the file, counted along the first axis.
    fn place(&self, i: usize) -> usize {
        let Some(n_heads) = self.n_interleaved else {
            return i;
        };
        let head_dim = self.shape[0] / n_heads;
        let (head, i) = (i / head_dim, i % head_dim);
        let (half, j) = (i / (head_dim / 2), i % (head_dim / 2));
        head * head_dim + 2 * j + half
    }

    /// Bytes that `n` values take, beginning at a block.
    fn size_bytes(&self, n: usize) -> usize {
        match self.encoding {
            Encoding::Numbers(dtype) => n * dtype.bitsize() / 8,
            Encoding::Blocks(kind) => n / kind.block_len() * kind.block_bytes(),
        }
    }
}

/// Every tensor of a model's folder, mapped.
pub(crate) struct Files {
    maps: Vec<Mmap>,
    /// In the order of the files, and of the bytes within them.
    tensors: Vec<Stored>,
    by_name: HashMap<String, usize>,
}

impl Files {
    /// Opens `model.safetensors`, the shards that `model.safetensors.index.json` names, or `model.gguf`.
    /// Errors: `Unreadable`, `Malformed` and `Gguf`, for the file that it concerns.
    pub fn open(dir: &Path) -> Result<Self, LoadError> {
        let (mut maps, mut tensors) = (Vec::new(), Vec::new());
        for path in files(dir)? {
            let map = map_file(&path)?;
            tensors.extend(match path.extension() {
                Some(extension) if extension == "gguf" => gguf::tensors(&map, maps.len())?,
                _ => safetensors(&map, maps.len()).map_err(|error| LoadError::Malformed {
                    path,
                    reason: error.to_string(),
                })?,
            });
            maps.push(map);
        }
        let by_name = tensors
            .iter()
            .enumerate()
            .map(|(i, stored)| (stored.name.clone(), i));
        Ok(Self {
            by_name: by_name.collect(),
            maps,
            tensors,
        })
    }

    pub fn tensors(&self) -> &[Stored] {
        &self.tensors
    }

    pub fn find(&self, name: &str) -> Option<&Stored> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// A tensor of floats. Errors: `MissingTensor`, `WrongShape`, `WrongDtype`.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<&Stored, LoadError> {
        let name = || name.to_owned();
        let found = self.find(&name());
        let stored = found.ok_or_else(|| LoadError::MissingTensor { name: name() })?;
        if stored.shape != shape {
            return Err(LoadError::WrongShape {
                name: name(),
                found: stored.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        match stored.encoding {
            Encoding::Numbers(found) if !stored.is_float() => Err(LoadError::WrongDtype {
                name: name(),
                found,
            }),
            _ => Ok(stored),
        }
    }

    /// The tensor's bytes, in the file's own order.
    pub fn bytes(&self, stored: &Stored) -> &[u8] {
        &self.maps[stored.file][stored.bytes.clone()]
    }

    /// Row `i` of a matrix (rows, columns), as it is written.
    pub fn row_bytes(&self, stored: &Stored, i: usize) -> &[u8] {
        let size = stored.size_bytes(stored.width());
        &self.bytes(stored)[stored.place(i) * size..][..size]
    }

    /// The values from `i · out.len()` on, of a tensor of floats whose rows are as long as `out` or one number.
    pub fn read(&self, stored: &Stored, i: usize, out: &mut [f32]) {
        // A vector is one row, but its order is that of its numbers.
        if stored.shape.len() == 1 && stored.n_interleaved.is_some() {
            for (j, x) in (i * out.len()..).zip(out) {
                self.read_at(stored, stored.place(j), std::slice::from_mut(x));
            }
        } else {
            self.read_at(stored, stored.place(i), out);
        }
    }

    /// All values of a tensor of floats.
    pub fn values(&self, stored: &Stored) -> Vec<f32> {
        let mut values = vec![0.0; stored.shape.iter().product()];
        for (i, row) in values.chunks_exact_mut(stored.width().max(1)).enumerate() {
            self.read(stored, i, row);
        }
        values
    }

    fn read_at(&self, stored: &Stored, place: usize, out: &mut [f32]) {
        let size = stored.size_bytes(out.len());
        let bytes = &self.bytes(stored)[place * size..][..size];
        match stored.encoding {
            Encoding::Numbers(dtype) => widen(dtype, bytes, out),
            Encoding::Blocks(kind) => kind.dequantize(bytes, out),
        }
    }

    /// A matrix in the blocks it is stored in; `None` if it is stored as numbers.
    /// Errors: `Quantize` if no memory is left.
    pub fn quantized(&self, stored: &Stored) -> Result<Option<Quantized>, LoadError> {
        let Encoding::Blocks(kind) = stored.encoding else {
            return Ok(None);
        };
        let (rows, columns) = (stored.n_rows(), stored.width());
        let named = |source| LoadError::Quantize {
            name: stored.name.clone(),
            source,
        };
        let mut bytes = with_room(stored.bytes.len()).map_err(|error| named(error.into()))?;
        for i in 0..rows {
            bytes.extend_from_slice(self.row_bytes(stored, i));
        }
        let matrix = Quantized::from_ggml(kind, rows, columns, bytes);
        matrix.map(Some).map_err(named)
    }
}

/// Little-endian numbers of a dtype of floats → f32, exactly.
pub(crate) fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F32 => {
            for (to, from) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *to = f32::from_le_bytes(*from);
            }
        }
        Dtype::BF16 => {
            for (to, from) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *to = half::bf16::from_le_bytes(*from).to_f32();
            }
        }
        Dtype::F16 => {
            for (to, from) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *to = half::f16::from_le_bytes(*from).to_f32();
            }
        }
        other => unreachable!("{other:?} is no float — a bug in the caller"),
    }
}

fn safetensors(map: &[u8], file: usize) -> Result<Vec<Stored>, safetensors::SafeTensorError> {
    // Checks that shapes and places agree with the file's length.
    SafeTensors::deserialize(map)?;
    let (n_header, metadata) = SafeTensors::read_metadata(map)?;
    let start = 8 + n_header;
    let mut tensors: Vec<Stored> = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| Stored {
            encoding: Encoding::Numbers(info.dtype),
            shape: info.shape.clone(),
            n_interleaved: None,
            file,
            bytes: start + info.data_offsets.0..start + info.data_offsets.1,
            name,
        })
        .collect();
    tensors.sort_by_key(|tensor| (tensor.bytes.start, tensor.bytes.end));
    Ok(tensors)
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

fn files(dir: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let index_path = dir.join(INDEX_FILE);
    match std::fs::read_to_string(&index_path) {
        Ok(text) => {
            let names = shard_names(&index_path, &text)?;
            Ok(names.iter().map(|name| dir.join(name)).collect())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let (numbers, blocks) = (dir.join(SAFETENSORS_FILE), dir.join(GGUF_FILE));
            let is_gguf = !numbers.exists() && blocks.exists();
            Ok(vec![if is_gguf { blocks } else { numbers }])
        }
        Err(source) => Err(LoadError::Unreadable {
            path: index_path,
            source,
        }),
    }
}

fn shard_names(path: &Path, text: &str) -> Result<Vec<String>, LoadError> {
    let malformed = |reason: String| LoadError::Malformed {
        path: path.to_owned(),
        reason,
    };
    let index: Index = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    // A shard lies in the folder: a name with a path in it could point anywhere.
    match names
        .iter()
        .find(|name| Path::new(name).file_name() != Some(name.as_ref()))
    {
        Some(name) => Err(malformed(format!(
            "shard {name:?} is not a plain file name"
        ))),
        None => Ok(names),
    }
}

fn map_file(path: &Path) -> Result<Mmap, LoadError> {
    // SAFETY: the map is private, and the service never writes into an installed base's files.
    let mapped = File::open(path).and_then(|file| unsafe { Mmap::map(&file) });
    mapped.map_err(|source| LoadError::Unreadable {
        path: path.to_owned(),
        source,
    })
}
