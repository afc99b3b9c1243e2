//! Tests that every PEM setting reports each kind of bad file, by setting and path.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair};

use super::{Loaded, Sources, load};

/// A bad file, and the message expected for it.
struct Bad {
    name: &'static str,
    bytes: Vec<u8>,
    expected: &'static str,
}

/// A folder with the pair `good.crt` and `good.key`, and a second one.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self { folder: tempfile::tempdir().expect("a folder") };
        for name in ["good", "other"] {
            let key = KeyPair::generate().expect("a key");
            let names = vec![format!("{name}.test")];
            let certificate = CertificateParams::new(names).expect("a name").self_signed(&key).expect("signed");
            fs::write(files.path(&format!("{name}.crt")), certificate.pem()).expect("a file");
            fs::write(files.path(&format!("{name}.der")), certificate.der()).expect("a file");
            fs::write(files.path(&format!("{name}.key")), key.serialize_pem()).expect("a file");
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("a file")
    }

    /// Loads a configuration with good files, except for one setting.
    fn load(&self, setting: &str, path: &Path) -> Result<Loaded, String> {
        let file = |key: &str| {
            let kind = if key.ends_with("key") { "good.key" } else { "good.crt" };
            let path = if key == setting { path.to_owned() } else { self.path(kind) };
            format!("{} = {path:?}\n", key.rsplit('.').next().unwrap_or(key))
        };
        let files = |keys: &[&str]| keys.iter().map(|key| file(key)).collect::<String>();
        let text = [
            "upstream = 'https://app.test'\n[tls]\n",
            &files(&["tls.certificate", "tls.key", "tls.client_ca"]),
            "[[tls.certificates]]\n",
            &files(&["tls.certificates.certificate", "tls.certificates.key"]),
            "[upstream_tls]\n",
            &files(&["upstream_tls.ca", "upstream_tls.certificate", "upstream_tls.key"]),
        ];
        let config = self.path("sidecar.toml");
        fs::write(&config, text.concat()).expect("a file");
        load(&Sources { config: Some(config), ..Sources::default() }).map_err(|problems| problems.to_string())
    }

    /// Bad variants of any PEM file, made from a good one.
    fn bad(&self, good: &str) -> Vec<Bad> {
        let good = self.read(good);
        let damaged = String::from_utf8_lossy(&good).replacen("\nM", "\n!", 1).into_bytes();
        let cut = good[..good.len() - 30].to_vec();
        vec![
            Bad { name: "cut", bytes: cut, expected: "ends within a PEM block: copy the whole file" },
            Bad { name: "damaged", bytes: damaged, expected: "is damaged PEM: copy the file again" },
        ]
    }

    fn bad_certificates(&self) -> Vec<Bad> {
        let [good, key, der] = ["good.crt", "good.key", "good.der"].map(|name| self.read(name));
        let relabelled = |label: &str| String::from_utf8_lossy(&good).replace("CERTIFICATE", label).into_bytes();
        let empty = b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        let none = "contains no PEM certificate (-----BEGIN CERTIFICATE-----)";
        let openssl = "is in OpenSSL's own format: convert it (openssl x509 -in OLD -out NEW)";
        let half = "only 1 of its 2 certificates can be read: write each -----BEGIN CERTIFICATE----- on a line \
                    of its own";
        vec![
            Bad { name: "empty", bytes: Vec::new(), expected: none },
            Bad { name: "text", bytes: b"0 certificates".into(), expected: none },
            Bad { name: "request", bytes: relabelled("CERTIFICATE REQUEST"), expected: none },
            Bad { name: "swapped", bytes: key, expected: "looks like a private key: are certificate and key swapped?" },
            Bad {
                name: "der",
                bytes: der,
                expected: "is not PEM but DER: convert it (openssl x509 -inform der -in OLD -out NEW)",
            },
            Bad { name: "trusted", bytes: relabelled("TRUSTED CERTIFICATE"), expected: openssl },
            Bad { name: "joined", bytes: [good.trim_ascii_end(), &good].concat(), expected: half },
            Bad {
                name: "no certificate",
                bytes: empty.into(),
                expected: "contains a certificate that cannot be parsed (",
            },
            Bad {
                name: "large",
                bytes: good.repeat(4 * 1024 * 1024 / good.len() + 1),
                expected: "is larger than 4 MiB: name a file of fewer certificates",
            },
        ]
    }

    fn bad_keys(&self) -> Vec<Bad> {
        let [good, other, certificate] = ["good.key", "other.key", "good.crt"].map(|name| self.read(name));
        let text = String::from_utf8_lossy(&good);
        let relabelled = |label: &str| text.replace("PRIVATE KEY", label).into_bytes();
        // The form of RFC 1421 §4.6.1.1, which OpenSSL still uses.
        let proc_type = "RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n";
        let traditional = text.replacen("PRIVATE KEY-----\n", proc_type, 1).replace("END PRIVATE", "END RSA PRIVATE");
        let none = "contains no PEM private key (-----BEGIN PRIVATE KEY-----)";
        let encrypted = "the key is encrypted: write it without a passphrase (openssl pkey -in OLD -out NEW)";
        let empty = b"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";
        vec![
            Bad { name: "empty", bytes: Vec::new(), expected: none },
            Bad { name: "public", bytes: relabelled("PUBLIC KEY"), expected: none },
            Bad {
                name: "swapped",
                bytes: certificate,
                expected: "looks like a certificate: are certificate and key swapped?",
            },
            Bad {
                name: "der",
                bytes: KeyPair::generate().expect("a key").serialize_der(),
                expected: "is not PEM but DER: convert it (openssl pkey -inform der -in OLD -out NEW)",
            },
            Bad { name: "encrypted", bytes: relabelled("ENCRYPTED PRIVATE KEY"), expected: encrypted },
            Bad { name: "traditional", bytes: traditional.into_bytes(), expected: encrypted },
            Bad { name: "another one", bytes: other, expected: "is not the key of the certificate in /" },
            Bad { name: "no key", bytes: empty.into(), expected: "contains no usable RSA, ECDSA or Ed25519 key (" },
        ]
    }
}

