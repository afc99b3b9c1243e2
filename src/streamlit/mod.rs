//! Pure code for Streamlit's protocol: bytes in, values out.

pub mod ack;
pub mod handshake;
pub mod messages;
pub mod version;

/// The few messages of `proto/streamlit.proto`, compiled by prost.
pub mod proto {
    #![allow(missing_docs, clippy::doc_markdown)]
    include!(concat!(env!("OUT_DIR"), "/streamlit.rs"));
}
