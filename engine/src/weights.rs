//! Owns a base model's weights in memory, read from a Hugging Face folder; knows no adapter.

mod layers;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::bf16;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::config::{ConfigError, ModelConfig};
use crate::cpu::buffer::OutOfMemory;
use crate::cpu::gemm::{PANEL, Panels, Weight};
use crate::cpu::pool::Pool;
use crate::nn::rope::Ropes;
use crate::quant::{Kind, QuantError, Quantized};
pub(crate) use layers::{Dense, Experts, Layer, Mlp};

/// Why a model folder cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{path:?} cannot be read: {source}")]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path:?} is not valid: {reason}")]
    Malformed { path: PathBuf, reason: String },
    #[error("tensor {name} is missing")]
    MissingTensor { name: String },
    #[error("tensor {name} has shape {found:?}, not {expected:?}")]
    WrongShape {
        name: String,
        found: Vec<usize>,
        expected: Vec<usize>,
    },
    #[error("tensor {name} is {found:?}; F32, BF16 and F16 can be read")]
    WrongDtype { name: String, found: Dtype },
    #[error("tensor {name}: {source}")]
    Quantize { name: String, source: QuantError },
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// How the frozen linears of the blocks are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BaseWeights {
    /// bf16 as bf16, all else as f32: exactly what the files say.
    #[default]
    AsStored,
    /// As bf16, whatever the files say.
    Bf16,
    /// In few bits; each product unpacks what it multiplies with. Training on such a base is QLoRA (arXiv:2305.14314).
    Quantized(Kind),
}

/// A frozen model: one copy serves training and generation.
pub struct BaseModel {
    config: ModelConfig,
    n_parameters: u64,
    /// (V, D)
    pub(crate) embed_tokens: Weight,
    pub(crate) layers: Vec<Layer>,
    /// (D)
    pub(crate) norm: Vec<f32>,
    /// (V, D); `None` where it is `embed_tokens`.
    lm_head: Option<Weight>,
    pub(crate) ropes: Ropes,
}

/// A frozen linear: y = x·Wᵀ + bias, W (N, K).
pub(crate) struct Linear {
    pub weight: Weight,
    /// (N), and zeros up to whole panels.
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    fn n_parameters(&self) -> usize {
        self.weight.n_values() + self.bias.as_ref().map_or(0, |_| self.weight.n_out())
    }
}

impl BaseModel {
    /// Reads `config.json` and `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    /// Errors: as [`LoadError`] says; nothing is kept.
    pub fn load(dir: &Path, pool: &Pool) -> Result<Self, LoadError> {
        Self::load_as(dir, BaseWeights::AsStored, pool)
    }

