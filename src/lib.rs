//! heartbeat-sidecar: a transparent reverse proxy that gives every hosted Streamlit app a heartbeat.
//!
//! The map of the house, top to bottom; imports run downwards only.

pub mod cli;
pub mod commands;
pub mod config;
pub mod heartbeat;
pub mod streamlit;
pub mod websocket;
