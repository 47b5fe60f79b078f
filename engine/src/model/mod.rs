//! Owns the decoder: one explicit forward and backward for training and generation, no autograd. Knows no optimizer.

mod backward;
mod block;
mod block_backward;
mod decoder;
mod experts;

pub(crate) use backward::Trained;
pub(crate) use block::{Changed, Loras};
pub use decoder::MemoryLevel;
pub(crate) use decoder::{Batch, Decoder, Keep};
