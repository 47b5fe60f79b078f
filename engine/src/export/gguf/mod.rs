//! Owns the GGUF file of a model: llama.cpp's names, order of rows and element types.
//! Source: the GGUF specification, version 3, and what llama.cpp reads of each architecture.

mod encode;
mod family;
mod metadata;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

pub use candle_core::quantized::gguf_file::Value;

use self::encode::Kind;
use self::family::Family;
pub(super) use self::family::known_names;
use self::metadata::Config;
use super::ExportError;
use super::source::{BaseTensor, Source};
use crate::lora::Adapter;
use crate::weights::LoadError;

/// Keys and values of a GGUF file's head.
pub type Metadata = Vec<(String, Value)>;

/// Every tensor begins at a multiple of it. Bytes.
const ALIGNMENT: usize = 32;

/// How the weights are kept. Vectors, and the routers of experts, are f32 in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    F32,
    F16,
    Bf16,
    /// 8 bits in blocks of 32, with an f16 scale each; f16 where a row is no multiple of 32.
    Q8_0,
}

/// A model, and perhaps its adapter, as one GGUF file. Nothing is computed before it is written.
pub struct Gguf {
    source: Source,
    head: Vec<u8>,
    tensors: Vec<Tensor>,
    size_bytes: u64,
}

/// A tensor of the file.
struct Tensor {
    name: String,
    /// From the innermost axis out.
    dims: Vec<usize>,
    kind: Kind,
    content: Content,
}

enum Content {
    Values(Vec<f32>),
    /// The rows of these tensors of the source, one after the other: experts are stacked.
    Rows {
        parts: Vec<usize>,
        /// Of the rotary positions: see [`Family::is_interleaved`].
        n_heads: Option<usize>,
        offset: f32,
    },
}

impl Gguf {
    /// Reads what is needed to know names and sizes. `name` becomes `general.name`; `vocabulary` is the metadata of the
    /// tokenizer: without it, llama.cpp reads token ids alone.
    /// Errors: the folder cannot be read, or llama.cpp would not compute this model; by name.
    pub fn new(
        dir: &Path,
        adapter: Option<Arc<Adapter>>,
        file_type: FileType,
        name: &str,
        vocabulary: Metadata,
    ) -> Result<Self, ExportError> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ExportError::Unreadable { path, source })?;
        let config = Config::parse(&text)?;
        let family = config.family()?;
        let source = Source::open(dir, adapter, config.is_tied(family))?;
        config.check(family, source.is_untied())?;
        let mut metadata = config.metadata(family, file_type, name)?;
        metadata.extend(vocabulary);
        let mut tensors = tensors(&source, &config, family, file_type)?;
        tensors.extend(config.rope_factors()?.map(|factors| Tensor {
            name: "rope_freqs.weight".to_owned(),
            dims: vec![factors.len()],
            kind: Kind::F32,
            content: Content::Values(factors),
        }));
        let head = encode::head(&metadata, &tensors);
        let content: usize = tensors.iter().map(Tensor::padded_bytes).sum();
        Ok(Self {
            size_bytes: (head.len() + content) as u64,
            source,
            head,
            tensors,
        })
    }

    /// The size of the whole file. Bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Writes the file, computing as it goes; holds no more than a row of a weight.
    /// Errors: those of `out`.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.head)?;
        for tensor in &self.tensors {
            match &tensor.content {
                Content::Values(values) => out.write_all(&tensor.kind.encode(values))?,
                Content::Rows {
                    parts,
                    n_heads,
                    offset,
                } => {
                    for &part in parts {
                        let part = &self.source.tensors()[part];
                        self.write_rows(part, tensor.kind, *n_heads, *offset, out)?;
                    }
                }
            }
            out.write_all(&vec![0; tensor.padded_bytes() - tensor.n_bytes()])?;
        }
        Ok(())
    }

    fn write_rows(
        &self,
        from: &BaseTensor,
        kind: Kind,
        n_heads: Option<usize>,
        offset: f32,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        // A vector that is reordered has rows of one value.
        let n_rows = from.shape()[0].max(1);
        let (n_rows, width) = match n_heads {
            Some(_) => (n_rows, from.shape().iter().product::<usize>() / n_rows),
            None => (from.n_rows(), from.width()),
        };
        let mut row = vec![0.0; width];
        for i in 0..n_rows {
            let i = n_heads.map_or(i, |n_heads| interleaved(i, n_rows / n_heads));
            self.source.row(from, i, &mut row);
            row.iter_mut().for_each(|x| *x += offset);
            out.write_all(&kind.encode(&row))?;
        }
        Ok(())
    }
}

impl Tensor {
    fn n_bytes(&self) -> usize {
        self.kind.n_bytes(self.dims.iter().product())
    }

    fn padded_bytes(&self) -> usize {
        self.n_bytes().next_multiple_of(ALIGNMENT)
    }
}

/// The row of Hugging Face's order that stands at place `i` of llama.cpp's: the halves of each head alternate.
fn interleaved(i: usize, head_dim: usize) -> usize {
    let (head, i) = (i / head_dim, i % head_dim);
    head * head_dim + i % 2 * (head_dim / 2) + i / 2
}

/// Every tensor of the file, in the order of their names.
fn tensors(
    source: &Source,
    config: &Config,
    family: &Family,
    file_type: FileType,
) -> Result<Vec<Tensor>, ExportError> {
    let mut parts: BTreeMap<String, BTreeMap<Option<usize>, usize>> = BTreeMap::new();
    for (place, tensor) in source.tensors().iter().enumerate() {
        let Some(target) = family.target(tensor.name())? else {
            continue;
        };
        if !tensor.is_float() {
            let (name, found) = (tensor.name().to_owned(), tensor.dtype());
            return Err(LoadError::WrongDtype { name, found }.into());
        }
        parts
            .entry(target.name)
            .or_default()
            .insert(target.expert, place);
    }
    let tensor = |(name, parts)| Tensor::new(name, &parts, source, config, family, file_type);
    parts.into_iter().map(tensor).collect()
}

impl Tensor {
    fn new(
        name: String,
        parts: &BTreeMap<Option<usize>, usize>,
        source: &Source,
        config: &Config,
        family: &Family,
        file_type: FileType,
    ) -> Result<Self, ExportError> {
        let tensors = parts.values().map(|&place| &source.tensors()[place]);
        let first = tensors.clone().next().expect("a name comes with a part");
        let mut dims: Vec<usize> = first.shape().iter().rev().copied().collect();
        if parts.contains_key(&Some(0)) {
            dims.push(config.n_experts()?);
            let is_whole = parts.keys().copied().eq((0..config.n_experts()?).map(Some));
            if !is_whole || tensors.clone().any(|part| part.shape() != first.shape()) {
                return Err(ExportError::MissingTensor { name });
            }
        }
        let n_heads = match family.is_interleaved {
            true if first.name().contains("self_attn.q_proj.") => Some(config.n_heads()?),
            true if first.name().contains("self_attn.k_proj.") => Some(config.n_kv_heads()?),
            _ => None,
        };
        let is_norm = first.name().ends_with("norm.weight");
        Ok(Self {
            dims,
            kind: Kind::of(file_type, first, &name),
            content: Content::Rows {
                parts: parts.values().copied().collect(),
                n_heads,
                offset: if is_norm { family.norm_offset } else { 0.0 },
            },
            name,
        })
    }
}
