//! Owns how numbers are held, moved and multiplied on this processor: memory, threads, vector loops, matrix products.
//! Knows nothing of what the numbers mean.

pub(crate) mod buffer;
pub(crate) mod element;
pub(crate) mod gemm;
pub mod pool;
pub(crate) mod simd;
