//! Owns matrices of a GGUF file in the blocks they are stored in.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo};

use super::{GgufError, Source};
use crate::quant::{GgmlType, QuantError, Quantized, with_room};

/// An open GGUF file, for its matrices one at a time.
pub struct GgufFile {
    path: PathBuf,
    reader: BufReader<File>,
    content: Content,
    /// Hugging Face's names, and those in the file.
    names: BTreeMap<String, String>,
}

impl GgufFile {
    /// Reads what the file says of its tensors, not yet the tensors.
    /// Errors: as [`GgufError`] says.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let file = File::open(path).map_err(|source| GgufError::Io {
            path: path.to_owned(),
            source,
        })?;
        let mut reader = BufReader::new(file);
        let content = Content::read(&mut reader)?;
        let source = Source::new(&content)?;
        let names = content
            .tensor_infos
            .keys()
            .map(|name| Ok((source.target_name(name)?, name.clone())))
            .collect::<Result<_, GgufError>>()?;
        Ok(Self {
            path: path.to_owned(),
            reader,
            content,
            names,
        })
    }

    /// Hugging Face's names of the tensors, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// The matrix that Hugging Face calls `name`, with its rows in Hugging Face's order and every block as it is in the file;
    /// `None` if it is not in blocks but in f32, f16 or bf16.
    /// Errors: `MissingKey` for a name the file does not have, `Unsupported` for a kind of block that cannot be read, `Io`,
    /// and `Matrix` if the rows do not consist of whole blocks or no memory is left.
    pub fn quantized(&mut self, name: &str) -> Result<Option<Quantized>, GgufError> {
        let missing = || GgufError::MissingKey {
            key: name.to_owned(),
        };
        let info = self.names.get(name).ok_or_else(missing)?;
        let info = &self.content.tensor_infos[info];
        let Some(kind) = kind(name, info.ggml_dtype)? else {
            return Ok(None);
        };
        let &[rows, columns] = info.shape.dims() else {
            return Err(GgufError::Unsupported {
                key: format!("{name} with {} axes", info.shape.rank()),
            });
        };
        let start = self.content.tensor_data_offset.saturating_add(info.offset);
        let bytes = self.read(name, start, n_bytes(info))?;
        let bytes = Source::new(&self.content)?.in_order(bytes, rows, name)?;
        let matrix = Quantized::from_ggml(kind, rows, columns, bytes);
        matrix.map(Some).map_err(|source| failed(name, source))
    }

    fn read(&mut self, name: &str, start: u64, len: usize) -> Result<Vec<u8>, GgufError> {
        let mut bytes = with_room(len).map_err(|error| failed(name, error.into()))?;
        let mut read = || {
            self.reader.seek(SeekFrom::Start(start))?;
            let n = (&mut self.reader)
                .take(len as u64)
                .read_to_end(&mut bytes)?;
            if n == len {
                Ok(())
            } else {
                Err(std::io::ErrorKind::UnexpectedEof.into())
            }
        };
        read().map_err(|source| GgufError::Io {
            path: self.path.clone(),
            source,
        })?;
        Ok(bytes)
    }
}

fn failed(name: &str, source: QuantError) -> GgufError {
    GgufError::Matrix {
        name: name.to_owned(),
        source,
    }
}

/// Size in the file. Bytes.
fn n_bytes(info: &TensorInfo) -> usize {
    info.shape.elem_count() / info.ggml_dtype.block_size() * info.ggml_dtype.type_size()
}

fn kind(name: &str, dtype: GgmlDType) -> Result<Option<GgmlType>, GgufError> {
    Ok(Some(match dtype {
        GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => return Ok(None),
        GgmlDType::Q4_0 => GgmlType::Q4_0,
        GgmlDType::Q4_1 => GgmlType::Q4_1,
        GgmlDType::Q5_0 => GgmlType::Q5_0,
        GgmlDType::Q5_1 => GgmlType::Q5_1,
        GgmlDType::Q8_0 => GgmlType::Q8_0,
        GgmlDType::Q2K => GgmlType::Q2K,
        GgmlDType::Q3K => GgmlType::Q3K,
        GgmlDType::Q4K => GgmlType::Q4K,
        GgmlDType::Q5K => GgmlType::Q5K,
        GgmlDType::Q6K => GgmlType::Q6K,
        GgmlDType::Q8_1 | GgmlDType::Q8K => {
            let key = format!("{name} in {dtype:?}");
            return Err(GgufError::Unsupported { key });
        }
    }))
}
