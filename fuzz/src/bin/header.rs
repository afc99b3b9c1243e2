//! Frame headers: a header is parsed only when complete, and encodes back to the same bytes.
#![no_main]

use heartbeat_sidecar::websocket::frame::{Header, MAX_HEADER_BYTES, Opcode, mask};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some(header) = Header::parse(bytes) else {
        assert!(bytes.len() < MAX_HEADER_BYTES, "the longest header was not parsed");
        return;
    };
    assert_eq!(encoded(&header), bytes[..header.length], "{header:?}");
    for cut in 0..header.length {
        assert_eq!(Header::parse(&bytes[..cut]), None, "cut at {cut}");
    }
    let Some(key) = header.mask else { return };
    let (payload, offset) = (&bytes[header.length..], header.payload_length / 2);
    let mut twice = payload.to_vec();
    mask(&mut twice, key, offset);
    mask(&mut twice, key, offset);
    assert_eq!(twice, payload);
});

/// The header's bytes. Its own length shows how the payload length was encoded.
fn encoded(header: &Header) -> Vec<u8> {
    let opcode = match header.opcode {
        Opcode::Continuation => 0x0,
        Opcode::Text => 0x1,
        Opcode::Binary => 0x2,
        Opcode::Close => 0x8,
        Opcode::Ping => 0x9,
        Opcode::Pong => 0xa,
        Opcode::Reserved(bits) => bits,
    };
    assert_eq!(header.opcode.is_control(), opcode >= 8);
    let key = header.mask.map_or(vec![], Vec::from);
    let bit = if header.mask.is_some() { 0x80 } else { 0 };
    let first = u8::from(header.fin) << 7 | header.reserved << 4 | opcode;
    let mut bytes = match header.length - key.len() {
        2 => vec![first, bit | u8::try_from(header.payload_length).expect("a short length")],
        4 => {
            [&[first, bit | 126][..], &u16::try_from(header.payload_length).expect("two bytes").to_be_bytes()].concat()
        }
        10 => [&[first, bit | 127][..], &header.payload_length.to_be_bytes()].concat(),
        other => panic!("a header cannot have {other} bytes before its key"),
    };
    bytes.extend(key);
    bytes
}
