//! Owns the merged model: a Hugging Face folder whose weights hold the adapter, in the base's own dtypes; the blocks of a
//! GGUF file become bf16.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Map, json};

use super::ExportError;
use super::source::{BaseTensor, Source};
use crate::config::ModelConfig;
use crate::lora::Adapter;

/// No shard holds more tensor bytes than this, unless a single tensor does; as transformers cuts. Bytes.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// What is copied from the base's folder, where it is there.
const COPIED: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
];

/// A base with its adapter merged in: W + s·B·A in f32, rounded once to the base's dtype. Nothing is computed before it
/// is written.
pub struct Merged {
    source: Source,
    files: Vec<File>,
}

struct File {
    name: String,
    size_bytes: u64,
    content: Content,
}

enum Content {
    Bytes(Vec<u8>),
    /// A safetensors file: its head, and the tensors by their place in the source.
    Shard {
        head: Vec<u8>,
        tensors: Vec<usize>,
    },
}

impl Merged {
    /// Reads what is needed to know names and sizes. Without an adapter the folder is the base's own.
    /// Errors: the folder cannot be read, or the adapter changes what it does not have.
    pub fn new(
        dir: &Path,
        adapter: Option<Arc<Adapter>>,
        max_shard_bytes: u64,
    ) -> Result<Self, ExportError> {
        let tied = ModelConfig::from_dir(dir)
            .map_err(crate::weights::LoadError::from)?
            .tie_word_embeddings;
        let source = Source::open(dir, adapter, tied)?;
        let mut files = Vec::new();
        for name in COPIED {
            let path = dir.join(name);
            match std::fs::read(&path) {
                Ok(bytes) if name == "config.json" && source.is_untied() => {
                    files.push(File::of_bytes(name.to_owned(), untied(&bytes)?));
                }
                Ok(bytes) => files.push(File::of_bytes(name.to_owned(), bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(ExportError::Unreadable { path, source }),
            }
        }
        let shards = cut(source.tensors(), max_shard_bytes);
        files.extend(shard_files(source.tensors(), shards));
        Ok(Self { source, files })
    }

    /// Name and size in bytes of each file, in the order of their numbers.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files
            .iter()
            .map(|file| (file.name.as_str(), file.size_bytes))
    }

    /// Writes file number `file`, computing as it goes; holds no more than a row of a weight.
    /// Errors: those of `out`.
    pub fn write(&self, file: usize, out: &mut dyn Write) -> io::Result<()> {
        match &self.files[file].content {
            Content::Bytes(bytes) => out.write_all(bytes),
            Content::Shard { head, tensors } => {
                out.write_all(head)?;
                for &tensor in tensors {
                    self.write_tensor(&self.source.tensors()[tensor], out)?;
                }
                Ok(())
            }
        }
    }

    /// Writes every file into `out_dir`, which is made if it is not there.
    /// Errors: those of the files, which may then be there in part.
    pub fn write_all(&self, out_dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(out_dir)?;
        for (i, (name, _)) in self.files().enumerate() {
            let mut out = BufWriter::new(fs::File::create(out_dir.join(name))?);
            self.write(i, &mut out)?;
            out.into_inner()?.sync_all()?;
        }
        Ok(())
    }

    fn write_tensor(&self, tensor: &BaseTensor, out: &mut dyn Write) -> io::Result<()> {
        if tensor.is_as_stored() {
            return out.write_all(self.source.bytes(tensor));
        }
        let mut row = vec![0.0; tensor.width()];
        let mut bytes = Vec::with_capacity(4 * row.len());
        for i in 0..tensor.n_rows() {
            self.source.row(tensor, i, &mut row);
            bytes.clear();
            narrow(tensor.dtype(), &row, &mut bytes);
            out.write_all(&bytes)?;
        }
        Ok(())
    }
}

impl File {
    fn of_bytes(name: String, bytes: Vec<u8>) -> Self {
        Self {
            name,
            size_bytes: bytes.len() as u64,
            content: Content::Bytes(bytes),
        }
    }
}

/// A `config.json` of a model whose head is a tensor of its own.
fn untied(config: &[u8]) -> Result<Vec<u8>, ExportError> {
    let mut config: serde_json::Value = serde_json::from_slice(config)?;
    config["tie_word_embeddings"] = json!(false);
    Ok(format!("{config:#}\n").into_bytes())
}

/// The tensors of each shard. Within one, wider dtypes come first, so that every tensor is aligned.
fn cut(tensors: &[BaseTensor], max_bytes: u64) -> Vec<Vec<usize>> {
    let mut shards: Vec<Vec<usize>> = Vec::new();
    let mut n_bytes = 0;
    for (i, tensor) in tensors.iter().enumerate() {
        let size = tensor.size_bytes() as u64;
        match shards.last_mut() {
            Some(shard) if n_bytes + size <= max_bytes => {
                shard.push(i);
                n_bytes += size;
            }
            _ => {
                shards.push(vec![i]);
                n_bytes = size;
            }
        }
    }
    for shard in &mut shards {
        shard.sort_by_key(|&i| std::cmp::Reverse(tensors[i].dtype().bitsize()));
    }
    shards
}

/// The shards under transformers' names; the index where there are several.
fn shard_files(tensors: &[BaseTensor], shards: Vec<Vec<usize>>) -> Vec<File> {
    let n = shards.len();
    let (mut weight_map, mut total_size) = (Map::new(), 0);
    let mut files = Vec::new();
    for (k, shard) in shards.into_iter().enumerate() {
        let name = match n {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{n:05}.safetensors", k + 1),
        };
        let head = head(shard.iter().map(|&i| &tensors[i]));
        let size: usize = shard.iter().map(|&i| tensors[i].size_bytes()).sum();
        for &i in &shard {
            weight_map.insert(tensors[i].name().to_owned(), json!(name));
        }
        total_size += size as u64;
        files.push(File {
            name,
            size_bytes: (head.len() + size) as u64,
            content: Content::Shard {
                head,
                tensors: shard,
            },
        });
    }
    if n > 1 {
        let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
        let name = "model.safetensors.index.json".to_owned();
        files.push(File::of_bytes(name, format!("{index:#}\n").into_bytes()));
    }
    files
}

/// The head of a safetensors file: its length, then names, shapes and places, padded to eight bytes.
fn head<'a>(tensors: impl Iterator<Item = &'a BaseTensor>) -> Vec<u8> {
    let mut entries = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += tensor.size_bytes();
        let entry =
            json!({"dtype": tensor.dtype(), "shape": tensor.shape(), "data_offsets": [start, end]});
        entries.insert(tensor.name().to_owned(), entry);
    }
    let mut text = serde_json::to_vec(&entries).expect("a JSON value can be written");
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    bytes
}

/// f32 → little-endian numbers of a dtype that [`Source::row`] reads, rounded to nearest even.
pub(super) fn narrow(dtype: Dtype, values: &[f32], bytes: &mut Vec<u8>) {
    match dtype {
        Dtype::BF16 => {
            bytes.extend(values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()));
        }
        Dtype::F16 => bytes.extend(values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes())),
        _ => bytes.extend(values.iter().flat_map(|x| x.to_le_bytes())),
    }
}
