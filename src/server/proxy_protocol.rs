//! Reads the client's address from the PROXY protocol header, versions 1 and 2, of a load balancer.
//!
//! Invariant: no byte after the header is read.

use std::io;
use std::net::IpAddr;

use ppp::{HeaderResult, v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Maximum line of version 1 (PROXY protocol specification §2.1), CRLF included.
const MAX_LINE_BYTES: usize = 107;
/// The fixed part of version 2, with the length of the rest (§2.2).
const PREFIX_BYTES: usize = 16;
/// Maximum rest of version 2 that is accepted: addresses take 36 bytes or, for Unix sockets, 216; TLS details may
/// follow.
const MAX_REST_BYTES: usize = 4096;

/// Why the start of a connection is rejected.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyProtocolError {
    /// The connection ended or broke.
    #[error("the connection ended before its PROXY protocol header")]
    Io(#[from] io::Error),
    /// The header is malformed.
    #[error("missing or malformed PROXY protocol header")]
    Malformed,
    /// The peer is not a trusted proxy.
    #[error("the peer is not in trusted_proxies")]
    Untrusted,
    /// The header took too long.
    #[error("the PROXY protocol header took longer than limits.idle_timeout")]
    TimedOut,
}

/// The client's address; `peer` itself if the header names none, as in the load balancer's own health checks.
///
/// # Errors
/// The connection's error, or a malformed header.
pub(super) async fn client(stream: &mut (impl AsyncRead + Unpin), peer: IpAddr) -> Result<IpAddr, ProxyProtocolError> {
    let header = read(stream).await?;
    if header.starts_with(b"PROXY UNKNOWN ") {
        // The rest must be ignored (§2.1), but the library accepts addresses only.
        return Ok(peer);
    }
    if header.starts_with(b"P") && header[..header.len() - 2].contains(&b'\r') {
        // The library treats it as a separator, like a space.
        return Err(ProxyProtocolError::Malformed);
    }
    let named = match HeaderResult::parse(&header) {
        HeaderResult::V1(Ok(header)) => match header.addresses {
            v1::Addresses::Tcp4(addresses) => Some(addresses.source_address.into()),
            v1::Addresses::Tcp6(addresses) => Some(addresses.source_address.into()),
            v1::Addresses::Unknown => None,
        },
        HeaderResult::V2(Ok(header)) => match (header.command, header.addresses) {
            (v2::Command::Proxy, v2::Addresses::IPv4(addresses)) => Some(addresses.source_address.into()),
            (v2::Command::Proxy, v2::Addresses::IPv6(addresses)) => Some(addresses.source_address.into()),
            (v2::Command::Proxy, v2::Addresses::Unix(_) | v2::Addresses::Unspecified) | (v2::Command::Local, _) => None,
        },
        HeaderResult::V1(Err(_)) | HeaderResult::V2(Err(_)) => return Err(ProxyProtocolError::Malformed),
    };
    Ok(named.unwrap_or(peer))
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, ProxyProtocolError> {
    let mut header = vec![stream.read_u8().await?];
    match header[0] {
        b'P' => {
            // Byte by byte: the line has no length field, and what follows must stay unread.
            while !header.ends_with(b"\r\n") {
                if header.len() == MAX_LINE_BYTES {
                    return Err(ProxyProtocolError::Malformed);
                }
                header.push(stream.read_u8().await?);
            }
        }
        b'\r' => {
            header.resize(PREFIX_BYTES, 0);
            stream.read_exact(&mut header[1..]).await?;
            let rest = usize::from(u16::from_be_bytes([header[PREFIX_BYTES - 2], header[PREFIX_BYTES - 1]]));
            if rest > MAX_REST_BYTES {
                return Err(ProxyProtocolError::Malformed);
            }
            header.resize(PREFIX_BYTES + rest, 0);
            stream.read_exact(&mut header[PREFIX_BYTES..]).await?;
        }
        _ => return Err(ProxyProtocolError::Malformed),
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

    /// The result, and the unread bytes.
    async fn parsed(bytes: &[u8]) -> (Result<String, String>, Vec<u8>) {
        let mut stream = bytes;
        let result = client(&mut stream, "10.0.0.1".parse().expect("an address")).await;
        (result.map(|address| address.to_string()).map_err(|error| error.to_string()), stream.to_vec())
    }

    #[tokio::test]
    async fn both_versions_give_the_client_address_and_leave_later_bytes_unread() {
        let v2 = |command: u8, family: u8, rest: &[u8]| {
            [SIGNATURE, &[0x20 | command, family, 0, rest.len() as u8], rest, b"GET /"].concat()
        };
        let v4 = [192, 0, 2, 1, 10, 0, 0, 1, 0x80, 0, 0, 80];
        let tlv = [&v4[..], &[4, 0, 1, 0]].concat();
        let v6 = [&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7][..], &[0; 20]].concat();
        for (bytes, address) in [
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 32768 80\r\nGET /".to_vec(), "192.0.2.1"),
            (b"PROXY TCP6 2001:db8::7 ::1 32768 80\r\nGET /".to_vec(), "2001:db8::7"),
            (b"PROXY UNKNOWN\r\nGET /".to_vec(), "10.0.0.1"),
            (b"PROXY UNKNOWN a b c d e \xff\r\nGET /".to_vec(), "10.0.0.1"),
            (v2(1, 0x11, &v4), "192.0.2.1"),
            (v2(1, 0x11, &tlv), "192.0.2.1"),
            (v2(1, 0x21, &v6), "2001:db8::7"),
            (v2(0, 0x00, &[]), "10.0.0.1"),
            (v2(0, 0x11, &v4), "10.0.0.1"),
        ] {
            assert_eq!(parsed(&bytes).await, (Ok(address.to_owned()), b"GET /".to_vec()), "{}", bytes.escape_ascii());
        }
    }

    #[tokio::test]
    async fn malformed_headers_are_rejected() {
        let long = [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat();
        let giant = [SIGNATURE, &[0x21, 0x11, 0xff, 0xff]].concat();
        let short = [SIGNATURE, &[0x21, 0x11, 0, 2, 1, 2]].concat();
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 x y 1 2\r\n",
            b"PROXY\rTCP4 192.0.2.1 10.0.0.1 1 2\r\n",
            b"PROXY",
            b"",
            &long,
            &giant,
            &short,
            b"\r\n\r\n",
        ] {
            assert!(parsed(bytes).await.0.is_err(), "{}", bytes.escape_ascii());
        }
    }
}
