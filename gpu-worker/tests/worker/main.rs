//! The worker as a whole: a real device, a bucket in a directory, a scripted door. One program, so that it links once.

mod adapters;
mod door;
mod embed;
mod export;
mod generate;
mod gpu;
mod house;
mod options;
mod plan;
mod preference;
mod queue;
mod structured;
mod tiny_model;
mod train;
