//! The app server and the browsers of the comparison: one command per kind of load, one line of JSON per measurement.
//!
//! Invariant: frames are built before the clock starts, so that both ends cost less than any proxy between them.

mod admin;
mod bulk;
mod churn;
mod flood;
mod hold;
mod latency;
mod page;
mod serve;
mod shake;
mod turns;
mod watch;
mod wire;

use std::net::SocketAddr;

use clap::{Parser, Subcommand};

/// The command line.
#[derive(Debug, Parser)]
#[command(about = "App server and browsers for benches/run")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// The loads.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run the app server. The query of each websocket's path configures it (see `serve.rs`).
    Serve {
        /// The address to listen on; port 0 selects a free port. The address is printed.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
    /// Read large messages at full speed.
    Bulk(bulk::Bulk),
    /// Request one large message and do not read it.
    Stall(bulk::Stall),
    /// Measure the time to the first byte of a slow message.
    First(bulk::First),
    /// Send small messages and wait for each answer.
    Turns(turns::Turns),
    /// Measure the latency of several targets at the same time.
    Latency(latency::Latency),
    /// Open sessions, measure their memory, close them.
    Idle(hold::Idle),
    /// Hold sessions that send heartbeats.
    Hold(hold::Hold),
    /// Open and close sessions.
    Shake(shake::Shake),
    /// Hold many sessions that send heartbeats and are replaced, and count every ack.
    Churn(churn::Churn),
    /// Flood one session, and measure the ack latency of others.
    Flood(flood::Flood),
}

/// The measured proxy.
#[derive(Clone, Debug, clap::Args)]
pub struct Target {
    /// The address for browsers.
    #[arg(long)]
    at: SocketAddr,
    /// Path and query of the websocket.
    #[arg(long, default_value = "/_stcore/stream")]
    path: String,
    /// The process whose CPU time and memory are measured.
    #[arg(long)]
    watch: i32,
}

fn main() -> anyhow::Result<()> {
    let line = match Arguments::parse().command {
        Command::Serve { listen } => return serve::serve(listen),
        Command::Bulk(bulk) => bulk.run()?,
        Command::Stall(stall) => stall.run()?,
        Command::First(first) => first.run()?,
        Command::Turns(turns) => turns.run()?,
        Command::Latency(latency) => latency.run()?,
        Command::Idle(idle) => idle.run()?,
        Command::Hold(hold) => hold.run()?,
        Command::Shake(shake) => shake.run()?,
        Command::Churn(churn) => churn.run()?,
        Command::Flood(flood) => flood.run()?,
    };
    println!("{line}");
    Ok(())
}
