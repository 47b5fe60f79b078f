//! What every process stands on: configuration, objects, archives, listeners, the queue, service tokens, kept secrets,
//! calls to where tenants say, telemetry and shutdown. It knows no job, no row and no HTTP route.

pub mod archive;
mod beside;
pub mod config;
pub mod data_dir;
mod listen;
pub mod objects;
mod objects_dir;
mod objects_s3;
pub mod outbound;
mod own_thread;
pub mod queue;
mod queue_amqp;
pub mod service_token;
pub mod shutdown;
pub mod telemetry;
pub mod vault;
pub mod webhook;

pub use listen::listen;
pub use own_thread::on_own_thread;
