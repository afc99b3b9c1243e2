//! Certificates and keys: files in, what rustls speaks with out, and anew when the files change.
//!
//! Law: what is broken never replaces what works.

mod sni;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::{fs, io};

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use self::sni::Certificates;

/// A larger file is no certificate.
const MAX_BYTES: u64 = 1024 * 1024;

/// What browsers are offered by ALPN (RFC 7301), the best first; HTTP/2 if it is on. For websockets they ask for HTTP/1.1 by
/// themselves, since nothing here says that HTTP/2 carries them (RFC 8441 §3).
const SPOKEN: [&[u8]; 3] = [b"h2", b"http/1.1", b"http/1.0"];
/// What an app is asked for: it may want to speak websocket.
const ASKED_FOR: &[u8] = b"http/1.1";

/// Why there is no TLS: a file, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", file.display())]
pub struct TlsError {
    file: PathBuf,
    reason: String,
}

/// Files that TLS is made of.
pub trait Material {
    /// What is made of them.
    type Config;

    /// All of them.
    fn files(&self) -> Vec<&Path>;

    /// Makes it of their contents, in the order of [`Material::files`].
    ///
    /// # Errors
    /// Names the file that is to blame.
    fn make(&self, contents: &[Vec<u8>]) -> Result<Made<Self::Config>, TlsError>;
}

/// What is made of files.
pub struct Made<C> {
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
pub struct Live<M: Material> {
    material: M,
    current: RwLock<Arc<M::Config>>,
}

/// Looks whether files have changed.
pub struct Watcher<M: Material> {
    live: Arc<Live<M>>,
    /// What was there at the last look, and what was judged last.
    seen: Result<u64, TlsError>,
    judged: Result<u64, TlsError>,
}

impl<M: Material> Live<M> {
    /// Makes it of the files as they are; a watcher for what becomes of them, and when the own certificate expires.
    ///
    /// # Errors
    /// Names the file that is to blame.
    pub fn load(material: M) -> Result<(Watcher<M>, u64), TlsError> {
        let contents = read(&material)?;
        let Made { config, not_after } = material.make(&contents)?;
        let (seen, judged) = (Ok(print(&contents)), Ok(print(&contents)));
        let live = Arc::new(Self { material, current: RwLock::new(Arc::new(config)) });
        Ok((Watcher { live, seen, judged }, not_after))
    }

    /// What the next connection is to use.
    pub fn current(&self) -> Arc<M::Config> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<M: Material> Watcher<M> {
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
        Some(made.map(|Made { config, not_after }| {
            *self.live.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
            not_after
        }))
    }
}

impl Material for ListenerFiles {
    type Config = ServerConfig;

    fn files(&self) -> Vec<&Path> {
        let others = self.others.iter().flat_map(|Pair { certificate, key }| [certificate, key]);
        let all = [&self.certificate, &self.key].into_iter().chain(others).chain(&self.client_ca);
        all.map(PathBuf::as_path).collect()
    }

    fn make(&self, contents: &[Vec<u8>]) -> Result<Made<ServerConfig>, TlsError> {
        let (certificates, not_after) = self.certificates(contents)?;
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.expect("ring has suites for every version");
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let roots = Arc::new(roots(file, &contents[contents.len() - 1])?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| blame(file, error))?)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(certificates));
        config.alpn_protocols = SPOKEN[usize::from(!self.http2)..].iter().map(|protocol| protocol.to_vec()).collect();
        // Scanners ask for it; every suite is a good one.
        config.ignore_client_order = true;
        config.ticketer = ring::Ticketer::new().map_err(|error| blame(&self.key, error))?;
        Ok(Made { config, not_after })
    }
}

impl ListenerFiles {
    /// All of them, and when the first of them expires.
    fn certificates(&self, contents: &[Vec<u8>]) -> Result<(Certificates, u64), TlsError> {
        let first = pair(&self.certificate, &contents[0], &self.key, &contents[1])?;
        let parsed = parsed(&self.certificate, &first)?;
        let mut not_after = not_after(&parsed);
        let mut certificates = Certificates::new(first, &names(&self.certificate, &parsed)?);
        for (Pair { certificate, key }, contents) in self.others.iter().zip(contents[2..].chunks_exact(2)) {
            let other = pair(certificate, &contents[0], key, &contents[1])?;
            let parsed = self::parsed(certificate, &other)?;
            let names = names(certificate, &parsed)?;
            if names.is_empty() {
                return Err(blame(certificate, "is for no DNS name (subjectAltName) that a browser could ask for"));
            }
            not_after = not_after.min(self::not_after(&parsed));
            certificates.add(other, &names);
        }
        Ok((certificates, not_after))
    }
}

