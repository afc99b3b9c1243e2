//! Pure parsing of RFC 6455: bytes in, marks out.

pub mod frame;
pub mod inflate;
pub mod scanner;
