//! The TLS settings of both sides, as configured.

use std::path::PathBuf;

use rustls::pki_types::ServerName;

use super::load::{Effective, Loader, Origin};
use super::raw::{Item, List, Mistakes};
use super::upstream::UpstreamAddress;
use super::{Config, Invalid, Route};
use crate::tls::{self, ClientFiles, ListenerFiles, Pair};

/// The array of tables of further certificates.
pub(super) const CERTIFICATES: List = List { key: "tls.certificates", fields: &["certificate", "key"] };

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
    pub certificates: Vec<Pair>,
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

/// Builds a further certificate from the file. Also returns its values with their origins.
///
/// # Errors
/// What is wrong, with the line.
pub(super) fn further(item: &Item, origin: impl Fn(usize) -> Origin) -> Result<(Pair, Vec<Effective>), Mistakes> {
    let mut mistakes = Vec::new();
    let [certificate, key] = ["certificate", "key"].map(|key| {
        let name = CERTIFICATES.key;
        let field = item.fields.iter().find(|field| field.key == key);
        let taken = field.map_or(Ok(None), |field| file(&field.text).map_err(|Invalid(reason)| (field.line, reason)));
        match (field, taken) {
            (Some(field), Ok(Some(path))) => {
                Some((path, Effective { key, value: field.text.clone(), origin: origin(field.line) }))
            }
            (_, Ok(_)) => {
                mistakes.push((item.line, format!("{name}: needs {key}")));
                None
            }
            (_, Err((line, reason))) => {
                mistakes.push((line, format!("{name}.{key}: {reason}")));
                None
            }
        }
    });
    let both = certificate.zip(key).ok_or(mistakes);
    both.map(|((certificate, one), (key, other))| (Pair { certificate, key }, vec![one, other]))
}

impl Loader {
    /// What prevents TLS from working, including errors in the files.
    pub(super) fn tls_conflicts(&self) -> Vec<String> {
        let (Config { tls, upstream_tls, .. }, apps) = (&self.config, self.config.apps());
        let mut found = Vec::new();
        for (one, other, set) in [
            ("tls.certificate", "tls.key", (&tls.certificate, &tls.key)),
            ("upstream_tls.certificate", "upstream_tls.key", (&upstream_tls.certificate, &upstream_tls.key)),
        ] {
            match set {
                (Some(_), None) => found.push(format!("{} needs {other} beside it", self.shown(one))),
                (None, Some(_)) => found.push(format!("{} needs {one} beside it", self.shown(other))),
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        if tls.client_ca.is_some() && tls.certificate.is_none() && tls.key.is_none() {
            found.push(format!("{} needs tls.certificate and tls.key beside it", self.shown("tls.client_ca")));
        }
        if !tls.certificates.is_empty() && tls.certificate.is_none() && tls.key.is_none() {
            let name = CERTIFICATES.key;
            found.push(format!("[[{name}]] needs tls.certificate and tls.key, which all others are shown"));
        }
        let files = upstream_tls.files(&apps);
        for (at, app) in apps.iter().enumerate() {
            if app.upstream.is_encrypted() && upstream_tls.name(&app.upstream).is_none() {
                let (upstream, remedy) = (self.shown_of(at, "upstream"), "set upstream_tls.server_name");
                found.push(format!("{upstream} names no host that a certificate can be for: {remedy}"));
            }
        }
        if found.is_empty() {
            let listener = tls.files().and_then(|files| tls::build(&files).err());
            let client = files.and_then(|files| tls::build(&files).err());
            found.extend(listener.into_iter().chain(client).map(|error| error.to_string()));
        }
        found
    }
}

/// The path of a file; empty text is none.
pub(super) fn file(text: &str) -> Result<Option<PathBuf>, Invalid> {
    if text.ends_with('/') {
        return Err(Invalid(format!("{text:?} is a folder: write the path of a file, or nothing")));
    }
    Ok((!text.is_empty()).then(|| text.into()))
}

/// The text that [`file`] parses. Every path comes from text.
pub(super) fn file_text(file: Option<&PathBuf>) -> String {
    file.map_or_else(String::new, |file| file.display().to_string())
}

/// A name or an IP address that a certificate can be for; empty text is none.
pub(super) fn server_name(text: &str) -> Result<Option<ServerName<'static>>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    let name = ServerName::try_from(text.to_owned());
    name.map(Some).map_err(|_| Invalid(format!("{text:?} is no name of a server: write a host name or an IP address")))
}
