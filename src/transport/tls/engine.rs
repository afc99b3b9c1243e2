//! One step of rustls' state machine, for client and server: records in, plaintext and records out.

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, InsufficientSizeError, UnbufferedStatus};

/// A connection of either side; both behave alike once they have keys.
pub(in crate::transport) enum Connection {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// An operation on a connection.
pub(super) enum Operation<'a> {
    /// Decrypt received records.
    Decrypt,
    /// Encrypt bytes.
    Encrypt(&'a [u8], &'a mut [u8]),
    /// Encrypt a `close_notify`.
    CloseNotify(&'a mut [u8]),
}

/// Result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More steps are needed.
    Continue,
    /// The peer sent its `close_notify`.
    PeerClosed,
    /// All complete records are processed.
    Done,
    /// Length of the records, in bytes.
    Encrypted(usize),
}

/// Bytes that wait, from `start` on. Owns no memory while empty.
#[derive(Default)]
pub(super) struct ByteQueue {
    bytes: Vec<u8>,
    start: usize,
}

impl ByteQueue {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn take(&mut self, count: usize) {
        self.start += count;
        if self.start == self.bytes.len() {
            *self = Self::default();
        }
    }
}

impl Connection {
    pub(super) fn is_handshaking(&self) -> bool {
        match self {
            Self::Server(connection) => connection.is_handshaking(),
            Self::Client(connection) => connection.is_handshaking(),
        }
    }

    /// The protocol chosen by ALPN (RFC 7301).
    pub(in crate::transport) fn protocol(&self) -> Option<&[u8]> {
        match self {
            Self::Server(connection) => connection.alpn_protocol(),
            Self::Client(connection) => connection.alpn_protocol(),
        }
    }

    /// Whether it has records of its own to send.
    pub(super) fn wants_write(&self) -> bool {
        match self {
            Self::Server(connection) => connection.wants_write(),
            Self::Client(connection) => connection.wants_write(),
        }
    }

    pub(super) fn step(
        &mut self,
        records: &mut [u8],
        operation: &mut Operation<'_>,
        sink: &mut dyn FnMut(&[u8]),
        unsent: &mut ByteQueue,
    ) -> (usize, Result<Step, rustls::Error>) {
        match self {
            Self::Server(connection) => step(connection.process_tls_records(records), operation, sink, unsent),
            Self::Client(connection) => step(connection.process_tls_records(records), operation, sink, unsent),
        }
    }
}

/// Handles one state of rustls' connection: plaintext goes to `sink`, records to send go to `unsent`. Returns the number
/// of bytes used.
fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    operation: &mut Operation<'_>,
    sink: &mut dyn FnMut(&[u8]),
    unsent: &mut ByteQueue,
) -> (usize, Result<Step, rustls::Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let result = || {
        Ok(match state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    sink(record.payload);
                }
                Step::Continue
            }
            ConnectionState::EncodeTlsData(mut data) => {
                if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) =
                    data.encode(&mut [])
                {
                    let at = unsent.bytes.len();
                    unsent.bytes.resize(at + required_size, 0);
                    data.encode(&mut unsent.bytes[at..]).map_err(general)?;
                }
                Step::Continue
            }
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                Step::Continue
            }
            ConnectionState::PeerClosed => Step::PeerClosed,
            ConnectionState::WriteTraffic(mut traffic) => match operation {
                Operation::Decrypt => Step::Done,
                Operation::Encrypt(bytes, records) => {
                    Step::Encrypted(traffic.encrypt(bytes, records).map_err(general)?)
                }
                Operation::CloseNotify(records) => {
                    Step::Encrypted(traffic.queue_close_notify(records).map_err(general)?)
                }
            },
            // Early data is never enabled; later rustls versions may add states.
            _ => Step::Done,
        })
    };
    let result = result();
    (discard, result)
}

fn general(error: impl std::fmt::Display) -> rustls::Error {
    rustls::Error::General(error.to_string())
}
