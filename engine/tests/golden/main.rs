//! Holds the engine to what transformers and PEFT compute; `tests/fixtures/README.md` says where the numbers come from.

mod adapters;
mod embeddings;
mod preference;
mod smollm2;
mod support;
mod tiny;
