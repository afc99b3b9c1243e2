//! A simple model of protobuf's wire format: the top-level fields of a message, as every parser reads them.

/// The maximum nesting of groups: protobuf's own limit.
const DEPTH: usize = 100;

/// Members of `BackMsg.type`: field number and wire type (Streamlit 1.67).
pub const BACK: &[(u32, u8)] =
    &[(5, 0), (6, 0), (7, 0), (11, 2), (12, 0), (14, 0), (15, 0), (16, 2), (17, 0), (18, 2), (19, 2)];

/// Members of `ForwardMsg.type`: field number and wire type (Streamlit 1.67).
pub const FORWARD: &[(u32, u8)] = &[
    (4, 2),
    (5, 2),
    (6, 0),
    (9, 2),
    (10, 2),
    (11, 2),
    (12, 2),
    (13, 2),
    (14, 2),
    (15, 2),
    (16, 2),
    (18, 2),
    (19, 2),
    (20, 2),
    (21, 2),
    (22, 2),
    (23, 2),
    (24, 2),
    (25, 2),
    (26, 0),
    (27, 2),
    (28, 2),
];

/// The field number of the last of these members, and whether the whole message is valid.
pub fn last_member(mut bytes: &[u8], members: &[(u32, u8)]) -> (Option<u32>, bool) {
    let mut last = None;
    while !bytes.is_empty() {
        let Some((number, wire)) = key(&mut bytes) else { return (last, false) };
        if members.contains(&(number, wire)) {
            last = Some(number);
        }
        if skip(&mut bytes, number, wire, DEPTH).is_none() {
            return (last, false);
        }
    }
    (last, true)
}

fn key(bytes: &mut &[u8]) -> Option<(u32, u8)> {
    let key = u32::try_from(varint(bytes)?).ok()?;
    (key >> 3 > 0 && key & 7 < 6).then_some((key >> 3, (key & 7) as u8))
}

/// A varint has at most ten bytes; the tenth has one bit.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for at in 0..10 {
        let byte = *bytes.get(at)?;
        if at == 9 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            *bytes = &bytes[at + 1..];
            return Some(value);
        }
    }
    None
}

fn skip(bytes: &mut &[u8], number: u32, wire: u8, depth: usize) -> Option<()> {
    let length = match wire {
        0 => return varint(bytes).map(|_value| ()),
        1 => 8,
        2 => usize::try_from(varint(bytes)?).ok()?,
        3 => return skip_group(bytes, number, depth),
        5 => 4,
        _ => return None,
    };
    *bytes = bytes.get(length..)?;
    Some(())
}

fn skip_group(bytes: &mut &[u8], number: u32, depth: usize) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    loop {
        match key(bytes)? {
            (end, 4) => return (end == number).then_some(()),
            (inner, wire) => skip(bytes, inner, wire, depth)?,
        }
    }
}
