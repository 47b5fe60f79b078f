//! Owns frozen weights in few bits on the GPU: their codes lie there, and each product unpacks the linear it multiplies with into
//! memory that all of them share. The codes are those of [`crate::quant`].

use super::gpu::{CudaError, Gpu};
use super::memory::{Matrix, Plan, clear, upload};
use super::ops;
use crate::quant::{Codes, Kind, Quantized};

/// Weights that share a scale in NF4, and scales that share another one.
const BLOCK: usize = 64;
const SCALES_BLOCK: usize = 256;

/// One matrix that was quantised by itself, within a fused linear.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// Its first row within the linear.
    pub first: usize,
    pub rows: usize,
    pub columns: usize,
    codes: Place,
}

/// Where the codes lie.
#[derive(Debug, Clone, Copy)]
enum Place {
    Nf4 {
        codes: u64,
        scales: u64,
    },
    /// The offset of the scales stands beside them in one number on the host: see [`Part::fill`].
    Nf4Double {
        codes: u64,
        differences: u64,
        absmax: u64,
        offset: f32,
    },
    Int8 {
        codes: u64,
        scales: u64,
    },
    Fp8 {
        codes: u64,
        scales: u64,
    },
}

impl Part {
    /// Room for a matrix.
    /// Errors: `Unsupported` for kinds that no kernel reads.
    pub fn plan(
        plan: &mut Plan,
        kind: Kind,
        first: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Self, CudaError> {
        let n = rows * columns;
        let n_scales = n.div_ceil(BLOCK);
        let codes = match kind {
            Kind::Nf4 => Place::Nf4 {
                codes: plan.bytes(n.div_ceil(2)),
                scales: plan.words(n_scales),
            },
            Kind::Nf4DoubleQuant => Place::Nf4Double {
                codes: plan.bytes(n.div_ceil(2)),
                differences: plan.bytes(n_scales),
                absmax: plan.words(n_scales.div_ceil(SCALES_BLOCK)),
                offset: 0.0,
            },
            Kind::Int8 => Place::Int8 {
                codes: plan.bytes(n),
                scales: plan.words(rows),
            },
            Kind::Fp8 => Place::Fp8 {
                codes: plan.bytes(n),
                scales: plan.words(rows),
            },
            Kind::Ggml(kind) => return Err(CudaError::Unsupported(format!("a base in {kind}"))),
        };
        Ok(Self {
            first,
            rows,
            columns,
            codes,
        })
    }

    /// Brings the codes of a matrix of the planned kind.
    /// Errors: `Driver`.
    pub fn fill(&mut self, gpu: &Gpu, matrix: &Quantized) -> Result<(), CudaError> {
        match (&mut self.codes, matrix.codes()) {
            (
                Place::Nf4 { codes, scales },
                Some(Codes::Nf4 {
                    codes: from,
                    scales: of,
                }),
            ) => {
                upload(gpu, *codes, from)?;
                upload(gpu, *scales, of)
            }
            (
                Place::Nf4Double {
                    codes,
                    differences,
                    absmax,
                    offset,
                },
                Some(Codes::Nf4Double {
                    codes: from,
                    differences: of,
                    absmax: most,
                    offset: mean,
                }),
            ) => {
                upload(gpu, *codes, from)?;
                upload(gpu, *differences, of)?;
                upload(gpu, *absmax, most)?;
                *offset = mean;
                Ok(())
            }
            (
                Place::Int8 { codes, scales },
                Some(Codes::Int8 {
                    codes: from,
                    scales: of,
                }),
            ) => {
                upload(gpu, *codes, from)?;
                upload(gpu, *scales, of)
            }
            (
                Place::Fp8 { codes, scales },
                Some(Codes::Fp8 {
                    codes: from,
                    scales: of,
                }),
            ) => {
                upload(gpu, *codes, from)?;
                upload(gpu, *scales, of)
            }
            _ => unreachable!("a matrix of another kind than was planned — a bug in the loader"),
        }
    }

    /// Random codes of about the given size, but zeros for fp8, for measurements.
    /// Errors: `Driver`.
    pub fn fill_random(&mut self, gpu: &Gpu, size: f32, seed: u32) -> Result<(), CudaError> {
        let (n, bytes) = (self.rows * self.columns, |at, n: usize| {
            ops::fill_bits(gpu, at, n, seed)
        });
        match &mut self.codes {
            Place::Nf4 { codes, scales } => {
                bytes(*codes, n.div_ceil(2))?;
                upload(gpu, *scales, &vec![size; n.div_ceil(BLOCK)])
            }
            Place::Nf4Double { codes, offset, .. } => {
                *offset = size;
                bytes(*codes, n.div_ceil(2))
            }
            Place::Int8 { codes, scales } => {
                bytes(*codes, n)?;
                upload(gpu, *scales, &vec![size; self.rows])
            }
            // Some of random bits would be no numbers.
            Place::Fp8 { codes, scales } => {
                clear(gpu, *codes, n)?;
                upload(gpu, *scales, &vec![size; self.rows])
            }
        }
    }

    /// Unpacks into its rows of `linear`, rounded to bf16.
    /// Errors: `Driver`.
    pub fn unpack(&self, gpu: &Gpu, linear: Matrix) -> Result<(), CudaError> {
        let to = linear
            .rows(self.first, self.first + self.rows)
            .columns(0, self.columns);
        match self.codes {
            Place::Nf4 { codes, scales } => {
                ops::dequantize_nf4(gpu, codes, scales, (0, 0, 0.0), to)
            }
            Place::Nf4Double {
                codes,
                differences,
                absmax,
                offset,
            } => ops::dequantize_nf4(gpu, codes, 0, (differences, absmax, offset), to),
            Place::Int8 { codes, scales } => {
                ops::dequantize_row_wise(gpu, "dequantize_int8", codes, scales, to)
            }
            Place::Fp8 { codes, scales } => {
                ops::dequantize_row_wise(gpu, "dequantize_fp8", codes, scales, to)
            }
        }
    }
}
