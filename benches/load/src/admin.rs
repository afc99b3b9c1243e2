//! Reads the sidecar's metrics from its admin port.

use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The body of a response.
pub(crate) async fn ask(admin: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(admin).await.context("cannot connect to the admin port")?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (_head, body) = answer.split_once("\r\n\r\n").context("not an HTTP response")?;
    Ok(body.to_owned())
}

/// The sum of all samples of a family.
pub(crate) async fn metric(admin: SocketAddr, name: &str) -> anyhow::Result<u64> {
    let text = ask(admin, "/metrics").await?;
    let mut sum = 0.0;
    for line in text.lines() {
        let rest = line.strip_prefix("heartbeat_sidecar_").and_then(|line| line.strip_prefix(name));
        if rest.is_some_and(|rest| rest.starts_with(['{', ' '])) {
            sum += line.rsplit(' ').next().unwrap_or_default().parse::<f64>()?;
        }
    }
    Ok(sum as u64)
}