const CERTIFICATES: [&str; 5] =
    ["tls.certificate", "tls.client_ca", "tls.certificates.certificate", "upstream_tls.ca", "upstream_tls.certificate"];
const KEYS: [&str; 3] = ["tls.key", "tls.certificates.key", "upstream_tls.key"];

#[test]
fn every_setting_reports_each_bad_pem_file_with_the_remedy() {
    let files = Files::new();
    let message = |setting: &str, path: &Path| files.load(setting, path).expect_err(setting);
    for (settings, good, own) in
        [(&CERTIFICATES[..], "good.crt", files.bad_certificates()), (&KEYS, "good.key", files.bad_keys())]
    {
        let all = [files.bad(good), own].into_iter().flatten().collect::<Vec<_>>();
        for setting in settings {
            assert!(files.load(setting, &files.path(good)).is_ok());
            for Bad { name, bytes, expected } in &all {
                let path = files.path(name);
                fs::write(&path, bytes).expect("a file");
                let message = message(setting, &path);
                assert!(message.starts_with(&format!("{setting} = {path:?}: {expected}")), "{name}: {message}");
                assert_eq!(message.lines().count(), 1, "{message}");
            }
            for (name, expected) in [
                ("none", "cannot be read: No such file or directory (os error 2)"),
                ("", "cannot be read: Is a directory (os error 21)"),
            ] {
                // A path with a trailing slash is rejected earlier.
                let path = if name.is_empty() { files.folder.path().to_owned() } else { files.path(name) };
                assert_eq!(message(setting, &path), format!("{setting} = {path:?}: {expected}"));
            }
        }
    }
}

#[test]
fn every_file_setting_is_covered_by_that_test() {
    let mut settings: Vec<_> =
        super::SETTINGS.iter().filter(|setting| setting.value_name == "FILE").map(|setting| setting.key).collect();
    settings.extend(["tls.certificates.certificate", "tls.certificates.key"]);
    let mut tested = [&CERTIFICATES[..], &KEYS].concat();
    settings.sort_unstable();
    tested.sort_unstable();
    assert_eq!(settings, tested);
}
