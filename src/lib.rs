//! heartbeat-sidecar: a transparent reverse proxy that gives every hosted Streamlit app a heartbeat.
//!
//! The layers, top to bottom; imports run downwards only.

pub mod cli;

pub mod commands;

pub mod app;

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

pub mod tap;

pub mod heartbeat;

pub mod streamlit;

pub mod websocket;
