//! What tests of several rooms share: servers on loopback ports. It imports no room.

pub mod proxy;
pub mod receiver;
pub mod s3;