impl Material for ClientFiles {
    type Config = ClientConfig;

    fn files(&self) -> Vec<&Path> {
        let pair = self.pair.iter().flat_map(|(certificate, key)| [certificate, key]);
        pair.chain(&self.ca).map(PathBuf::as_path).collect()
    }

    fn make(&self, contents: &[Vec<u8>]) -> Result<Made<ClientConfig>, TlsError> {
        let roots = match (&self.ca, contents.last()) {
            (Some(file), Some(content)) => roots(file, content)?,
            _ => system_roots()?,
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        let verifier = verifier.expect("some root is there, and no revocation list is malformed");
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.expect("ring has suites for every version").with_webpki_verifier(verifier);
        let (mut config, not_after) = match &self.pair {
            None => (builder.with_no_client_auth(), 0),
            Some((certificate, key)) => {
                let pair = pair(certificate, &contents[0], key, &contents[1])?;
                let not_after = not_after(&parsed(certificate, &pair)?);
                (builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair))), not_after)
            }
        };
        config.alpn_protocols = vec![ASKED_FOR.to_vec()];
        Ok(Made { config, not_after })
    }
}

/// The one provider, named so that nothing depends on what else is linked.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn blame(file: &Path, reason: impl ToString) -> TlsError {
    TlsError { file: file.to_owned(), reason: reason.to_string() }
}

fn read(material: &impl Material) -> Result<Vec<Vec<u8>>, TlsError> {
    let whole = |file: &Path| -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(fs::File::open(file)?, MAX_BYTES), &mut bytes)?;
        Ok(bytes)
    };
    material.files().into_iter().map(|file| whole(file).map_err(|error| blame(file, error))).collect()
}

/// Tells contents apart without keeping a key in memory.
fn print(contents: &[Vec<u8>]) -> u64 {
    let mut hasher = DefaultHasher::new();
    contents.hash(&mut hasher);
    hasher.finish()
}

fn certificates(file: &Path, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(content).collect();
    let found = found.map_err(|error| blame(file, explain(&error)))?;
    if found.is_empty() {
        return Err(blame(file, "holds no PEM certificate"));
    }
    Ok(found)
}

fn pair(certificate: &Path, content: &[u8], key: &Path, key_content: &[u8]) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(certificate, content)?;
    let parsed = PrivateKeyDer::from_pem_slice(key_content).map_err(|error| match error {
        pem::Error::NoItemsFound => blame(key, "holds no PEM private key, or an encrypted one"),
        error => blame(key, explain(&error)),
    })?;
    CertifiedKey::from_der(chain, parsed, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            blame(key, format!("is not the key of the certificate in {}", certificate.display()))
        }
        rustls::Error::InvalidCertificate(_) => blame(certificate, error),
        error => blame(key, error),
    })
}

/// What is wrong with PEM, without a byte of it: it may be a key.
fn explain(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a PEM section has no end",
        pem::Error::NoItemsFound => "holds nothing in PEM",
        _ => "is no valid PEM",
    }
}

fn roots(file: &Path, content: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file, content)? {
        roots.add(certificate).map_err(|error| blame(file, error))?;
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
        return Err(blame(Path::new("the system's root certificates"), reason));
    }
    Ok(roots)
}

fn parsed(file: &Path, pair: &CertifiedKey) -> Result<Certificate, TlsError> {
    let leaf = pair.end_entity_cert().map_err(|error| blame(file, error))?;
    Certificate::from_der(leaf).map_err(|error| blame(file, error))
}

fn names(file: &Path, certificate: &Certificate) -> Result<Vec<String>, TlsError> {
    sni::names(certificate).map_err(|error| blame(file, error))
}

fn not_after(certificate: &Certificate) -> u64 {
    certificate.tbs_certificate().validity().not_after.to_unix_duration().as_secs()
}
