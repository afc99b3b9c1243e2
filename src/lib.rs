//! heartbeat-sidecar: a transparent reverse proxy that gives every hosted Streamlit app a heartbeat.
//!
//! The map of the house, top to bottom; imports run downwards only.

pub mod drain;
pub mod heartbeat;
pub mod metrics;
pub mod server;
pub mod session;
pub mod streamlit;
pub mod telemetry;
pub mod websocket;
