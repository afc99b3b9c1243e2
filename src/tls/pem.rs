//! Reads PEM files (RFC 7468), with errors that name the setting and the cause.
//!
//! Invariant: a certificate in a file is never skipped silently.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsError;

/// Maximum size of a file: about three thousand certificates, ten times those of all public authorities.
const MAX_BYTES: u64 = 4 * MEBIBYTE;
const MEBIBYTE: u64 = 1024 * 1024;

/// A PEM file and the setting that names it.
#[derive(Clone, Copy, Debug)]
pub struct PemFile<'a> {
    /// With its table: `tls.key`.
    pub setting: &'static str,
    /// As configured.
    pub path: &'a Path,
}

/// A file and its contents.
pub struct PemContents<'a> {
    pub(super) file: PemFile<'a>,
    pub(super) bytes: Vec<u8>,
}

impl<'a> PemFile<'a> {
    pub(super) fn read(self) -> Result<PemContents<'a>, TlsError> {
        let whole = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            File::open(self.path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = whole().map_err(|error| self.error(format_args!("cannot be read: {error}")))?;
        if bytes.len() as u64 > MAX_BYTES {
            let limit = MAX_BYTES / MEBIBYTE;
            return Err(self.error(format_args!("is larger than {limit} MiB: name a file of fewer certificates")));
        }
        Ok(PemContents { file: self, bytes })
    }

    fn error(self, reason: impl Display) -> TlsError {
        TlsError { subject: format!("{} = {:?}", self.setting, self.path), reason: reason.to_string() }
    }
}

impl PemContents<'_> {
    pub(super) fn error(&self, reason: impl Display) -> TlsError {
        self.file.error(reason)
    }

    /// All certificates; at least one.
    pub(super) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.bytes).collect();
        let found = found.map_err(|error| self.error(damage_reason(&error)))?;
        if found.is_empty() {
            return Err(self.error(self.no_certificates()));
        }
        let (read, all) = (found.len(), self.count("BEGIN ", "CERTIFICATE-----"));
        if read < all {
            let remedy = "write each -----BEGIN CERTIFICATE----- on a line of its own";
            return Err(self.error(format_args!("only {read} of its {all} certificates can be read: {remedy}")));
        }
        Ok(found)
    }

    /// The first private key.
    pub(super) fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(&self.bytes).map_err(|error| self.error(self.no_key(&error)))
    }

    /// The error for a certificate that rustls or the X.509 parser rejects.
    pub(super) fn certificate_error(&self, error: impl Display) -> TlsError {
        self.error(format_args!("contains a certificate that cannot be parsed ({error}): copy the file again"))
    }

    /// Why the file has no certificates.
    fn no_certificates(&self) -> String {
        if self.count("BEGIN ", "PRIVATE KEY-----") > 0 {
            return "looks like a private key: are certificate and key swapped?".to_owned();
        }
        if self.count("BEGIN ", "TRUSTED CERTIFICATE-----") > 0 {
            return "is in OpenSSL's own format: convert it (openssl x509 -in OLD -out NEW)".to_owned();
        }
        self.missing("certificate", "x509")
    }

    /// Why the file has no key. Never includes a byte of the file: it may be a key.
    fn no_key(&self, error: &pem::Error) -> String {
        // PKCS #8, and the older form of RFC 1421.
        if self.count("BEGIN ", "ENCRYPTED PRIVATE KEY-----") + self.count("Proc-Type:", "ENCRYPTED") > 0 {
            return "the key is encrypted: write it without a passphrase (openssl pkey -in OLD -out NEW)".to_owned();
        }
        match error {
            pem::Error::NoItemsFound if self.count("BEGIN ", "CERTIFICATE-----") > 0 => {
                "looks like a certificate: are certificate and key swapped?".to_owned()
            }
            pem::Error::NoItemsFound => self.missing("private key", "pkey"),
            error => damage_reason(error).to_owned(),
        }
    }

    /// The error for a file without the wanted PEM blocks.
    fn missing(&self, wanted: &str, tool: &str) -> String {
        // A DER sequence (X.690 §8.9); text never starts like this.
        if self.bytes.starts_with(&[0x30]) && self.bytes.get(1).is_some_and(|length| *length > 0x80) {
            return format!("is not PEM but DER: convert it (openssl {tool} -inform der -in OLD -out NEW)");
        }
        format!("contains no PEM {wanted} (-----BEGIN {}-----)", wanted.to_uppercase())
    }

    /// Counts lines that contain `begin` and, after it, `end`. Commented-out lines do not count.
    fn count(&self, begin: &str, end: &str) -> usize {
        let text = String::from_utf8_lossy(&self.bytes);
        let lines = text.split(['\n', '\r']).filter(|line| !line.trim_start().starts_with('#'));
        // One line may end a block and start the next: files without a final newline, concatenated.
        lines.filter(|line| line.split_once(begin).is_some_and(|(_before, behind)| behind.contains(end))).count()
    }
}

/// Why the PEM cannot be read, without a byte of it: it may be a key.
fn damage_reason(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "ends within a PEM block: copy the whole file",
        _ => "is damaged PEM: copy the file again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTING: &str = "tls.client_ca";

    fn block(label: &str) -> String {
        format!("-----BEGIN {label}-----\nMAA=\n-----END {label}-----\n")
    }

    fn contents(text: impl AsRef<[u8]>) -> PemContents<'static> {
        let file = PemFile { setting: SETTING, path: Path::new("/etc/ca.crt") };
        PemContents { file, bytes: text.as_ref().to_owned() }
    }

    #[test]
    fn every_certificate_is_read_or_the_file_is_rejected() {
        let one = block("CERTIFICATE");
        let commented: String = one.lines().map(|line| format!("# {line}\n")).collect();
        for (text, number) in [
            (one.repeat(2), 2),
            (format!("an authority\n{one}\r\nanother one\r\n{}", one.replace('\n', "\r\n")), 2),
            (format!("{}{one}{commented}", block("PRIVATE KEY")), 1),
            (format!("{one}{}", block("X509 CRL")), 1),
        ] {
            assert_eq!(contents(&text).certificates().expect(&text).len(), number, "{text}");
        }
        for text in [
            format!("{}{one}", one.trim_end()),
            format!("\u{feff}{one}{one}"),
            format!("{one}  {one}"),
            format!("{one}{}", one.replacen("-----BEGIN", "----BEGIN", 1)),
            format!("{one}{}", block("TRUSTED CERTIFICATE")),
            format!("{one}{}", block("X509 CERTIFICATE")),
        ] {
            let error = contents(&text).certificates().expect_err(&text).to_string();
            let expected = format!("{SETTING} = \"/etc/ca.crt\": only 1 of its 2 certificates can be read: write each");
            assert!(error.starts_with(&expected), "{error}: {text}");
        }
    }

    #[test]
    fn a_file_above_the_size_limit_is_rejected() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let pem = PemFile { setting: SETTING, path: file.path() };
        let one = block("CERTIFICATE");
        let most = usize::try_from(MAX_BYTES).expect("it fits");
        let mut text = one.repeat(most / one.len());
        text.push_str(&"\n".repeat(most - text.len()));
        std::fs::write(file.path(), &text).expect("written");
        assert_eq!(pem.read().expect("not too large").certificates().expect("all").len(), most / one.len());
        // The limit falls between two blocks.
        std::fs::write(file.path(), text + &one).expect("written");
        let error = pem.read().err().expect("too large").to_string();
        assert_eq!(
            error,
            format!("{SETTING} = {:?}: is larger than 4 MiB: name a file of fewer certificates", file.path())
        );
    }
}
