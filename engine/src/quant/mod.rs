//! Owns frozen weights in few bits: how a matrix is quantised, what memory it takes, and its values on the way back. It
//! knows no model and no file, and of matrix products only the order in which they read.
//!
//! What each kind costs, for normally distributed weights, as `cargo run -p engine --example quantize` printed it: the error
//! is ‖w − ŵ‖ / ‖w‖ over a matrix of 1024 × 4096; the speeds, in GB of values written a second, are those of one thread of an
//! EPYC with AVX-512, reading row after row into the same memory. The blocks of GGML are those that candle writes. Kinds with
//! a star are kept in the order that products read ([`Coded`]), which is across the rows: products do not read them like this. The row of
//! fp8 is from another day and machine, where int8 made 56.0 and 10.9.
//!
//! | kind | bits per weight | error | f32 | bf16 |
//! |---|---|---|---|---|
//! | nf4 | 4.500 | 0.0919 | 17.3 | 6.0 |
//! | nf4 with double quantisation | 4.127 | 0.0920 | 16.4 | 5.9 |
//! | int8 | 8.008 | 0.0087 | 83.7 | 14.0 |
//! | fp8 | 8.008 | 0.0265 | 49.1 | 10.3 |
//! | q2_k | 2.625 | 0.2899 | 14.7 | 5.4 |
//! | q3_k | 3.438 | 0.1508 | 9.3 | 3.8 |
//! | q4_0* | 5.000 | 0.0859 | 1.2 | 0.6 |
//! | q4_1* | 6.000 | 0.0782 | 1.1 | 0.6 |
//! | q4_k* | 4.750 | 0.0745 | 1.1 | 0.5 |
//! | q5_0 | 5.500 | 0.0426 | 27.6 | 8.4 |
//! | q5_1 | 6.000 | 0.0378 | 5.2 | 2.3 |
//! | q5_k | 5.500 | 0.0369 | 11.4 | 4.5 |
//! | q6_k* | 8.625 | 0.0183 | 1.2 | 0.6 |
//! | q8_0* | 9.000 | 0.0053 | 1.1 | 0.6 |

mod coded;
mod dynamic;
mod fp8;
mod ggml;
mod ggml_k;
mod int8;
mod nf4;
mod row_wise;

use std::fmt;
use std::ops::Range;

use half::bf16;

use crate::cpu::buffer::OutOfMemory;
pub(crate) use coded::Coded;
use fp8::Fp8;
use ggml::Blocks;
pub use ggml::GgmlType;
pub(crate) use ggml::encode_q8_0;
use int8::Int8;
use nf4::{Nf4, Scales};

/// The ways to keep a frozen matrix in few bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// 4-bit codes, the quantiles of a normal distribution, and an f32 scale for 64 weights: `bnb_4bit_quant_type="nf4"`.
    Nf4,
    /// The same with the scales in 8 bits: `bnb_4bit_use_double_quant`.
    Nf4DoubleQuant,
    /// 8-bit codes and an f32 scale for each row: `load_in_8bit`.
    /// Differs: LLM.int8 quantises the activations too, except for columns with outliers, and multiplies in int8. Here only
    /// the weights are quantised; they are multiplied in the dtype of the activations, so no column needs an exception.
    Int8,
    /// 8-bit floating point codes, float8_e4m3fn, and an f32 scale for each row. As with int8 only the weights are quantised.
    Fp8,
    /// The blocks of a GGUF file.
    Ggml(GgmlType),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Nf4 => f.write_str("nf4"),
            Kind::Nf4DoubleQuant => f.write_str("nf4 with double quantisation"),
            Kind::Int8 => f.write_str("int8"),
            Kind::Fp8 => f.write_str("fp8"),
            Kind::Ggml(kind) => write!(f, "{kind}"),
        }
    }
}

/// Why a matrix cannot be quantised.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum QuantError {
    #[error(
        "{found} {what} are not a matrix of {rows} rows and {columns} columns, which has {expected}"
    )]
    WrongLength {
        what: &'static str,
        found: usize,
        expected: usize,
        rows: usize,
        columns: usize,
    },
    #[error(
        "{kind} needs rows of a multiple of {block_len} weights, not {columns}; choose another kind"
    )]
    Ragged {
        kind: GgmlType,
        block_len: usize,
        columns: usize,
    },
    #[error("weight {value} in row {row}, column {column} cannot be quantised")]
    NotFinite {
        value: f32,
        row: usize,
        column: usize,
    },
    #[error("{0} can be read but not written; choose q8_0 or q4_0")]
    ReadOnly(GgmlType),
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// A frozen matrix (rows, columns), quantised.
/// Invariant: the data is that of exactly `rows` × `columns` weights.
pub struct Quantized {
    rows: usize,
    columns: usize,
    data: Data,
}

