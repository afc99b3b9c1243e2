//! The PROXY protocol: a header gives the client that it names, and is read exactly to its last byte.
#![no_main]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use heartbeat_sidecar_fuzz::input::Input;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, ReadBuf};

#[path = "../../../src/server/proxy_protocol.rs"]
#[allow(dead_code)]
mod proxy_protocol;
use proxy_protocol::client;

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The maximum header length of version 1, and of version 2.
const MAX_HEADER_BYTES: [usize; 2] = [107, 16 + 4096];

/// A connection whose bytes arrive in pieces. It ends with the input.
struct Pieces<'a> {
    rest: &'a [u8],
    /// The lengths of the next pieces.
    sizes: [u8; 2],
    /// Whether the last poll returned `Pending`.
    pending: bool,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.pending = !self.pending;
        if self.pending {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.sizes.rotate_left(1);
        let length = (1 + usize::from(self.sizes[0])).min(buffer.remaining()).min(self.rest.len());
        let (piece, rest) = self.rest.split_at(length);
        self.rest = rest;
        buffer.put_slice(piece);
        Poll::Ready(Ok(()))
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let sizes = [input.byte(), input.byte()];
    let bytes = input.rest();
    let mut pieces = Pieces { rest: bytes, sizes, pending: false };
    let result = run(&mut pieces);
    let read = bytes.len() - pieces.rest.len();
    assert!(read <= MAX_HEADER_BYTES[usize::from(bytes.first() == Some(&b'\r'))].min(bytes.len()), "read {read} bytes");
    if let Some((named, length)) = model(bytes, true) {
        assert_eq!((result.as_ref(), read), (Ok(&named), length), "must read exactly the header");
    }
    if let Ok(address) = result {
        assert_eq!(Some((address, read)), model(bytes, false), "accepted an invalid header");
    }
});

fn run(pieces: &mut Pieces<'_>) -> Result<IpAddr, String> {
    let mut reading = pin!(client(pieces, PEER));
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(result) = reading.as_mut().poll(&mut cx) {
            return result.map_err(|error| error.to_string());
        }
    }
}

/// The client that a header names and the header's length, by the specification (§2.1, §2.2). Only `strict` checks the
/// exact form of ports, which the sidecar does not use.
fn model(bytes: &[u8], strict: bool) -> Option<(IpAddr, usize)> {
    match bytes.first()? {
        b'P' => line(bytes, strict),
        b'\r' => binary(bytes),
        _ => None,
    }
}

fn line(bytes: &[u8], strict: bool) -> Option<(IpAddr, usize)> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    if end + 2 > MAX_HEADER_BYTES[0] {
        return None;
    }
    if bytes.starts_with(b"PROXY UNKNOWN ") {
        return Some((PEER, end + 2));
    }
    let text = str::from_utf8(&bytes[..end]).ok()?;
    let words: Vec<_> = text.split(' ').collect();
    let address = match words[..] {
        ["PROXY", "UNKNOWN"] => PEER,
        ["PROXY", family, source, destination, from, to] => {
            let port = |text: &str| text.parse::<u16>().is_ok_and(|port| !strict || port.to_string() == text);
            if !port(from) || !port(to) {
                return None;
            }
            match family {
                "TCP4" => destination.parse::<Ipv4Addr>().and(source.parse::<Ipv4Addr>()).ok()?.into(),
                "TCP6" => destination.parse::<Ipv6Addr>().and(source.parse::<Ipv6Addr>()).ok()?.into(),
                _ => return None,
            }
        }
        _ => return None,
    };
    Some((address, end + 2))
}

fn binary(bytes: &[u8]) -> Option<(IpAddr, usize)> {
    let header = bytes.get(..16)?;
    let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
    if !header.starts_with(SIGNATURE) || length > MAX_HEADER_BYTES[1] - 16 {
        return None;
    }
    let rest = bytes.get(16..16 + length)?;
    // The required length by family. Protocols 0, 1 and 2 are unspecified, stream and datagram.
    let (family, protocol) = (header[13] >> 4, header[13] & 0xf);
    let needed = [0, 12, 36, 216].get(usize::from(family)).copied().filter(|_| protocol <= 2)?;
    if rest.len() < needed {
        return None;
    }
    let address = match (header[12], family) {
        (0x20, _) => PEER,
        (0x21, 1) => IpAddr::from(<[u8; 4]>::try_from(&rest[..4]).expect("four")),
        (0x21, 2) => IpAddr::from(<[u8; 16]>::try_from(&rest[..16]).expect("sixteen")),
        (0x21, _) => PEER,
        _ => return None,
    };
    Some((address, 16 + length))
}
