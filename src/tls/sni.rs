//! Selects the certificate for the name that a browser requests (SNI, RFC 6066 §3).
//!
//! Invariant: without a requested name or a match, the first certificate is used.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_cert::Certificate;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// Certificates by their DNS names, in lower case.
#[derive(Debug)]
pub(super) struct Certificates {
    default: Arc<CertifiedKey>,
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By the part after `*.`, which matches one label (RFC 9525 §6.3).
    wildcard: HashMap<String, Arc<CertifiedKey>>,
}

impl Certificates {
    pub(super) fn new(first: CertifiedKey, names: &[String]) -> Self {
        let first = Arc::new(first);
        let (exact, wildcard) = (HashMap::new(), HashMap::new());
        let mut certificates = Self { default: first.clone(), exact, wildcard };
        certificates.insert(&first, names);
        certificates
    }

    /// Adds a certificate, for names that no earlier one covers.
    pub(super) fn add(&mut self, pair: CertifiedKey, names: &[String]) {
        self.insert(&Arc::new(pair), names);
    }

    fn insert(&mut self, pair: &Arc<CertifiedKey>, names: &[String]) {
        for name in names {
            let (names, name) = match name.strip_prefix("*.") {
                Some(parent) => (&mut self.wildcard, parent),
                None => (&mut self.exact, name.as_str()),
            };
            names.entry(name.to_owned()).or_insert_with(|| pair.clone());
        }
    }

    fn find(&self, name: &str) -> &Arc<CertifiedKey> {
        let name = name.to_ascii_lowercase();
        let exact = self.exact.get(&name);
        let parent =
            || name.split_once('.').filter(|(label, _parent)| !label.is_empty()).map(|(_label, parent)| parent);
        exact.or_else(|| self.wildcard.get(parent()?)).unwrap_or(&self.default)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(hello.server_name().map_or(&self.default, |name| self.find(name)).clone())
    }
}

/// The DNS names of a certificate. Browsers can request no other kind of name.
///
/// # Errors
/// The extension is malformed or duplicated.
pub(super) fn names(certificate: &Certificate) -> Result<Vec<String>, x509_cert::der::Error> {
    let names = certificate.tbs_certificate().get_extension::<SubjectAltName>()?;
    let dns = |name: GeneralName| match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_ascii_lowercase()),
        _ => None,
    };
    Ok(names.into_iter().flat_map(|(_critical, SubjectAltName(names))| names).filter_map(dns).collect())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::PrivateKeyDer;
    use x509_cert::der::Decode as _;

    use super::*;

    fn pair(dns_names: &[&str]) -> (CertifiedKey, Vec<String>) {
        let key = KeyPair::generate().expect("a key");
        let dns_names: Vec<_> = dns_names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(dns_names).expect("names").self_signed(&key).expect("signed");
        let parsed = Certificate::from_der(certificate.der()).expect("a certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let chain = vec![certificate.der().clone()];
        let pair = CertifiedKey::from_der(chain, key, &super::super::provider()).expect("a pair");
        (pair, names(&parsed).expect("names"))
    }

    #[test]
    fn exact_names_win_over_wildcards_and_earlier_certificates_over_later() {
        let all = [
            &["first.example", "192.0.2.1"][..],
            &["*.example", "*.Apps.example"],
            &["a.example", "b.apps.example"],
            &["a.example", "*.apps.example", "first.example"],
        ];
        let (first, first_names) = pair(all[0]);
        assert_eq!(first_names, ["first.example"], "an address is not a DNS name");
        let mut leaves = vec![first.cert[0].clone()];
        let mut certificates = Certificates::new(first, &first_names);
        for names in &all[1..] {
            let (pair, names) = pair(names);
            leaves.push(pair.cert[0].clone());
            certificates.add(pair, &names);
        }
        for (requested, expected) in [
            ("first.example", 0),
            ("A.Example", 2),
            ("b.example", 1),
            ("apps.example", 1),
            ("b.apps.example", 2),
            ("c.apps.example", 1),
            ("c.b.apps.example", 0),
            ("example", 0),
            (".example", 0),
            ("", 0),
            ("192.0.2.1", 0),
            ("other.test", 0),
        ] {
            assert_eq!(certificates.find(requested).cert[0], leaves[expected], "{requested}");
        }
    }
}