/// The codes and scales of a matrix, for what reads them elsewhere than here.
pub(crate) enum Codes<'a> {
    /// Two codes to a byte, the first in the high half; a scale for each 64 weights.
    Nf4 { codes: &'a [u8], scales: &'a [f32] },
    /// As [`dynamic`] has it, a scale is `absmax`·map\[difference\] + `offset`.
    Nf4Double {
        codes: &'a [u8],
        differences: &'a [u8],
        absmax: &'a [f32],
        offset: f32,
    },
    /// A scale for each row.
    Int8 { codes: &'a [i8], scales: &'a [f32] },
    /// A scale for each row.
    Fp8 { codes: &'a [u8], scales: &'a [f32] },
}

enum Data {
    Nf4(Nf4),
    Int8(Int8),
    Fp8(Fp8),
    Ggml(Blocks),
    /// Blocks of the commonest kinds.
    Coded(Coded),
}

impl Data {
    fn of_blocks(blocks: Blocks, rows: usize, columns: usize) -> Result<Self, OutOfMemory> {
        let coded = Coded::from_blocks(blocks.kind, rows, columns, &blocks.bytes)?;
        Ok(coded.map_or(Data::Ggml(blocks), Data::Coded))
    }
}

impl Quantized {
    /// Quantises `values`, a row-major matrix (rows, columns) in f32, bf16 or f16.
    /// Errors: `WrongLength` unless there are `rows` · `columns` values, `NotFinite` for the first NaN or infinity, `Ragged` and
    /// `ReadOnly` where a GGML type cannot hold the matrix, `OutOfMemory`.
    pub fn quantize<T: Copy + Into<f32>>(
        kind: Kind,
        rows: usize,
        columns: usize,
        values: &[T],
    ) -> Result<Self, QuantError> {
        let expected = rows.saturating_mul(columns);
        check_length("weights", values.len(), expected, rows, columns)?;
        check_finite(values, columns)?;
        let data = match kind {
            Kind::Nf4 => Data::Nf4(Nf4::quantize(values)?),
            Kind::Nf4DoubleQuant => Data::Nf4(Nf4::quantize(values)?.double_quantized()?),
            Kind::Int8 => Data::Int8(Int8::quantize(values, rows, columns, int8::encode)?),
            Kind::Fp8 => Data::Fp8(Fp8::quantize(values, rows, columns, fp8::encode)?),
            Kind::Ggml(kind) => {
                check_blocks(kind, columns)?;
                Data::of_blocks(Blocks::quantize(kind, values)?, rows, columns)?
            }
        };
        Ok(Self {
            rows,
            columns,
            data,
        })
    }

    /// Takes over a matrix (rows, columns) that is quantised already, as a GGUF file holds it.
    /// Errors: `Ragged` if the rows cannot be cut into blocks, `WrongLength` if `bytes` are not those of the matrix.
    pub fn from_ggml(
        kind: GgmlType,
        rows: usize,
        columns: usize,
        bytes: Vec<u8>,
    ) -> Result<Self, QuantError> {
        check_blocks(kind, columns)?;
        let row_bytes = columns / kind.block_len() * kind.block_bytes();
        let expected = rows.saturating_mul(row_bytes);
        check_length("bytes", bytes.len(), expected, rows, columns)?;
        let data = Data::of_blocks(Blocks { kind, bytes }, rows, columns)?;
        Ok(Self {
            rows,
            columns,
            data,
        })
    }

