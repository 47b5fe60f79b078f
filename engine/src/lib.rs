//! Owns model math: tensors and token ids in, losses, gradients and tokens out. It knows no text, no job, no clock, no
//! database and no queue; it never calls back, so the caller owns pace, report and cancellation.

pub mod batch;
mod checkpoint;
pub mod config;
mod cpu;
pub mod cuda;
pub mod export;
pub mod generate;
pub mod gguf;
mod kv;
pub mod lora;
mod model;
mod nn;
mod optim;
pub mod quant;
mod rng;
mod sampling;
pub mod schedule;
mod stored;
pub mod train;
pub mod weights;

pub use cpu::buffer::OutOfMemory;
pub use cpu::element::Precision;
pub use cpu::pool;
pub use cpu::simd::Isa;
pub use model::MemoryLevel;
