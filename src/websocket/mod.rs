//! RFC 6455 on the wire. Pure: bytes in, marks out.

pub mod frame;
pub mod inflate;
pub mod scanner;
