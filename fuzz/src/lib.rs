//! Shared by the fuzz targets: reading of inputs, and plain models of protobuf and RFC 6455.
//!
//! Invariant: the models are written from the specifications and share no code with the sidecar.

pub mod input;
pub mod protobuf;
pub mod wire;
