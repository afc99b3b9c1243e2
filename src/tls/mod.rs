//! Builds rustls configurations from certificate and key files, and reloads them.

mod pem;
mod reload;
mod sni;

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

pub use self::pem::{PemContents, PemFile};
pub use self::reload::CertificateReloader;
use self::sni::Certificates;

/// ALPN protocols (RFC 7301) offered to browsers, the preferred first; HTTP/2 only if it is on. Browsers use HTTP/1.1
/// for websockets, because the sidecar does not offer websockets over HTTP/2 (RFC 8441 §3).
const LISTENER_PROTOCOLS: [&[u8]; 3] = [b"h2", b"http/1.1", b"http/1.0"];
/// ALPN protocol requested from an app: the connection may become a websocket.
const UPSTREAM_PROTOCOL: &[u8] = b"http/1.1";

/// Why TLS cannot be set up: a setting with its file, and the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{subject}: {reason}")]
pub struct TlsError {
    subject: String,
    reason: String,
}

/// Files from which a TLS configuration is built.
pub trait PemFiles {
    /// The resulting configuration.
    type Config;

    /// All files.
    fn files(&self) -> Vec<PemFile<'_>>;

    /// Builds it from their contents, in the order of [`PemFiles::files`].
    ///
    /// # Errors
    /// Names the invalid file.
    fn build(&self, contents: &[PemContents<'_>]) -> Result<BuiltConfig<Self::Config>, TlsError>;
}

/// A configuration built from files.
pub struct BuiltConfig<C> {
    /// For rustls.
    pub config: C,
    /// Earliest expiry of the sidecar's own certificates, in seconds of Unix time; 0 if it has none.
    pub not_after: u64,
}

/// A listener's certificates, and the CAs of client certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerFiles {
    /// PEM: the certificate and its intermediates.
    pub certificate: PathBuf,
    /// PEM: PKCS #8, PKCS #1 or SEC 1.
    pub key: PathBuf,
    /// PEM: CAs that must have issued a client's certificate; `None` requests none.
    pub client_ca: Option<PathBuf>,
    /// Certificates for further names.
    pub others: Vec<CertificateFiles>,
    /// Whether HTTP/2 is offered beside HTTP/1.1.
    pub http2: bool,
}

/// A certificate and its key, each a PEM file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// With its intermediates.
    pub certificate: PathBuf,
    /// PKCS #8, PKCS #1 or SEC 1.
    pub key: PathBuf,
}

/// Files for TLS to apps: trusted roots and client certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// PEM: trusted roots; `None` trusts the system's.
    pub ca: Option<PathBuf>,
    /// PEM: certificate and key.
    pub pair: Option<(PathBuf, PathBuf)>,
}

impl PemFiles for ListenerFiles {
    type Config = ServerConfig;

    fn files(&self) -> Vec<PemFile<'_>> {
        let first = [pem_file("tls.certificate", &self.certificate), pem_file("tls.key", &self.key)];
        let others = self.others.iter().flat_map(|CertificateFiles { certificate, key }| {
            [pem_file("tls.certificates.certificate", certificate), pem_file("tls.certificates.key", key)]
        });
        first.into_iter().chain(others).chain(self.client_ca.as_ref().map(|ca| pem_file("tls.client_ca", ca))).collect()
    }

    fn build(&self, contents: &[PemContents<'_>]) -> Result<BuiltConfig<ServerConfig>, TlsError> {
        let (certificates, not_after) = self.certificates(contents)?;
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.expect("ring has suites for every version");
        let builder = match (&self.client_ca, contents.last()) {
            (Some(_), Some(ca)) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider()).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| ca.certificate_error(error))?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(certificates));
        config.alpn_protocols =
            LISTENER_PROTOCOLS[usize::from(!self.http2)..].iter().map(|protocol| protocol.to_vec()).collect();
        // TLS scanners check for this; every suite is strong.
        config.ignore_client_order = true;
        config.ticketer = ring::Ticketer::new().map_err(|error| contents[1].error(error))?;
        Ok(BuiltConfig { config, not_after })
    }
}

