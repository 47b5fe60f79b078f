//! Owns a base model's weights in memory, read from a Hugging Face folder; knows no adapter.

mod layers;

use std::path::{Path, PathBuf};

use half::bf16;
use safetensors::Dtype;

use crate::config::{ConfigError, ModelConfig};
use crate::cpu::buffer::OutOfMemory;
use crate::cpu::element::Precision;
use crate::cpu::gemm::{PANEL, Panels, Weight};
use crate::cpu::pool::Pool;
use crate::gguf::GgufError;
use crate::nn::rope::Ropes;
use crate::quant::{Kind, QuantError, Quantized};
use crate::stored::{Encoding, Files, Stored};
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
    #[error(transparent)]
    Gguf(#[from] GgufError),
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

const BF16: Encoding = Encoding::Numbers(Dtype::BF16);

/// How the frozen linears of the blocks are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BaseWeights {
    /// bf16 as bf16, the blocks of a GGUF file as they are, all else as f32: exactly what the files say.
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

    fn n_bytes(&self) -> usize {
        let bias = self.bias.as_deref().map_or(0, size_of_val);
        self.weight.n_bytes() + bias
    }
}

impl BaseModel {
    /// Reads `config.json` and `model.safetensors`, or the shards that `model.safetensors.index.json` names, or `model.gguf`.
    /// Errors: as [`LoadError`] says; nothing is kept.
    pub fn load(dir: &Path, pool: &Pool) -> Result<Self, LoadError> {
        Self::load_as(dir, BaseWeights::AsStored, pool)
    }

