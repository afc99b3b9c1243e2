//! Certificates and keys: files in, what rustls speaks with out, and anew when the files change.
//!
//! Law: what is broken never replaces what works.

mod pem;
mod sni;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

pub use self::pem::{Contents, PemFile};
use self::sni::Certificates;

/// What browsers are offered by ALPN (RFC 7301), the best first; HTTP/2 if it is on. For websockets they ask for HTTP/1.1 by
/// themselves, since nothing here says that HTTP/2 carries them (RFC 8441 §3).
const SPOKEN: [&[u8]; 3] = [b"h2", b"http/1.1", b"http/1.0"];
/// What an app is asked for: it may want to speak websocket.
const ASKED_FOR: &[u8] = b"http/1.1";

/// Why there is no TLS: a setting with its file, and what is wrong with that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{subject}: {reason}")]
pub struct TlsError {
    subject: String,
    reason: String,
}

/// Files that TLS is made of.
pub trait TlsFiles {
    /// What is made of them.
    type Config;

    /// All of them.
    fn files(&self) -> Vec<PemFile<'_>>;

    /// Makes it of their contents, in the order of [`TlsFiles::files`].
    ///
    /// # Errors
    /// Names the file that is to blame.
    fn make(&self, contents: &[Contents<'_>]) -> Result<Built<Self::Config>, TlsError>;
}

/// What is made of files.
pub struct Built<C> {
    /// For rustls.
    pub config: C,
    /// When the first of the own certificates expires, in seconds of Unix time; 0 if there is none.
    pub not_after: u64,
}

/// What a listener shows, and whom it asks for a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerFiles {
    /// PEM: the certificate and those between it and its root.
    pub certificate: PathBuf,
    /// PEM: PKCS #8, PKCS #1 or SEC 1.
    pub key: PathBuf,
    /// PEM: clients must have a certificate of one of these; `None` asks for none.
    pub client_ca: Option<PathBuf>,
    /// What is shown to those who ask for a name that one of these is for, and the pair above is not.
    pub others: Vec<Pair>,
    /// Whether HTTP/2 is offered beside HTTP/1.1.
    pub http2: bool,
}

/// A certificate and its key, each a PEM file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// With those between it and its root.
    pub certificate: PathBuf,
    /// PKCS #8, PKCS #1 or SEC 1.
    pub key: PathBuf,
}

/// Whom a client of TLS believes, and what it shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// PEM: who is believed; `None` believes the system's roots.
    pub ca: Option<PathBuf>,
    /// PEM: certificate and key.
    pub pair: Option<(PathBuf, PathBuf)>,
}

/// What was made last of files that worked; clones of what [`Live::current`] gives outlive a change.
pub struct Live<M: TlsFiles> {
    material: M,
    current: RwLock<Arc<M::Config>>,
}

/// Looks whether files have changed.
pub struct Watcher<M: TlsFiles> {
    live: Arc<Live<M>>,
    /// What was there at the last look, and what was judged last.
    seen: Result<u64, TlsError>,
    judged: Result<u64, TlsError>,
}

impl<M: TlsFiles> Live<M> {
    /// Makes it of the files as they are; a watcher for what becomes of them, and when the own certificate expires.
    ///
    /// # Errors
    /// Names the file that is to blame.
    pub fn load(material: M) -> Result<(Watcher<M>, u64), TlsError> {
        let contents = read(&material)?;
        let Built { config, not_after } = material.make(&contents)?;
        let (seen, judged) = (Ok(print(&contents)), Ok(print(&contents)));
        drop(contents);
        let live = Arc::new(Self { material, current: RwLock::new(Arc::new(config)) });
        Ok((Watcher { live, seen, judged }, not_after))
    }

    /// What the next connection is to use.
    pub fn current(&self) -> Arc<M::Config> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<M: TlsFiles> Watcher<M> {
    /// What is watched.
    pub fn live(&self) -> Arc<Live<M>> {
        self.live.clone()
    }

    /// Looks once, and takes what has changed if two looks have seen the same: a pair of files is not replaced at one
    /// moment. Answers what became of a change: when the new certificate expires, or why the old one stays. Reads files.
    pub fn look(&mut self) -> Option<Result<u64, TlsError>> {
        let contents = read(&self.live.material);
        let now = contents.as_ref().map(|contents| print(contents)).map_err(Clone::clone);
        if now != self.seen {
            self.seen = now;
            return None;
        }
        if now == self.judged {
            return None;
        }
        self.judged = now;
        let made = contents.and_then(|contents| self.live.material.make(&contents));
        Some(made.map(|Built { config, not_after }| {
            *self.live.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
            not_after
        }))
    }
}

impl TlsFiles for ListenerFiles {
    type Config = ServerConfig;