impl ListenerFiles {
    /// All certificates, and the earliest expiry.
    fn certificates(&self, contents: &[PemContents<'_>]) -> Result<(Certificates, u64), TlsError> {
        let first = pair(&contents[0], &contents[1])?;
        let parsed = parsed(&contents[0], &first)?;
        let mut not_after = not_after(&parsed);
        let mut certificates = Certificates::new(first, &names(&contents[0], &parsed)?);
        for contents in contents[2..].chunks_exact(2).take(self.others.len()) {
            let other = pair(&contents[0], &contents[1])?;
            let parsed = self::parsed(&contents[0], &other)?;
            let names = names(&contents[0], &parsed)?;
            if names.is_empty() {
                return Err(contents[0].error("has no DNS name (subjectAltName) that a browser can request"));
            }
            not_after = not_after.min(self::not_after(&parsed));
            certificates.add(other, &names);
        }
        Ok((certificates, not_after))
    }
}

impl PemFiles for ClientFiles {
    type Config = ClientConfig;

    fn files(&self) -> Vec<PemFile<'_>> {
        let pair = self.pair.iter().flat_map(|(certificate, key)| {
            [pem_file("upstream_tls.certificate", certificate), pem_file("upstream_tls.key", key)]
        });
        pair.chain(self.ca.as_ref().map(|ca| pem_file("upstream_tls.ca", ca))).collect()
    }

    fn build(&self, contents: &[PemContents<'_>]) -> Result<BuiltConfig<ClientConfig>, TlsError> {
        let roots = match (&self.ca, contents.last()) {
            (Some(_), Some(ca)) => roots(ca)?,
            _ => system_roots()?,
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        let verifier = verifier.expect("at least one root, and no revocation list");
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.expect("ring has suites for every version").with_webpki_verifier(verifier);
        let (mut config, not_after) = match &self.pair {
            None => (builder.with_no_client_auth(), 0),
            Some(_) => {
                let pair = pair(&contents[0], &contents[1])?;
                let not_after = not_after(&parsed(&contents[0], &pair)?);
                (builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair))), not_after)
            }
        };
        config.alpn_protocols = vec![UPSTREAM_PROTOCOL.to_vec()];
        Ok(BuiltConfig { config, not_after })
    }
}

/// Reads the files, and builds the configuration from them.
///
/// # Errors
/// Names the invalid file.
pub fn build<F: PemFiles>(files: &F) -> Result<BuiltConfig<F::Config>, TlsError> {
    let contents: Vec<_> = files.files().into_iter().map(PemFile::read).collect::<Result<_, _>>()?;
    files.build(&contents)
}

/// The crypto provider, named explicitly so that nothing depends on what else is linked.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn pem_file<'a>(setting: &'static str, path: &'a PathBuf) -> PemFile<'a> {
    PemFile { setting, path }
}

fn pair(certificate: &PemContents<'_>, key: &PemContents<'_>) -> Result<CertifiedKey, TlsError> {
    CertifiedKey::from_der(certificate.certificates()?, key.key()?, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            let certificate = certificate.file.path.display();
            key.error(format_args!("is not the key of the certificate in {certificate}"))
        }
        rustls::Error::InvalidCertificate(_) => certificate.certificate_error(error),
        error => key.error(format_args!("contains no usable RSA, ECDSA or Ed25519 key ({error})")),
    })
}

fn roots(file: &PemContents<'_>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in file.certificates()? {
        roots.add(certificate).map_err(|error| file.certificate_error(error))?;
    }
    Ok(roots)
}

/// The system's trusted roots; certificates that rustls cannot read are skipped.
fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _ignored) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let reason = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
        let reason = format!("{reason}; name a file of root certificates in upstream_tls.ca or SSL_CERT_FILE");
        return Err(TlsError { subject: "the system's root certificates".to_owned(), reason });
    }
    Ok(roots)
}

fn parsed(file: &PemContents<'_>, pair: &CertifiedKey) -> Result<Certificate, TlsError> {
    let leaf = pair.end_entity_cert().map_err(|error| file.certificate_error(error))?;
    Certificate::from_der(leaf).map_err(|error| file.certificate_error(error))
}

fn names(file: &PemContents<'_>, certificate: &Certificate) -> Result<Vec<String>, TlsError> {
    sni::names(certificate).map_err(|error| file.certificate_error(error))
}

fn not_after(certificate: &Certificate) -> u64 {
    certificate.tbs_certificate().validity().not_after.to_unix_duration().as_secs()
}