    /// As [`Self::load`], with the linears of the blocks kept as `weights` says; embeddings, norms and head stay as they are.
    /// Errors: as [`LoadError`] says; nothing is kept.
    pub fn load_as(dir: &Path, weights: BaseWeights, pool: &Pool) -> Result<Self, LoadError> {
        let config = ModelConfig::from_dir(dir)?;
        Self::from_files(config, &Files::open(dir)?, weights, pool)
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The number of distinct parameters: a tied head is not counted twice.
    pub fn n_parameters(&self) -> u64 {
        self.n_parameters
    }

    /// What the weights take of memory. Bytes.
    pub fn size_bytes(&self) -> u64 {
        let head = self.lm_head.as_ref().map_or(0, Weight::n_bytes);
        let outside = self.embed_tokens.n_bytes() + head + size_of_val(&self.norm[..]);
        let layers = self.layers.iter().map(Layer::n_bytes);
        (outside + layers.sum::<usize>()) as u64
    }

    /// What to generate in: bf16 where the weights are bf16 and the processor multiplies it, else f32, which every processor has.
    pub fn generation_precision(&self) -> Precision {
        let weights = self.layers.iter().map(|layer| &layer.qkv.weight);
        let mut weights = weights.chain([self.head()]);
        if weights.all(|weight| matches!(weight, Weight::Bf16(_))) {
            Precision::of_bf16_weights()
        } else {
            Precision::Fp32
        }
    }

    pub(crate) fn head(&self) -> &Weight {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    fn from_files(
        config: ModelConfig,
        files: &Files,
        weights: BaseWeights,
        pool: &Pool,
    ) -> Result<Self, LoadError> {
        let reader = Reader {
            files,
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
    files: &'a Files,
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
            BaseWeights::Bf16 => self.rounded(&self.parts(&weights, depth)?, depth)?,
            BaseWeights::Quantized(kind) => self.quantized(&weights, depth, kind)?,
        };
        let mut bias = None;
        let mut first = 0;
        for (name, n) in modules {
            let name = format!("{name}.bias");
            if self.files.find(&name).is_some() {
                let n_padded = weight.n_out().next_multiple_of(PANEL);
                let bias = bias.get_or_insert_with(|| vec![0.0; n_padded]);
                bias[first..first + n].copy_from_slice(&self.vector(&name, *n)?);
            }
            first += n;
        }
        Ok(Linear { weight, bias })
    }

    /// Matrices (n, depth) below each other: bf16 and blocks stay as they are, all else is widened to f32.
    fn matrix(&self, parts: &[(String, usize)], depth: usize) -> Result<Weight, LoadError> {
        let parts = self.parts(parts, depth)?;
        if parts.iter().all(|part| part.encoding == BF16) {
            return self.rounded(&parts, depth);
        }
        let blocks = parts.iter().map(|part| self.files.quantized(part));
        let blocks: Vec<Option<Quantized>> = blocks.collect::<Result<_, _>>()?;
        match blocks.into_iter().collect() {
            Some(blocks) => Ok(Weight::Quantized(blocks)),
            None => self.widened(&parts, depth),
        }
    }

    /// Matrices below each other, in f32.
    fn widened(&self, parts: &[&Stored], depth: usize) -> Result<Weight, LoadError> {
        let rows = rows(parts);
        let panels = Panels::from_weight_rows(self.pool, rows.len(), depth, |n, row| {
            self.files.read(rows[n].0, rows[n].1, row);
        })?;
        Ok(Weight::F32(panels))
    }

    /// Matrices below each other, rounded to bf16.
    fn rounded(&self, parts: &[&Stored], depth: usize) -> Result<Weight, LoadError> {
        let rows = rows(parts);
        let read = |n: usize, row: &mut [f32]| self.files.read(rows[n].0, rows[n].1, row);
        // Rows of pairs begin at whole words only where the depth is even.
        if depth.is_multiple_of(2) {
            let panels = Panels::from_weight_rows(self.pool, rows.len(), depth, |n, row| {
                let (part, i) = rows[n];
                if part.encoding == BF16 {
                    let bytes = self.files.row_bytes(part, i).as_chunks::<2>().0;
                    let pairs = row.iter_mut().zip(bytes);
                    return pairs.for_each(|(to, from)| *to = bf16::from_le_bytes(*from));
                }
                let mut values = vec![0.0; depth];
                read(n, &mut values);
                let pairs = row.iter_mut().zip(values);
                pairs.for_each(|(to, from)| *to = bf16::from_f32(from));
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
        let quantize = |part: &&Stored| {
            let values = self.files.values(part);
            let matrix = Quantized::quantize(kind, part.n_rows(), depth, &values);
            matrix.map_err(|source| LoadError::Quantize {
                name: part.name.clone(),
                source,
            })
        };
        let parts = self.parts(parts, depth)?;
        let parts = parts.iter().map(quantize).collect::<Result<_, _>>()?;
        Ok(Weight::Quantized(parts))
    }

    fn vector(&self, name: &str, n: usize) -> Result<Vec<f32>, LoadError> {
        Ok(self.files.values(self.find(name, &[n])?))
    }

    fn parts(&self, parts: &[(String, usize)], depth: usize) -> Result<Vec<&Stored>, LoadError> {
        let find = |(name, n): &(String, usize)| self.find(name, &[*n, depth]);
        parts.iter().map(find).collect()
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<&Stored, LoadError> {
        self.files.tensor(name, shape)
    }
}

/// The rows of matrices below each other.
fn rows<'a>(parts: &[&'a Stored]) -> Vec<(&'a Stored, usize)> {
    let of = |part: &&'a Stored| {
        let part = *part;
        (0..part.n_rows()).map(move |i| (part, i))
    };
    parts.iter().flat_map(of).collect()
}

/// What [`BaseModel::load_as`] will hold in memory, by what the files say of their tensors alone; from above, as each matrix is filled up to whole
/// panels by itself. Bytes.
/// Errors: files that are missing or malformed.
pub fn size_bytes(dir: &Path, weights: BaseWeights) -> Result<u64, LoadError> {
    let config = ModelConfig::from_dir(dir)?;
    let files = Files::open(dir)?;
    let is_loaded = |stored: &&Stored| match stored.name.as_str() {
        "lm_head.weight" => !config.tie_word_embeddings,
        name => name.starts_with("model."),
    };
    let tensors = files.tensors().iter().filter(is_loaded);
    let bytes = tensors.map(|stored| bytes_as(stored, weights));
    Ok(bytes.sum::<usize>() as u64)
}

/// What a tensor takes in memory. Bytes.
fn bytes_as(stored: &Stored, weights: BaseWeights) -> usize {
    let (rows, columns) = (stored.n_rows(), stored.width());
    if stored.shape.len() < 2 {
        return size_of::<f32>() * columns.next_multiple_of(PANEL);
    }
    // A router is no linear of a block, see `Experts`.
    let is_linear =
        stored.name.starts_with("model.layers.") && !stored.name.ends_with(".gate.weight");
    let weights = if is_linear {
        weights
    } else {
        BaseWeights::AsStored
    };
    let is_bf16 = weights == BaseWeights::Bf16 || stored.encoding == BF16;
    match (weights, stored.encoding) {
        (BaseWeights::Quantized(kind), _) => Quantized::bytes_of(kind, rows, columns),
        (BaseWeights::AsStored, Encoding::Blocks(kind)) => {
            Quantized::bytes_of(Kind::Ggml(kind), rows, columns)
        }
        _ if is_bf16 && columns.is_multiple_of(2) => Panels::<bf16>::bytes_of(rows, columns),
        _ => Panels::<f32>::bytes_of(rows, columns),
    }
}

/// Whether every matrix in the model's files is bf16, so that [`BaseWeights::Bf16`] is what is stored.
/// Errors: files that are missing or malformed.
pub fn is_stored_in_bf16(dir: &Path) -> Result<bool, LoadError> {
    let files = Files::open(dir)?;
    let mut matrices = files.tensors().iter().filter(|t| t.shape.len() > 1);
    Ok(matrices.all(|matrix| matrix.encoding == BF16))
}
