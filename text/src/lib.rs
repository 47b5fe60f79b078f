//! What a model reads: messages ⇄ token ids and label masks, and the files that hold them. Validation and training
//! use the same code, so both count the same tokens. Pure: it never knows jobs, tensors, HTTP or a clock.

pub mod dataset;
pub mod formats;
pub mod report;
