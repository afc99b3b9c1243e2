//! Limits what one client can use: open sockets, and handshakes per second.
//!
//! Invariant: no state is kept for a client of which nothing is counted.

mod capacity;
mod quota;
mod rate;
mod warning;

use std::net::{IpAddr, Ipv4Addr};

pub use self::capacity::Capacity;
pub use self::quota::{Permit, Quota};
pub use self::rate::Rate;
pub use self::warning::{LimitWarning, RateLimitedWarning};

/// One client: an IPv4 address, or the first 64 bits of an IPv6 address. A host chooses the remaining bits itself
/// (RFC 4291 §2.5.1), and may change them at any time (RFC 8981).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// The address.
    V4(Ipv4Addr),
    /// The prefix.
    V6(u64),
}

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: &str) -> Client {
        Client::from(address.parse::<IpAddr>().expect(address))
    }

    #[test]
    fn an_ipv6_host_is_one_client_under_all_its_addresses() {
        assert_eq!(client("2001:db8:0:1::7"), client("2001:db8:0:1:ffff::1"));
        assert_ne!(client("2001:db8:0:1::7"), client("2001:db8:0:2::7"));
        assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
        assert_ne!(client("::"), client("0.0.0.0"));
    }
}