    /// As [`Self::load`], with the linears of the blocks kept as `weights` says; embeddings, norms and head stay as they are.
    /// Errors: as [`LoadError`] says; nothing is kept.
    pub fn load_as(dir: &Path, weights: BaseWeights, pool: &Pool) -> Result<Self, LoadError> {
        let config = ModelConfig::from_dir(dir)?;
        let files = map_files(dir)?;
        let tensors = Tensors::parse(&files)?;
        Self::from_tensors(config, &tensors, weights, pool)
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The number of distinct parameters: a tied head is not counted twice.
    pub fn n_parameters(&self) -> u64 {
        self.n_parameters
    }

    pub(crate) fn head(&self) -> &Weight {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    fn from_tensors(
        config: ModelConfig,
        tensors: &Tensors<'_>,
        weights: BaseWeights,
        pool: &Pool,
    ) -> Result<Self, LoadError> {
        let reader = Reader {
            tensors,
            weights,
            pool,
        };
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let embed_tokens =
            reader.matrix(&[("model.embed_tokens.weight".to_owned(), vocab)], hidden)?;
        let layers = (0..config.num_hidden_layers)
            .map(|i| reader.layer(&config, i))
            .collect::<Result<Vec<_>, _>>()?;
        let norm = reader.norm(&config, "model.norm.weight", hidden)?;
        let lm_head = if config.tie_word_embeddings {
            None
        } else {
            Some(reader.matrix(&[("lm_head.weight".to_owned(), vocab)], hidden)?)
        };
        let mut n_parameters = (embed_tokens.n_values() + norm.len()) as u64;
        n_parameters += layers.iter().map(Layer::n_parameters).sum::<u64>();
        n_parameters += lm_head.as_ref().map_or(0, |head| head.n_values() as u64);
        let ropes = Ropes::new(&config);
        Ok(Self {
            config,
            n_parameters,
            embed_tokens,
            layers,
            norm,
            lm_head,
            ropes,
        })
    }
}

/// Reads named tensors into the engine's layout.
struct Reader<'a> {
    tensors: &'a Tensors<'a>,
    weights: BaseWeights,
    pool: &'a Pool,
}

impl Reader<'_> {
    /// Linears with a common input as one; a bias is there if any of them has one.
    fn linear(&self, modules: &[(String, usize)], depth: usize) -> Result<Linear, LoadError> {
        let weights: Vec<_> = modules
            .iter()
            .map(|(name, n)| (format!("{name}.weight"), *n))
            .collect();
        let weight = match self.weights {
            BaseWeights::AsStored => self.matrix(&weights, depth)?,
            BaseWeights::Bf16 => self.rounded(&weights, depth)?,
            BaseWeights::Quantized(kind) => self.quantized(&weights, depth, kind)?,
        };
        let mut bias = None;
        let mut first = 0;
        for (name, n) in modules {
            let name = format!("{name}.bias");
            if self.tensors.by_name.contains_key(&name) {
                let n_padded = weight.n_out().next_multiple_of(PANEL);
                let bias = bias.get_or_insert_with(|| vec![0.0; n_padded]);
                bias[first..first + n].copy_from_slice(&self.vector(&name, *n)?);
            }
            first += n;
        }
        Ok(Linear { weight, bias })
    }

    /// Matrices (n, depth) below each other: bf16 stays as it is, all else is widened to f32.
    fn matrix(&self, parts: &[(String, usize)], depth: usize) -> Result<Weight, LoadError> {
        let mut rows: Vec<&[u8]> = Vec::new();
        let mut dtype = Dtype::F32;
        for (name, n) in parts {
            let view = self.tensors.get(name, &[*n, depth])?;
            if !rows.is_empty() && view.dtype() != dtype {
                return Err(LoadError::WrongDtype {
                    name: name.clone(),
                    found: view.dtype(),
                });
            }
            dtype = view.dtype();
            rows.extend(view.data().chunks_exact(view.data().len() / n));
        }
        // Rows of pairs begin at whole words only where the depth is even.
        if dtype == Dtype::BF16 && depth.is_multiple_of(2) {
            let panels = Panels::from_weight_rows(self.pool, rows.len(), depth, |n, row| {
                for (to, from) in row.iter_mut().zip(rows[n].as_chunks::<2>().0) {
                    *to = bf16::from_le_bytes(*from);
                }
            })?;
            return Ok(Weight::Bf16(panels));
        }
        let panels = Panels::from_weight_rows(self.pool, rows.len(), depth, |n, row| {
            widen(dtype, rows[n], row)
        })?;
        Ok(Weight::F32(panels))
    }

    /// As [`Self::matrix`], rounded to bf16.
    fn rounded(&self, parts: &[(String, usize)], depth: usize) -> Result<Weight, LoadError> {
        let mut rows: Vec<(Dtype, &[u8])> = Vec::new();
        for (name, n) in parts {
            let view = self.tensors.get(name, &[*n, depth])?;
            let row = view.data().chunks_exact(view.data().len() / n);
            rows.extend(row.map(|bytes| (view.dtype(), bytes)));
        }
        let read = |n: usize, row: &mut [f32]| widen(rows[n].0, rows[n].1, row);
        // Rows of pairs begin at whole words only where the depth is even.
        if depth.is_multiple_of(2) {
            let panels = Panels::from_weight_rows(self.pool, rows.len(), depth, |n, row| {
                let mut values = vec![0.0; depth];
                read(n, &mut values);
                for (to, from) in row.iter_mut().zip(values) {
                    *to = bf16::from_f32(from);
                }
            })?;
            return Ok(Weight::Bf16(panels));
        }
        let panels = Panels::from_weight_rows(self.pool, rows.len(), depth, |n, row| {
            read(n, row);
            row.iter_mut()
                .for_each(|x| *x = bf16::from_f32(*x).to_f32());
        })?;
        Ok(Weight::F32(panels))
    }

