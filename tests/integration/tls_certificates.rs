//! Certificates on either side: which are required, which are rejected, and reloads of changed files.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use heartbeat_sidecar::sidecar;
use rustls::ALL_VERSIONS;
use rustls::version::TLS12;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::frame::{TEXT, masked};
use crate::support::process::Process;
use crate::support::tls::{ANSWER, Pki, REQUEST, Sides};
use crate::support::{App, Sidecar, Wire, handshake, soon, switching};

const STREAM: &str = "/_stcore/stream";

#[tokio::test]
async fn with_client_ca_set_clients_without_its_certificate_are_rejected() {
    let (pki, app) = (Pki::new(), App::bind().await);
    let mut config = app.config();
    pki.configure(Sides::Browser, &mut config);
    config.tls.client_ca = Some(pki.path("ca.crt"));
    let sidecar = Sidecar::start(config).await;
    let foreign = Pki::new();
    fs::copy(pki.path("ca.crt"), foreign.path("ca.crt")).unwrap();
    for (config, accepted) in [
        (pki.client(ALL_VERSIONS, true), true),
        (pki.client(ALL_VERSIONS, false), false),
        (pki.client(&[&TLS12], true), true),
        (pki.client(&[&TLS12], false), false),
        (foreign.client(ALL_VERSIONS, true), false),
    ] {
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        let socket = sidecar.connect().await.stream;
        let served = soon(async {
            let mut browser = connector.connect("app.test".try_into().unwrap(), socket).await?;
            browser.write_all(REQUEST.as_bytes()).await?;
            if accepted {
                let mut upstream = app.accept().await;
                upstream.head().await;
                upstream.send(ANSWER).await;
            }
            browser.read_u8().await
        });
        assert_eq!(served.await.is_ok(), accepted);
    }
    assert!(app.is_untouched());
    sidecar.until("rejections_total", &[("reason", "tls")], 3.0).await;
}

#[tokio::test]
async fn the_sidecar_sends_its_certificate_to_an_app_that_requires_one() {
    let (pki, app) = (Pki::new(), App::bind().await);
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(pki.server(true)));
    for shows in [true, false] {
        let mut config = app.config();
        pki.configure(Sides::Upstream, &mut config);
        if shows {
            let pair = (Some(pki.path("client.crt")), Some(pki.path("client.key")));
            (config.upstream_tls.certificate, config.upstream_tls.key) = pair;
        }
        let sidecar = Sidecar::start(config).await;
        let mut browser = sidecar.connect().await;
        browser.send(REQUEST).await;
        let serve = async {
            let accepted = soon(acceptor.accept(app.accept().await.stream)).await;
            assert_eq!(accepted.is_ok(), shows);
            if let Ok(stream) = accepted {
                let mut upstream = Wire::new(stream);
                upstream.head().await;
                upstream.send(ANSWER).await;
            }
        };
        let ((), head) = tokio::join!(serve, browser.head());
        assert!(head.starts_with(if shows { "HTTP/1.1 200 " } else { "HTTP/1.1 502 " }), "{head}");
    }
}

#[tokio::test]
async fn an_app_with_an_invalid_certificate_gets_no_request_and_the_reason_is_logged() {
    let (pki, other, app) = (Pki::new(), Pki::new(), App::bind().await);
    let (ca, other_ca) = (pki.path("ca.crt"), other.path("ca.crt"));
    let upstream = format!("--upstream=https://{}", app.address());
    for (ca, name, reason) in [
        (&ca, "wrong.test", "not valid for name"),
        (&other_ca, "", "invalid peer certificate: UnknownIssuer"),
        (&ca, "", ""),
        (&ca, "app.test", ""),
    ] {
        let (ca, name) = (format!("--upstream-tls-ca={}", ca.display()), format!("--upstream-tls-server-name={name}"));
        let mut process = Process::start_alone(&[&upstream, &ca, &name]).await;
        for websocket in [false, true] {
            let mut browser = Wire::connect(process.address).await;
            browser.send(if websocket { handshake(STREAM, "") } else { REQUEST.to_owned() }).await;
            let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(pki.server(false)));
            let serve = async {
                let accepted = soon(acceptor.accept(app.accept().await.stream)).await;
                assert_eq!(accepted.is_ok(), reason.is_empty());
                let Ok(stream) = accepted else { return };
                let mut upstream = Wire::new(stream);
                upstream.head().await;
                upstream.send(if websocket { switching("") } else { ANSWER.to_owned() }).await;
            };
            let ((), head) = tokio::join!(serve, browser.head());
            if reason.is_empty() {
                assert!(!head.starts_with("HTTP/1.1 502 "), "{head}");
                continue;
            }
            assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
            // The second failure is too soon to be logged.
            if !websocket {
                let line = process.line("upstream failed").await;
                assert!(line["error"].as_str().unwrap().contains(reason), "{line}");
            }
        }
    }
}

