//! What a model reads: messages ⇄ token ids and label masks, and the files that hold them. Validation and training
//! use the same code, so both count the same tokens. Pure: it never knows jobs, tensors, HTTP or a clock.

pub mod chat_model;
pub mod chat_template;
pub mod check;
pub mod control;
pub mod dataset;
pub mod decode;
pub mod formats;
pub mod gguf;
pub mod grammar;
pub mod mask;
pub mod report;
pub mod tokenizer;
pub mod tools;
