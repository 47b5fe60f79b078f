//! Owns the operations of a decoder, forward and backward, on plain slices; knows no model and no optimizer.
//! Matrices are row-major; shapes are written as in the papers: T time, D hidden, H heads, K kv heads, C head dim,
//! F feed-forward, V vocab, R rank.

pub(crate) mod attention;
pub(crate) mod cross_entropy;
pub(crate) mod dropout;
pub(crate) mod glu;
pub(crate) mod linear;
pub(crate) mod qk_norm;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod rounding;
pub(crate) mod softcap;