#[tokio::test]
async fn valid_certificates_are_reloaded_under_live_sessions_and_broken_ones_are_not() {
    let (pki, app) = (Pki::new(), App::bind().await);
    // As Kubernetes mounts a secret: files are links into a folder that is a link.
    let place = |folder: &str, year: i32| {
        fs::create_dir(pki.path(folder)).unwrap();
        pki.issue(&format!("{folder}/tls"), year);
    };
    let swap = |folder: &str| {
        symlink(folder, pki.path("..new")).unwrap();
        fs::rename(pki.path("..new"), pki.path("..data")).unwrap();
    };
    place("..1", 2041);
    symlink("..1", pki.path("..data")).unwrap();
    for name in ["tls.crt", "tls.key"] {
        fs::remove_file(pki.path(name)).unwrap();
        symlink(format!("..data/{name}"), pki.path(name)).unwrap();
    }
    let mut config = app.config();
    pki.configure(Sides::Browser, &mut config);
    let sidecar = Sidecar::start(config).await;
    let mut browser = pki.connect(sidecar.address).await;
    browser.send(handshake(STREAM, "")).await;
    let (_head, mut upstream) = app.shake_hands("").await;
    browser.head().await;
    let expires = async || sidecar.metric("tls_certificate_not_after_timestamp_seconds", &[]).await;
    let shown = async || {
        let wire = pki.connect(sidecar.address).await;
        wire.stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let (first, first_expires) = (shown().await, expires().await);
    assert!(first_expires == 2_240_611_200.0, "{first_expires}");

    place("..2", 2042);
    swap("..2");
    sidecar.until("tls_reloads_total", &[("result", "accepted")], 1.0).await;
    let second = shown().await;
    assert!(second != first && expires().await == 2_272_147_200.0);

    place("..3", 2043);
    fs::copy(pki.path("..1/tls.key"), pki.path("..3/tls.key")).unwrap();
    swap("..3");
    sidecar.until("tls_reloads_total", &[("result", "refused")], 1.0).await;
    assert!(shown().await == second && expires().await == 2_272_147_200.0);
    fs::remove_file(pki.path("..data")).unwrap();
    sidecar.until("tls_reloads_total", &[("result", "refused")], 2.0).await;
    assert!(shown().await == second, "a missing file changes nothing");

    browser.send(masked(TEXT, "still here")).await;
    upstream.expect(masked(TEXT, "still here")).await;
    assert!(pki.ask(&app, &sidecar).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(sidecar.metric("tls_reloads_total", &[]).await, 3.0, "each change is counted once");
}

#[tokio::test]
async fn an_invalid_certificate_or_key_is_an_error_that_names_its_file() {
    let (pki, other) = (Pki::new(), Pki::new());
    let check = |flags: &[String]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_heartbeat-sidecar"));
        // Otherwise the sidecar would warn about the variables of the test run.
        let output = command.arg("check").args(flags).env_clear().output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.success(), errors.is_empty(), "{errors}");
        errors.replace(&format!("{}/", pki.path("").display()), "").replace(&format!("{}", pki.path("").display()), "")
    };
    let flag = |name: &str, file: &std::path::Path| format!("--{name}={}", file.display());
    let (certificate, key) = (flag("tls-certificate", &pki.path("tls.crt")), flag("tls-key", &pki.path("tls.key")));
    assert_eq!(check(&[certificate.clone(), key.clone()]), "");
    fs::write(pki.path("empty"), "").unwrap();
    fs::copy(other.path("tls.key"), pki.path("other.key")).unwrap();
    let rest = |flags: [String; 2], expected: &str| {
        let errors = check(&flags);
        assert!(errors.starts_with(&format!("error: {expected}")), "{errors}");
    };
    rest(
        [certificate.clone(), flag("tls-key", &pki.path("other.key"))],
        "tls.key = \"other.key\": is not the key of the certificate in tls.crt",
    );
    rest(
        [certificate.clone(), flag("tls-key", &pki.path("none"))],
        "tls.key = \"none\": cannot be read: No such file or directory",
    );
    rest(
        [certificate.clone(), flag("tls-key", &pki.path("empty"))],
        "tls.key = \"empty\": contains no PEM private key",
    );
    rest(
        [flag("tls-certificate", &pki.path("empty")), key],
        "tls.certificate = \"empty\": contains no PEM certificate",
    );
    rest(
        [certificate.clone(), String::from("--log-level=info")],
        "tls.certificate = \"tls.crt\" (--tls-certificate) also needs tls.key",
    );
    let upstream = "--upstream=https://127.0.0.1:1".to_owned();
    rest(
        [upstream, flag("upstream-tls-ca", &pki.path("empty"))],
        "upstream_tls.ca = \"empty\": contains no PEM certificate",
    );

    let mut config = App::bind().await.config();
    pki.configure(Sides::Browser, &mut config);
    config.tls.key = Some(pki.path("empty"));
    let error = sidecar::Sidecar::bind(config).await.err().expect("no key").to_string();
    assert!(error.contains("/empty\": contains no PEM private key"), "{error}");
}
