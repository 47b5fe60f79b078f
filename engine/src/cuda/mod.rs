//! Owns the engine on an NVIDIA GPU: memory, products through cuBLASLt, our own kernels (`engine/kernels`), a base's weights,
//! trainings on them and what is generated from them. The driver and cuBLASLt are opened at run time: without them [`Gpu::count`] is 0 and nothing else differs.

mod adapters;
mod backward;
mod base;
mod gpu;
mod graphs;
mod kernels;
mod matmul;
mod memory;
mod offload;
mod ops;
mod passes;
mod plan;
mod quant;
mod room;
mod run;
mod serve_ops;
mod serving;

pub use base::{Base, BaseError, RankRoom};
pub use gpu::{CudaError, Gpu};
pub use plan::{MemoryPlan, Streams};
pub(crate) use run::Run;
pub use run::{Need, TrainingShape, available_bytes, plan_memory, supports};
pub(crate) use serving::Generator;
