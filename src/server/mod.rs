//! The listening sides of the sidecar.

pub mod admin;
mod http1;
mod http2;
pub mod listener;
mod overload;
mod proxy_protocol;
pub mod status;
pub mod tls;
