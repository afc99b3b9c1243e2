//! The TLS settings of both sides, as configured.

use std::path::PathBuf;

use rustls::pki_types::ServerName;

use super::document::{LineError, Table, TableArray};
use super::loaded::{Effective, Loaded, Source};
use super::upstream::UpstreamAddress;
use super::values::{FILE, InvalidValue};
use super::{Config, Route};
use crate::tls::{self, CertificateFiles, ClientFiles, ListenerFiles};

/// The array of tables of further certificates.
pub(super) const CERTIFICATES: TableArray = TableArray { key: "tls.certificates", fields: &["certificate", "key"] };

/// TLS for browsers: certificate and key, or neither.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// PEM: the certificate and its intermediates.
    pub certificate: Option<PathBuf>,
    /// PEM: its key.
    pub key: Option<PathBuf>,
    /// PEM: clients must present a certificate of one of these.
    pub client_ca: Option<PathBuf>,
    /// Certificates for other names; they need the pair above.
    pub certificates: Vec<CertificateFiles>,
    /// Whether HTTP/2 is offered beside HTTP/1.1.
    pub http2: bool,
}

/// TLS towards an `https://` upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTlsSettings {
    /// PEM: CAs that are trusted instead of the system's roots.
    pub ca: Option<PathBuf>,
    /// PEM: the certificate for the upstream.
    pub certificate: Option<PathBuf>,
    /// PEM: its key.
    pub key: Option<PathBuf>,
    /// The name that the upstream's certificate must have, instead of the host in its address.
    pub server_name: Option<ServerName<'static>>,
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self { certificate: None, key: None, client_ca: None, certificates: Vec::new(), http2: true }
    }
}

impl TlsSettings {
    /// The files, if TLS is on.
    pub fn files(&self) -> Option<ListenerFiles> {
        let (certificate, key) = self.certificate.clone().zip(self.key.clone())?;
        let (client_ca, others) = (self.client_ca.clone(), self.certificates.clone());
        Some(ListenerFiles { certificate, key, client_ca, others, http2: self.http2 })
    }
}

impl UpstreamTlsSettings {
    /// The files, if one of these apps uses TLS.
    pub fn files(&self, apps: &[Route]) -> Option<ClientFiles> {
        let pair = self.certificate.clone().zip(self.key.clone());
        apps.iter().any(|app| app.upstream.is_encrypted()).then(|| ClientFiles { ca: self.ca.clone(), pair })
    }

    /// The name that the upstream's certificate must have; `None` if its address has none.
    pub fn name(&self, upstream: &UpstreamAddress) -> Option<ServerName<'static>> {
        let UpstreamAddress::Https { host, .. } = upstream else { return None };
        self.server_name.clone().or_else(|| host.clone().try_into().ok())
    }

    /// Whether anything is configured.
    pub(super) fn is_set(&self) -> bool {
        *self != Self::default()
    }
}

/// Reads a further certificate of the file. Also returns its values with their sources.
///
/// # Errors
/// What is wrong, with the line.
pub(super) fn further(
    table: &Table,
    source: impl Fn(usize) -> Source,
) -> Result<(CertificateFiles, Vec<Effective>), Vec<LineError>> {
    let mut errors = Vec::new();
    let [certificate, key] = ["certificate", "key"].map(|key| {
        let field = table.fields.iter().find(|field| field.key == key);
        let (line, text) = field.map_or((table.line, ""), |field| (field.line, &field.text));
        match (FILE.parse)(text) {
            Ok(Some(path)) => Some((path, Effective { key, value: text.to_owned(), source: source(line) })),
            Ok(None) => {
                errors.push(LineError { line: table.line, reason: format!("{}: needs {key}", table.array) });
                None
            }
            Err(InvalidValue(reason)) => {
                errors.push(LineError { line, reason: format!("{}.{key}: {reason}", table.array) });
                None
            }
        }
    });
    let both = certificate.zip(key).ok_or(errors);
    both.map(|((certificate, one), (key, other))| (CertificateFiles { certificate, key }, vec![one, other]))
}

/// What prevents TLS from working, including errors in the files.
pub(super) fn conflicts(loaded: &Loaded) -> Vec<String> {
    let (Config { tls, upstream_tls, .. }, apps) = (&loaded.config, loaded.config.apps());
    let mut found = Vec::new();
    for (one, other, set) in [
        ("tls.certificate", "tls.key", (&tls.certificate, &tls.key)),
        ("upstream_tls.certificate", "upstream_tls.key", (&upstream_tls.certificate, &upstream_tls.key)),
    ] {
        match set {
            (Some(_), None) => found.push(format!("{} also needs {other}", loaded.setting(one))),
            (None, Some(_)) => found.push(format!("{} also needs {one}", loaded.setting(other))),
            (Some(_), Some(_)) | (None, None) => {}
        }
    }
    let is_on = tls.certificate.is_some() || tls.key.is_some();
    if tls.client_ca.is_some() && !is_on {
        found.push(format!("{} also needs tls.certificate and tls.key", loaded.setting("tls.client_ca")));
    }
    if !tls.certificates.is_empty() && !is_on {
        let reason = "also needs tls.certificate and tls.key, the pair for all other names";
        found.push(format!("[[{}]] {reason}", CERTIFICATES.key));
    }
    for (at, app) in apps.iter().enumerate() {
        if app.upstream.is_encrypted() && upstream_tls.name(&app.upstream).is_none() {
            let upstream = loaded.setting_of(at, "upstream");
            found.push(format!("{upstream}: a certificate cannot name this host: set upstream_tls.server_name"));
        }
    }
    if found.is_empty() {
        let listener = tls.files().and_then(|files| tls::build(&files).err());
        let client = upstream_tls.files(&apps).and_then(|files| tls::build(&files).err());
        found.extend(listener.into_iter().chain(client).map(|error| error.to_string()));
    }
    found
}
