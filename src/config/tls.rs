//! What TLS is made of on both sides, as it was written.

use std::path::PathBuf;

use rustls::pki_types::ServerName;

use super::Invalid;
use super::upstream::UpstreamAddress;
use crate::tls::{ClientFiles, ListenerFiles};

/// TLS for browsers: both of the pair, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// PEM: the certificate and those between it and its root.
    pub certificate: Option<PathBuf>,
    /// PEM: its key.
    pub key: Option<PathBuf>,
    /// PEM: clients must show a certificate of one of these.
    pub client_ca: Option<PathBuf>,
}

/// TLS towards an `https://` upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTlsSettings {
    /// PEM: who is believed instead of the system's roots.
    pub ca: Option<PathBuf>,
    /// PEM: what is shown to the upstream.
    pub certificate: Option<PathBuf>,
    /// PEM: its key.
    pub key: Option<PathBuf>,
    /// Who the upstream has to prove to be, instead of the host in its address.
    pub server_name: Option<ServerName<'static>>,
}

impl TlsSettings {
    /// The files, if TLS is on.
    pub fn files(&self) -> Option<ListenerFiles> {
        let (certificate, key) = self.certificate.clone().zip(self.key.clone())?;
        Some(ListenerFiles { certificate, key, client_ca: self.client_ca.clone() })
    }
}

impl UpstreamTlsSettings {
    /// The files, if the upstream is spoken to over TLS.
    pub fn files(&self, upstream: &UpstreamAddress) -> Option<ClientFiles> {
        let pair = self.certificate.clone().zip(self.key.clone());
        matches!(upstream, UpstreamAddress::Https { .. }).then(|| ClientFiles { ca: self.ca.clone(), pair })
    }

    /// Who the upstream has to prove to be; `None` if its address names nobody who could.
    pub fn name(&self, upstream: &UpstreamAddress) -> Option<ServerName<'static>> {
        let UpstreamAddress::Https { host, .. } = upstream else { return None };
        self.server_name.clone().or_else(|| host.clone().try_into().ok())
    }

    /// Whether anything was written.
    pub(super) fn is_set(&self) -> bool {
        *self != Self::default()
    }
}

/// A file; an empty text is none.
pub(super) fn file(text: &str) -> Result<Option<PathBuf>, Invalid> {
    if text.ends_with('/') {
        return Err(Invalid(format!("{text:?} is a folder: write the path of a file, or nothing")));
    }
    Ok((!text.is_empty()).then(|| text.into()))
}

/// The text of what [`file`] takes. Every path comes of text.
pub(super) fn file_text(file: Option<&PathBuf>) -> String {
    file.map_or_else(String::new, |file| file.display().to_string())
}

/// A name or an IP address that a certificate can be for; an empty text is none.
pub(super) fn server_name(text: &str) -> Result<Option<ServerName<'static>>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    let name = ServerName::try_from(text.to_owned());
    name.map(Some).map_err(|_| Invalid(format!("{text:?} is no name of a server: write a host name or an IP address")))
}