    fn files(&self) -> Vec<PemFile<'_>> {
        let first = [named("tls.certificate", &self.certificate), named("tls.key", &self.key)];
        let others = self.others.iter().flat_map(|Pair { certificate, key }| {
            [named("tls.certificates.certificate", certificate), named("tls.certificates.key", key)]
        });
        first.into_iter().chain(others).chain(self.client_ca.as_ref().map(|ca| named("tls.client_ca", ca))).collect()
    }

    fn make(&self, contents: &[Contents<'_>]) -> Result<Built<ServerConfig>, TlsError> {
        let (certificates, not_after) = self.certificates(contents)?;
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.expect("ring has suites for every version");
        let builder = match (&self.client_ca, contents.last()) {
            (Some(_), Some(ca)) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider()).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| ca.blame_certificate(error))?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(certificates));
        config.alpn_protocols = SPOKEN[usize::from(!self.http2)..].iter().map(|protocol| protocol.to_vec()).collect();
        // Scanners ask for it; every suite is a good one.
        config.ignore_client_order = true;
        config.ticketer = ring::Ticketer::new().map_err(|error| contents[1].blame(error))?;
        Ok(Built { config, not_after })
    }
}

impl ListenerFiles {
    /// All of them, and when the first of them expires.
    fn certificates(&self, contents: &[Contents<'_>]) -> Result<(Certificates, u64), TlsError> {
        let first = pair(&contents[0], &contents[1])?;
        let parsed = parsed(&contents[0], &first)?;
        let mut not_after = not_after(&parsed);
        let mut certificates = Certificates::new(first, &names(&contents[0], &parsed)?);
        for contents in contents[2..].chunks_exact(2).take(self.others.len()) {
            let other = pair(&contents[0], &contents[1])?;
            let parsed = self::parsed(&contents[0], &other)?;
            let names = names(&contents[0], &parsed)?;
            if names.is_empty() {
                return Err(contents[0].blame("is for no DNS name (subjectAltName) that a browser could ask for"));
            }
            not_after = not_after.min(self::not_after(&parsed));
            certificates.add(other, &names);
        }
        Ok((certificates, not_after))
    }
}

impl TlsFiles for ClientFiles {
    type Config = ClientConfig;

    fn files(&self) -> Vec<PemFile<'_>> {
        let pair = self.pair.iter().flat_map(|(certificate, key)| {
            [named("upstream_tls.certificate", certificate), named("upstream_tls.key", key)]
        });
        pair.chain(self.ca.as_ref().map(|ca| named("upstream_tls.ca", ca))).collect()
    }

    fn make(&self, contents: &[Contents<'_>]) -> Result<Built<ClientConfig>, TlsError> {
        let roots = match (&self.ca, contents.last()) {
            (Some(_), Some(ca)) => roots(ca)?,
            _ => system_roots()?,
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        let verifier = verifier.expect("some root is there, and no revocation list is malformed");
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
        config.alpn_protocols = vec![ASKED_FOR.to_vec()];
        Ok(Built { config, not_after })
    }
}

/// The one provider, named so that nothing depends on what else is linked.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn named<'a>(setting: &'static str, path: &'a PathBuf) -> PemFile<'a> {
    PemFile { setting, path }
}

fn read<M: TlsFiles>(material: &M) -> Result<Vec<Contents<'_>>, TlsError> {
    material.files().into_iter().map(PemFile::read).collect()
}

/// Tells contents apart without keeping a key in memory.
fn print(contents: &[Contents<'_>]) -> u64 {
    let mut hasher = DefaultHasher::new();
    contents.iter().for_each(|contents| contents.bytes.hash(&mut hasher));
    hasher.finish()
}

fn pair(certificate: &Contents<'_>, key: &Contents<'_>) -> Result<CertifiedKey, TlsError> {
    CertifiedKey::from_der(certificate.certificates()?, key.key()?, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            let certificate = certificate.file.path.display();
            key.blame(format_args!("is not the key of the certificate in {certificate}"))
        }
        rustls::Error::InvalidCertificate(_) => certificate.blame_certificate(error),
        error => key.blame(format_args!("holds no RSA, ECDSA or Ed25519 key that can be used ({error})")),
    })
}

fn roots(file: &Contents<'_>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in file.certificates()? {
        roots.add(certificate).map_err(|error| file.blame_certificate(error))?;
    }
    Ok(roots)
}

/// What the system's administrator believes; single certificates that rustls cannot read are left out.
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

fn parsed(file: &Contents<'_>, pair: &CertifiedKey) -> Result<Certificate, TlsError> {
    let leaf = pair.end_entity_cert().map_err(|error| file.blame_certificate(error))?;
    Certificate::from_der(leaf).map_err(|error| file.blame_certificate(error))
}

fn names(file: &Contents<'_>, certificate: &Certificate) -> Result<Vec<String>, TlsError> {
    sni::names(certificate).map_err(|error| file.blame_certificate(error))
}

fn not_after(certificate: &Certificate) -> u64 {
    certificate.tbs_certificate().validity().not_after.to_unix_duration().as_secs()
}
