//! What the fuzz targets share: how they read their input, and plain models of what the sidecar must say of it.
//!
//! Law: the models are written from the specifications and share no code with the sidecar.

pub mod input;
pub mod protobuf;
pub mod wire;
