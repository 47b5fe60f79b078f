//! Owns model math: tensors and token ids in, losses, gradients and tokens out. It knows no text, no job, no clock, no
//! database and no queue; it never calls back, so the caller owns pace, report and cancellation.

pub mod batch;
mod buffer;
mod checkpoint;
pub mod config;
pub mod generate;
pub mod gguf;
mod kv_cache;
pub mod lora;
mod model;
mod nn;
mod optim;
pub mod pool;
mod rng;
mod sampling;
pub mod schedule;
mod simd;
pub mod train;
pub mod weights;

pub use buffer::OutOfMemory;