    /// As [`Self::matrix`], each matrix quantised by itself.
    fn quantized(
        &self,
        parts: &[(String, usize)],
        depth: usize,
        kind: Kind,
    ) -> Result<Weight, LoadError> {
        let quantize = |(name, n): &(String, usize)| {
            let view = self.tensors.get(name, &[*n, depth])?;
            let mut values = vec![0.0; n * depth];
            widen(view.dtype(), view.data(), &mut values);
            Quantized::quantize(kind, *n, depth, &values).map_err(|source| LoadError::Quantize {
                name: name.clone(),
                source,
            })
        };
        let parts = parts.iter().map(quantize).collect::<Result<_, _>>()?;
        Ok(Weight::Quantized(parts))
    }

    fn vector(&self, name: &str, n: usize) -> Result<Vec<f32>, LoadError> {
        let view = self.tensors.get(name, &[n])?;
        let mut values = vec![0.0; n];
        widen(view.dtype(), view.data(), &mut values);
        Ok(values)
    }
}

/// Every tensor of every file, by name.
struct Tensors<'a> {
    by_name: HashMap<String, TensorView<'a>>,
}

impl<'a> Tensors<'a> {
    fn parse(files: &'a [(PathBuf, Mmap)]) -> Result<Self, LoadError> {
        let mut by_name = HashMap::new();
        for (path, bytes) in files {
            let malformed = |error: safetensors::SafeTensorError| LoadError::Malformed {
                path: path.clone(),
                reason: error.to_string(),
            };
            by_name.extend(
                SafeTensors::deserialize(bytes)
                    .map_err(malformed)?
                    .tensors(),
            );
        }
        Ok(Self { by_name })
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<&TensorView<'a>, LoadError> {
        let view = self
            .by_name
            .get(name)
            .ok_or_else(|| LoadError::MissingTensor {
                name: name.to_owned(),
            })?;
        if view.shape() != shape {
            let (found, expected) = (view.shape().to_vec(), shape.to_vec());
            return Err(LoadError::WrongShape {
                name: name.to_owned(),
                found,
                expected,
            });
        }
        if !matches!(view.dtype(), Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            return Err(LoadError::WrongDtype {
                name: name.to_owned(),
                found: view.dtype(),
            });
        }
        Ok(view)
    }
}

/// Little-endian numbers of a dtype that `Tensors::get` let pass → f32, exactly.
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
        other => unreachable!("{other:?} was refused when the tensor was looked up"),
    }
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// Whether every matrix in the model's files is bf16, so that [`BaseWeights::Bf16`] is what is stored.
/// Errors: files that are missing or malformed.
pub fn is_stored_in_bf16(dir: &Path) -> Result<bool, LoadError> {
    let files = map_files(dir)?;
    let tensors = Tensors::parse(&files)?;
    let mut matrices = tensors.by_name.values().filter(|t| t.shape().len() > 1);
    Ok(matrices.all(|matrix| matrix.dtype() == Dtype::BF16))
}

/// Every file of weights in a model's folder, mapped.
pub(crate) fn map_files(dir: &Path) -> Result<Vec<(PathBuf, Mmap)>, LoadError> {
    let index_path = dir.join("model.safetensors.index.json");
    let names = match std::fs::read_to_string(&index_path) {
        Ok(text) => shard_names(&index_path, &text)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            vec!["model.safetensors".to_owned()]
        }
        Err(source) => {
            return Err(LoadError::Unreadable {
                path: index_path,
                source,
            });
        }
    };
    names.iter().map(|name| map_file(dir.join(name))).collect()
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

fn map_file(path: PathBuf) -> Result<(PathBuf, Mmap), LoadError> {
    // SAFETY: the map is private and read once, here; the service never writes into an installed base's files.
    match File::open(&path).and_then(|file| unsafe { Mmap::map(&file) }) {
        Ok(map) => Ok((path, map)),
        Err(source) => Err(LoadError::Unreadable { path, source }),
    }
}