    pub fn kind(&self) -> Kind {
        match &self.data {
            Data::Nf4(nf4) if nf4.is_double_quantized() => Kind::Nf4DoubleQuant,
            Data::Nf4(_) => Kind::Nf4,
            Data::Int8(_) => Kind::Int8,
            Data::Fp8(_) => Kind::Fp8,
            Data::Ggml(blocks) => Kind::Ggml(blocks.kind),
            Data::Coded(coded) => Kind::Ggml(coded.kind),
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The memory that codes and scales of a matrix (rows, columns) take. Bytes.
    pub fn bytes_of(kind: Kind, rows: usize, columns: usize) -> usize {
        let n = rows * columns;
        match kind {
            Kind::Nf4 => Nf4::bytes_of(n, false),
            Kind::Nf4DoubleQuant => Nf4::bytes_of(n, true),
            Kind::Int8 | Kind::Fp8 => n + rows * size_of::<f32>(),
            Kind::Ggml(kind) => Coded::bytes_of(kind, rows, columns)
                .unwrap_or(n / kind.block_len() * kind.block_bytes()),
        }
    }

    /// The memory that codes and scales take. Bytes.
    pub fn n_bytes(&self) -> usize {
        match &self.data {
            Data::Nf4(nf4) => nf4.n_bytes(),
            Data::Int8(int8) => int8.n_bytes(),
            Data::Fp8(fp8) => fp8.n_bytes(),
            Data::Ggml(blocks) => blocks.bytes.len(),
            Data::Coded(coded) => coded.n_bytes(),
        }
    }

    /// Writes the values of `row` in `columns` to `out`. Fastest where the range begins and ends with a block.
    /// Panics: if the row or the columns lie outside of the matrix, or `out` is not as long as the range.
    pub fn dequantize(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        assert!(
            row < self.rows && columns.end <= self.columns && columns.len() == out.len(),
            "row {row}, columns {columns:?} of {} × {} into {} values",
            self.rows,
            self.columns,
            out.len()
        );
        // One range in the flattened matrix: no row is padded.
        let start = row * self.columns + columns.start;
        match &self.data {
            Data::Nf4(nf4) => nf4.dequantize(start, out),
            Data::Int8(codes) => codes.dequantize(row, start, out, int8::decode),
            Data::Fp8(codes) => codes.dequantize(row, start, out, fp8::decode),
            Data::Ggml(blocks) => blocks.dequantize(start, out),
            Data::Coded(coded) => coded.dequantize(row, columns.start, out),
        }
    }

    /// Codes and scales; `None` for the kinds of GGML.
    pub(crate) fn codes(&self) -> Option<Codes<'_>> {
        match &self.data {
            Data::Nf4(Nf4 { codes, scales }) => Some(match scales {
                Scales::Plain(scales) => Codes::Nf4 { codes, scales },
                Scales::Double {
                    differences,
                    offset,
                } => Codes::Nf4Double {
                    codes,
                    differences: &differences.codes,
                    absmax: &differences.absmax,
                    offset: *offset,
                },
            }),
            Data::Int8(Int8 { codes, scales }) => Some(Codes::Int8 { codes, scales }),
            Data::Fp8(Fp8 { codes, scales }) => Some(Codes::Fp8 { codes, scales }),
            Data::Ggml(_) | Data::Coded(_) => None,
        }
    }

    /// The matrix in the order that products read, if it is kept in that.
    pub(crate) fn coded(&self) -> Option<&Coded> {
        match &self.data {
            Data::Coded(coded) => Some(coded),
            Data::Nf4(_) | Data::Int8(_) | Data::Fp8(_) | Data::Ggml(_) => None,
        }
    }

    /// The same in bf16, each value rounded to the nearest, halves to even.
    /// Panics: as `dequantize`.
    pub fn dequantize_bf16(&self, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        assert_eq!(columns.len(), out.len(), "one value for each column");
        /// A multiple of every block; stays in the first cache. Elements.
        const CHUNK: usize = 1024;
        let mut values = [0.0; CHUNK];
        let mut start = columns.start;
        for out in out.chunks_mut(CHUNK) {
            let values = &mut values[..out.len()];
            self.dequantize(row, start..start + out.len(), values);
            round_to_bf16(values, out);
            start += out.len();
        }
    }
}

crate::cpu::simd::vectorized! {
    fn round_to_bf16(values: &[f32], out: &mut [bf16]) {
        for (out, value) in out.iter_mut().zip(values) {
            let bits = value.to_bits();
            let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
            // Rounding could carry a NaN over into a number.
            let nan = (bits >> 16) as u16 | 0x40;
            *out = bf16::from_bits(if value.is_nan() { nan } else { rounded });
        }
    }
}

fn check_length(
    what: &'static str,
    found: usize,
    expected: usize,
    rows: usize,
    columns: usize,
) -> Result<(), QuantError> {
    let wrong = QuantError::WrongLength {
        what,
        found,
        expected,
        rows,
        columns,
    };
    if found == expected {
        Ok(())
    } else {
        Err(wrong)
    }
}

fn check_blocks(kind: GgmlType, columns: usize) -> Result<(), QuantError> {
    let block_len = kind.block_len();
    let ragged = QuantError::Ragged {
        kind,
        block_len,
        columns,
    };
    if columns.is_multiple_of(block_len) {
        Ok(())
    } else {
        Err(ragged)
    }
}

fn check_finite<T: Copy + Into<f32>>(values: &[T], columns: usize) -> Result<(), QuantError> {
    let is_finite = |x: &T| (*x).into().is_finite();
    let bad = |chunk: &&[T]| !chunk.iter().fold(true, |all, x| all & is_finite(x));
    // Whole chunks without a branch first: nearly always all of them are finite.
    let Some(chunk) = values.chunks(64).position(|chunk| bad(&chunk)) else {
        return Ok(());
    };
    let at = (chunk * 64..values.len())
        .find(|&i| !is_finite(&values[i]))
        .expect("the chunk has a value that is not finite");
    Err(QuantError::NotFinite {
        value: values[at].into(),
        row: at / columns,
        column: at % columns,
    })
}

/// Makes an empty vector with room for `len` values.
pub(crate) fn with_room<T>(len: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut values = Vec::new();
    let size_bytes = len * size_of::<T>();
    values
        .try_reserve_exact(len)
        .map_err(|_| OutOfMemory { size_bytes })?;
    Ok(values)
}

/// The largest magnitude of finite `values`, 0 for none. Without their sign they are ordered as their bits are, and integers
/// are compared in any order, thus many at a time.
#[inline(always)]
fn absmax(values: &[f32]) -> f32 {
    let magnitude = |x: &f32| x.to_bits() & 0x7fff_ffff;
    f32::from_bits(values.iter().map(magnitude).max().unwrap_or(0))
}

#[cfg(test)]
mod tests;
