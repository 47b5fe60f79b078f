//! What tests of several rooms share: servers on loopback ports. It imports no room.

pub mod s3;
