//! The sidecar over real sockets: what goes in on one side and what comes out on the other.

mod admission;
mod bulk;
mod configuration;
mod container;
mod deflate;
mod drain;
mod exact;
mod faults;
mod frames;
mod golden;
mod heartbeat;
mod http;
mod http2;
mod limits;
mod misuse;
mod peers;
mod reload;
mod routes;
mod sni;
mod support;
mod systemd;
mod takeover;
mod tls;
mod trace;
mod watchdog;
mod websocket;
