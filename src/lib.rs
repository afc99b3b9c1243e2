//! heartbeat-sidecar: a transparent reverse proxy that gives every hosted Streamlit app a heartbeat.
//!
//! Groups of modules, top to bottom. tests/layers.rs has the exact order of imports.

pub mod cli;

pub mod commands;

pub mod sidecar;

pub mod config;
pub mod proxy;
pub mod server;

pub mod relay;

pub mod transport;

pub mod drain;
pub mod file_watch;
pub mod limits;
pub mod metrics;
pub mod session;
pub mod telemetry;
pub mod tls;

pub mod resume;
pub mod tap;

pub mod heartbeat;

pub mod streamlit;

pub mod websocket;
