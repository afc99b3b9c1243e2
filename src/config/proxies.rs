//! Proxies whose forwarding headers are trusted.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::values::InvalidValue;

/// What `private` stands for: loopback (RFC 1122, RFC 4291), private (RFC 1918) and unique local (RFC 4193) addresses.
const PRIVATE: [&str; 6] = ["127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7"];

/// Proxies in front of the sidecar, whose `X-Forwarded-*` is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedProxies {
    /// As written, in normalized form.
    text: String,
    networks: Vec<IpNet>,
}

impl TrustedProxies {
    /// Whether a peer is trusted.
    pub fn contains(&self, peer: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&peer.to_canonical()))
    }

    /// Whether no peer is trusted.
    pub(super) fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }

    /// Whether a whole family of addresses is trusted.
    pub(super) fn is_everyone(&self) -> bool {
        self.networks.iter().any(|network| network.prefix_len() == 0)
    }
}

impl Default for TrustedProxies {
    /// An ingress or a load balancer of the same cluster has a private address; internet clients do not.
    fn default() -> Self {
        "private".parse().expect("it is one of the words")
    }
}

impl FromStr for TrustedProxies {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let words: Vec<_> = text.split(',').map(str::trim).collect();
        let mut networks = Vec::new();
        for word in &words {
            match *word {
                "none" if words.len() == 1 => {}
                "private" => networks.extend(PRIVATE.iter().filter_map(|network| network.parse::<IpNet>().ok())),
                network => networks.push(parse(network).ok_or_else(|| {
                    InvalidValue(format!(
                        "{network:?} is not a network: write addresses or CIDRs with commas between, such as 10.0.0.0/8, \
                         2001:db8::1, or private, or none"
                    ))
                })?),
            }
        }
        Ok(Self { text: words.join(", "), networks })
    }
}

impl fmt::Display for TrustedProxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn parse(network: &str) -> Option<IpNet> {
    network.parse().ok().or_else(|| network.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted(proxies: &str, peer: &str) -> bool {
        proxies.parse::<TrustedProxies>().expect(proxies).contains(peer.parse().expect(peer))
    }

    #[test]
    fn private_networks_are_trusted_by_default_and_public_ones_are_not() {
        let default = TrustedProxies::default().to_string();
        for peer in ["127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.0.1", "::1", "fd00::1", "::ffff:10.0.0.1"] {
            assert!(trusted(&default, peer), "{peer}");
        }
        for peer in ["8.8.8.8", "172.32.0.1", "2001:db8::1", "::ffff:8.8.8.8"] {
            assert!(!trusted(&default, peer), "{peer}");
        }
    }

    #[test]
    fn networks_and_addresses_can_be_combined() {
        let proxies = "203.0.113.0/24,2001:db8::7 , private";
        assert!(trusted(proxies, "203.0.113.9") && trusted(proxies, "2001:db8::7") && trusted(proxies, "10.0.0.1"));
        assert!(!trusted(proxies, "203.0.114.9") && !trusted(proxies, "2001:db8::8"));
        assert!(!trusted("none", "127.0.0.1"));
        assert_eq!(
            proxies.parse::<TrustedProxies>().expect(proxies).to_string(),
            "203.0.113.0/24, 2001:db8::7, private"
        );
    }

    #[test]
    fn invalid_networks_are_rejected() {
        for text in ["", "10.0.0.0/33", "host", "none, private", "10.0.0.0/8,,::1"] {
            assert!(text.parse::<TrustedProxies>().is_err(), "{text}");
        }
    }
}
