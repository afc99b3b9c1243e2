//! The public and the admin port.

pub mod admin;
pub mod context;
mod disconnect;
mod heads;
mod http1;
mod http2;
pub mod listener;
mod overload;
mod proxy_protocol;
mod requests;
mod stall;
pub mod status;
mod streams;
pub mod tls;
