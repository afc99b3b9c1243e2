//! The listening sides of the sidecar.

pub mod admin;
pub mod listener;
mod proxy_protocol;
