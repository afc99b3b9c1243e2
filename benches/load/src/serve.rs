//! The app server: accepts websockets. The query of a websocket's path configures it.
//!
//! | key | effect |
//! |---|---|
//! | `version=V` | first sends `new_session`, as a server of that version |
//! | `answer=N` | answers each message that is not a heartbeat with a delta of N bytes |
//! | `acks=1` | acks heartbeats |
//! | `send=N&total=T` | after the first message, sends deltas of N bytes, T bytes in total |
//! | `pause=U` | pauses U microseconds after each 64 KiB of these |

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::wire::{self, ACCEPT, ACK, HEARTBEAT_PAYLOAD};

/// Bytes per write.
const CHUNK: usize = 1 << 20;

/// Serves until it is killed.
pub(crate) fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(listen)?;
        let listener: TcpListener = socket.listen(4096)?;
        println!("{}", listener.local_addr()?);
        loop {
            let (stream, _peer) = listener.accept().await?;
            // An error ends only its connection: browsers may disconnect at any time.
            tokio::spawn(async { drop(connection(stream).await) });
        }
    })
}

/// One websocket.
struct Session {
    stream: TcpStream,
    /// Received bytes that are not yet processed.
    came: Vec<u8>,
    answer: Vec<u8>,
    acks: bool,
    path: String,
}

async fn connection(mut stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::with_capacity(2048);
    let end = loop {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
        if let Some(at) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let came = head[end..].to_vec();
    let path = std::str::from_utf8(&head)?.split(' ').nth(1).context("no path")?.to_owned();
    let mut said = format!(
        "HTTP/1.1 101 Switching Protocols\r\nServer: TornadoServer/6.5\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Protocol: streamlit\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    )
    .into_bytes();
    said.extend(wire::query(&path, "version").map(wire::new_session).unwrap_or_default());
    stream.write_all(&said).await?;
    let answer = wire::number(&path, "answer").map(wire::delta).unwrap_or_default();
    let acks = wire::query(&path, "acks").is_some();
    Session { stream, came, answer, acks, path }.run().await
}

impl Session {
    async fn run(&mut self) -> anyhow::Result<()> {
        let mut out = Vec::new();
        loop {
            out.clear();
            let sends = self.deal(&mut out)?;
            if !out.is_empty() {
                self.stream.write_all(&out).await?;
            }
            if sends {
                self.send().await?;
            }
            // A small buffer for idle sessions.
            self.came.reserve(256);
            if self.stream.read_buf(&mut self.came).await? == 0 {
                return Ok(());
            }
        }
    }

    /// Answers complete frames. Returns whether to send the large messages.
    fn deal(&mut self, out: &mut Vec<u8>) -> anyhow::Result<bool> {
        let (mut at, mut asked) = (0, false);
        while let Some([first, second, ..]) = self.came.get(at..) {
            let (length, start) = match second & 0x7f {
                127 => bail!("the frame is too large"),
                126 => match self.came.get(at + 2..at + 4) {
                    Some(length) => (usize::from(length[0]) << 8 | usize::from(length[1]), at + 8),
                    None => break,
                },
                short => (usize::from(short), at + 6),
            };
            let Some(payload) = self.came.get(start..start + length) else { break };
            let key = &self.came[start - 4..start];
            let plain = |payload: &[u8]| {
                payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect::<Vec<_>>()
            };
            match first & 0x0f {
                0x8 => bail!("closed"),
                0x9 => {
                    out.extend([0x8a, length as u8]);
                    out.extend(plain(payload));
                }
                0xa => {}
                _ if length == HEARTBEAT_PAYLOAD.len() && plain(payload) == HEARTBEAT_PAYLOAD => {
                    if self.acks {
                        out.extend(ACK);
                    }
                }
                _ => {
                    out.extend_from_slice(&self.answer);
                    asked = true;
                }
            }
            at = start + length;
        }
        self.came.drain(..at);
        Ok(asked && wire::number(&self.path, "send").is_some())
    }

    /// Sends the large messages.
    async fn send(&mut self) -> anyhow::Result<()> {
        let size = wire::number(&self.path, "send").context("no size")?;
        let total = wire::number(&self.path, "total").unwrap_or(size);
        let pause = wire::number(&self.path, "pause").map(|micros| Duration::from_micros(micros as u64));
        let chunk = if pause.is_some() { 64 << 10 } else { CHUNK };
        let front = [wire::header(size), wire::delta_front(size)].concat();
        let frame = wire::header(size).len() + size;
        let messages = total.div_ceil(size);
        if frame <= chunk && pause.is_none() {
            let many = wire::delta(size).repeat((chunk / frame).max(1));
            let (rounds, left) = (messages / (many.len() / frame), messages % (many.len() / frame));
            for _round in 0..rounds {
                self.stream.write_all(&many).await?;
            }
            self.stream.write_all(&many[..left * frame]).await?;
            return Ok(());
        }
        let filler = vec![b'd'; chunk];
        for _message in 0..messages {
            self.stream.write_all(&front).await?;
            let mut left = frame - front.len();
            while left > 0 {
                let now = left.min(chunk);
                self.stream.write_all(&filler[..now]).await?;
                left -= now;
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                }
            }
        }
        Ok(())
    }
}
