//! Several certificates on one address: each browser gets the certificate for its SNI name.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use heartbeat_sidecar::config::{Sources, load};
use heartbeat_sidecar::tls::CertificateFiles;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use crate::support::tls::{Pki, Sides};
use crate::support::{App, Sidecar, soon};

/// The certificate that a browser receives for `name` and accepts; for an IP address it sends no SNI.
async fn shown(pki: &Pki, sidecar: &Sidecar, name: &'static str) -> Option<Vec<u8>> {
    let connector = TlsConnector::from(Arc::new(pki.client(rustls::ALL_VERSIONS, false)));
    let name = ServerName::try_from(name).unwrap();
    let stream = soon(connector.connect(name, sidecar.connect().await.stream)).await.ok()?;
    Some(stream.get_ref().1.peer_certificates().unwrap()[0].to_vec())
}

async fn scene(pki: &Pki) -> Sidecar {
    pki.issue_for("blue", &["blue.test"], 2041);
    pki.issue_for("wild", &["*.apps.test", "wild.example"], 2039);
    let mut config = App::bind().await.config();
    pki.configure(Sides::Browser, &mut config);
    let pair = |name| CertificateFiles {
        certificate: pki.path(&format!("{name}.crt")),
        key: pki.path(&format!("{name}.key")),
    };
    config.tls.certificates = ["wild", "blue"].map(pair).into();
    Sidecar::start(config).await
}

#[tokio::test]
async fn each_name_gets_its_certificate_and_unknown_names_the_first() {
    let pki = Pki::new();
    let sidecar = scene(&pki).await;
    let first = shown(&pki, &sidecar, "app.test").await.unwrap();
    let blue = shown(&pki, &sidecar, "blue.test").await.unwrap();
    let wild = shown(&pki, &sidecar, "green.apps.test").await.unwrap();
    assert!(first != blue && blue != wild && wild != first);
    assert_eq!(shown(&pki, &sidecar, "127.0.0.1").await, Some(first));
    assert_eq!(shown(&pki, &sidecar, "wild.example").await, Some(wild));
    assert_eq!(shown(&pki, &sidecar, "deep.green.apps.test").await, None, "the first, which is not for this name");
    // The earliest expiry.
    assert_eq!(sidecar.metric("tls_certificate_not_after_timestamp_seconds", &[]).await, 2_177_452_800.0);
}

#[tokio::test]
async fn certificates_are_reloaded_together_and_a_broken_one_keeps_all_old_ones() {
    let pki = Pki::new();
    let sidecar = scene(&pki).await;
    let all = async || {
        let mut all = Vec::new();
        for name in ["app.test", "blue.test", "green.apps.test"] {
            all.push(shown(&pki, &sidecar, name).await.unwrap());
        }
        all
    };
    let before = all().await;
    pki.issue_for("wild", &["*.apps.test"], 2038);
    sidecar.until("tls_reloads_total", &[("result", "accepted")], 1.0).await;
    let renewed = all().await;
    assert!(renewed[..2] == before[..2] && renewed[2] != before[2]);
    assert_eq!(sidecar.metric("tls_certificate_not_after_timestamp_seconds", &[]).await, 2_145_916_800.0);

    fs::write(pki.path("blue.key"), "none").unwrap();
    pki.issue_for("tls", &["app.test"], 2045);
    sidecar.until("tls_reloads_total", &[("result", "refused")], 1.0).await;
    assert!(all().await == renewed);
    assert_eq!(sidecar.metric("tls_certificate_not_after_timestamp_seconds", &[]).await, 2_145_916_800.0);
}

#[test]
fn check_prints_the_certificates_or_names_the_broken_one() {
    let pki = Pki::new();
    pki.issue_for("blue", &["blue.test"], 2041);
    pki.issue_for("nobody", &["192.0.2.1"], 2041);
    let checked = |name: &str| {
        let path = |name: &str| format!("{:?}", pki.path(name).display().to_string());
        let (certificate, key) = (path(&format!("{name}.crt")), path(&format!("{name}.key")));
        let (first, its_key) = (path("tls.crt"), path("tls.key"));
        let text = format!(
            "[tls]\ncertificate = {first}\nkey = {its_key}\n\n[[tls.certificates]]\ncertificate = {certificate}\nkey = {key}\n"
        );
        fs::write(pki.path("sidecar.toml"), text).unwrap();
        let mut check = Command::new(env!("CARGO_BIN_EXE_heartbeat-sidecar"));
        let output = check.arg("check").arg("--config").arg(pki.path("sidecar.toml")).env_clear().output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (printed, wrong) = checked("blue");
    assert_eq!(wrong, "");
    let config = |name: &str| load(&Sources { config: Some(pki.path(name)), ..Sources::default() }).unwrap().config;
    fs::write(pki.path("printed.toml"), printed).unwrap();
    assert_eq!(config("printed.toml"), config("sidecar.toml"));
    assert_eq!(config("printed.toml").tls.certificates.len(), 1);
    let (_printed, wrong) = checked("nobody");
    assert!(wrong.contains("nobody.crt\": has no DNS name"), "{wrong}");
    let (_printed, wrong) = checked("gone");
    assert!(wrong.contains("gone.crt\": cannot be read: No such file"), "{wrong}");
}
