//! Websocket frames (RFC 6455 §5.2) and Streamlit messages, built once and sent repeatedly.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::page;

/// The key of RFC 6455 §1.3, which every browser here sends.
pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The accept key for [`KEY`].
pub(crate) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// `BackMsg { app_heartbeat: true }`, masked.
pub(crate) const HEARTBEAT: [u8; 9] = [0x82, 0x83, 1, 2, 3, 4, 0x88 ^ 1, 1 ^ 2, 1 ^ 3];
/// A browser's ping, masked.
pub(crate) const PING: [u8; 10] = [0x89, 0x84, 1, 2, 3, 4, b'p' ^ 1, b'i' ^ 2, b'n' ^ 3, b'g' ^ 4];
/// A browser's close 1000, masked.
pub(crate) const CLOSE: [u8; 8] = [0x88, 0x82, 1, 2, 3, 4, 0x03 ^ 1, 0xe8 ^ 2];
/// The payload of [`HEARTBEAT`].
pub(crate) const HEARTBEAT_PAYLOAD: [u8; 3] = [0x88, 0x01, 0x01];
/// The ack in the sidecar's form, so that all acks have the same length.
pub(crate) const ACK: [u8; 7] = [0x82, 0x05, 0x52, 0x00, 0xd0, 0x01, 0x01];

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A whole frame of a server.
pub(crate) fn plain(payload: &[u8]) -> Vec<u8> {
    let mut frame = header(payload.len());
    frame.extend_from_slice(payload);
    frame
}

/// The header of a server's binary message.
pub(crate) fn header(length: usize) -> Vec<u8> {
    match length {
        0..126 => vec![0x82, length as u8],
        126..0x1_0000 => [&[0x82, 126][..], &(length as u16).to_be_bytes()].concat(),
        _ => [&[0x82, 127][..], &(length as u64).to_be_bytes()].concat(),
    }
}

/// A `BackMsg { rerun_script }` with a payload of `length` bytes, 3 to 129, masked.
pub(crate) fn rerun(length: usize) -> Vec<u8> {
    let mut payload = vec![0x5a, (length - 2) as u8];
    payload.resize(length, b'w');
    masked(0x82, &payload)
}

/// A whole frame of a browser, with a payload of at most 255 bytes.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len();
    let mut frame = match length {
        0..126 => vec![first, 0x80 | length as u8],
        _ => vec![first, 0xfe, 0, length as u8],
    };
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// The payload length in a server's header; `None` if that is incomplete.
pub(crate) fn payload_length(header: &[u8]) -> Option<usize> {
    match header {
        [_, length @ 0..126] => Some(usize::from(*length)),
        [_, 126, length @ ..] => Some(usize::from(u16::from_be_bytes(length.try_into().ok()?))),
        [_, 127, length @ ..] => usize::try_from(u64::from_be_bytes(length.try_into().ok()?)).ok(),
        _ => None,
    }
}

/// The start of a `ForwardMsg { hash, metadata, delta }` of `length` bytes, as Streamlit encodes it. The remaining bytes
/// may have any value.
pub(crate) fn delta_front(length: usize) -> Vec<u8> {
    let mut front = vec![0x0a, 32];
    front.extend([b'h'; 32]);
    front.extend([0x12, 0x02, 0x20, 0x00, 0x2a]);
    let mut rest = length.saturating_sub(front.len() + 1);
    // A varint needs one byte per seven bits of its value.
    let mut limit = 0x80;
    while rest >= limit {
        rest -= 1;
        limit <<= 7;
    }
    while rest >= 0x80 {
        front.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    front.push(rest as u8);
    front.truncate(length);
    front
}

/// A whole frame with a delta of `length` bytes.
pub(crate) fn delta(length: usize) -> Vec<u8> {
    let mut payload = delta_front(length);
    payload.resize(length, b'd');
    plain(&payload)
}

/// A whole frame with the `ForwardMsg { new_session }` of a server of this version.
pub(crate) fn new_session(version: &str) -> Vec<u8> {
    let field = |tag: u8, value: &[u8]| [&[tag, value.len() as u8][..], value].concat();
    let environment = field(0x1a, &field(0x0a, version.as_bytes()));
    let initialize = field(0x0a, &environment);
    plain(&[field(0x0a, b"0123456789abcdef0123456789abcdef"), field(0x22, &initialize)].concat())
}

/// The value of a key in a path's query.
pub(crate) fn query<'a>(path: &'a str, key: &str) -> Option<&'a str> {
    let (_path, query) = path.split_once('?')?;
    query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
}

/// A number in a path's query.
pub(crate) fn number(path: &str, key: &str) -> Option<usize> {
    query(path, key)?.parse().ok()
}

/// A browser's handshake.
pub(crate) fn handshake(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Origin: http://app.test\r\nSec-WebSocket-Protocol: streamlit\r\n\
         User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0\r\n\
         Accept-Language: en-GB,en;q=0.9\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
}

/// Connects as a browser. Reads the greeting of a page that can resume, and the first message of a server with `version`
/// in its query.
pub(crate) async fn open(at: SocketAddr, path: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(at).await.context("cannot connect")?;
    stream.set_nodelay(true)?;
    stream.write_all(handshake(&page::offer(path)).as_bytes()).await?;
    let mut came = Vec::with_capacity(1024);
    let head = loop {
        ensure!(stream.read_buf(&mut came).await? > 0, "closed during the handshake");
        if let Some(at) = came.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
    };
    ensure!(came.starts_with(b"HTTP/1.1 101 "), "rejected: {}", came.escape_ascii());
    let mut start = head;
    if page::offers(path) {
        while came.len() < head + 2 {
            ensure!(stream.read_buf(&mut came).await? > 0, "closed before the greeting");
        }
        start += 2 + usize::from(came[head + 1]);
    }
    let first = query(path, "version").map(new_session).unwrap_or_default();
    let mut rest = vec![0; (start + first.len()).saturating_sub(came.len())];
    stream.read_exact(&mut rest).await?;
    came.extend(rest);
    let greeting = &came[head..start];
    let is_greeted = greeting.is_empty() || greeting[2..].starts_with(b"_heartbeat resumable ");
    ensure!(is_greeted, "not a greeting: {}", greeting.escape_ascii());
    ensure!(came[start..] == first, "not the server's first message: {}", came[start..].escape_ascii());
    Ok(stream)
}
