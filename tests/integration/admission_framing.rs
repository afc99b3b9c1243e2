//! The end of a request body: ambiguous or invalid framing is rejected, so no second request hides in a body.

use crate::support::http::refused;
use crate::support::tls::{Any, Pki, Sides};
use crate::support::{App, Sidecar, Wire};

const POST: &str = "POST / HTTP/1.1\r\nHost: app.test\r\n";

#[tokio::test]
async fn a_body_with_an_ambiguous_length_is_rejected() {
    for lines in [
        "Content-Length: 1\r\nContent-Length: 2\r\n",
        "Content-Length: +1\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 0x1\r\n",
        "Content-Length: 1, 1\r\n",
        "Transfer-Encoding: gzip\r\n",
    ] {
        assert_eq!(refused(format!("{POST}{lines}\r\na"), "malformed").await, "400", "{lines}");
    }
    for lines in [
        "Content-Length: 9223372036854775808\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    ] {
        assert_eq!(refused(format!("{POST}{lines}\r\n0\r\n\r\n"), "framing").await, "400", "{lines}");
    }
    let old = "POST / HTTP/1.0\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(refused(old, "malformed").await, "400");
}

/// Sends a request in pieces of this size, so that the sidecar reads several. Write errors are ignored, since the
/// connection may be closed.
async fn send_in_pieces(client: &mut Wire<Any>, request: &[u8], size: usize) {
    for piece in request.chunks(size) {
        if tokio::io::AsyncWriteExt::write_all(&mut client.stream, piece).await.is_err() {
            return;
        }
        let _maybe_closed = tokio::io::AsyncWriteExt::flush(&mut client.stream).await;
        tokio::task::yield_now().await;
    }
}

/// Sends a bad request after `before`, in one write with it unless `separate`, and expects a 400.
async fn expect_rejection(app: &App, mut client: Wire<Any>, (before, separate): (&str, bool), bad: &str, size: usize) {
    let case = format!("pieces of {size}, behind {before:?}: {bad:?}");
    if !separate {
        send_in_pieces(&mut client, [before, bad].concat().as_bytes(), size).await;
    } else if !before.is_empty() {
        client.send(before).await;
    }
    if !before.is_empty() {
        let mut upstream = app.accept().await;
        upstream.head().await;
        upstream.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200 "), "{case}");
    }
    if separate {
        send_in_pieces(&mut client, bad.as_bytes(), size).await;
    }
    let response = client.head().await.to_ascii_lowercase();
    assert!(response.starts_with("http/1.1 400 ") && response.contains("connection: close"), "{case}: {response}");
    let _body_and_end_or_reset = client.rest().await;
    assert!(app.is_untouched(), "{case}");
}

#[tokio::test]
async fn content_length_with_chunked_is_rejected_on_every_request_of_a_connection() {
    const LENGTH: &str = "Content-Length: 5\r\n";
    const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
    let between = "X-Between: 1\r\nContent-Type: a/b\r\n";
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: app.test\r\n\r\n";
    let heads = [
        [LENGTH, CHUNKED].concat(),
        [CHUNKED, LENGTH].concat(),
        [CHUNKED, between, LENGTH].concat(),
        [between, LENGTH, between, CHUNKED, between].concat(),
        [CHUNKED, LENGTH, LENGTH].concat(),
        [LENGTH, CHUNKED, "Content-Length: 7\r\n"].concat(),
        [CHUNKED, "cONTENT-lENGTH:\r\n"].concat(),
        [CHUNKED, "Content-Length: nonsense\r\n"].concat(),
        [LENGTH, "transfer-encoding:chunked\r\nConnection: close\r\n"].concat(),
    ];
    for encrypted in [false, true] {
        println!("encrypted: {encrypted}");
        let (app, pki) = (App::bind().await, Pki::new());
        let mut config = app.config();
        if encrypted {
            pki.configure(Sides::Browser, &mut config);
        }
        let sidecar = Sidecar::start(config).await;
        let mut rejected = 0.0;
        for (lines, size) in heads.iter().flat_map(|lines| [1, 7, 10_000].map(|size| (lines, size))) {
            // Before it on the connection: nothing, or a request without or with a body, also in one write.
            for before in [
                ("", true),
                ("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n", true),
                ("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 4\r\n\r\nbody", true),
                ("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n", false),
                ("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 4\r\n\r\nbody", false),
            ] {
                let client: Wire<Any> = match encrypted {
                    true => Wire::new(Box::new(pki.connect(sidecar.address).await.stream)),
                    false => Wire::new(Box::new(sidecar.connect().await.stream)),
                };
                let bad = format!("{POST}{lines}\r\n{smuggled}");
                expect_rejection(&app, client, before, &bad, size).await;
                rejected += 1.0;
            }
        }
        let framing = sidecar.metric("rejections_total", &[("reason", "framing")]).await;
        let malformed = sidecar.metric("rejections_total", &[("reason", "malformed")]).await;
        assert_eq!(framing + malformed, rejected);
        // hyper rejects an invalid length only if it comes first.
        assert_eq!(malformed, 0.0);
    }
}

#[tokio::test]
async fn requests_with_only_a_length_or_only_chunks_reach_the_app_in_sequence() {
    let length = format!("{POST}Content-Length: 16\r\nX: Transfer-Encoding: x\r\n\r\nTransfer-Encoding");
    let (length, rest) = length.split_at(length.len() - 1);
    assert_eq!(rest, "g");
    let chunks = format!("{POST}Transfer-Encoding: chunked\r\n\r\n12\r\n\r\nContent-Length: \r\n0\r\n\r\n");
    for size in [1, 7, 10_000] {
        let (app, sidecar) = Sidecar::with_app().await;
        let mut client: Wire<Any> = Wire::new(Box::new(sidecar.connect().await.stream));
        for (request, body) in [
            (length, "Transfer-Encodin"),
            (length, "Transfer-Encodin"),
            (&chunks, "12\r\n\r\nContent-Length: \r\n0\r\n\r\n"),
        ] {
            send_in_pieces(&mut client, request.as_bytes(), size).await;
            let mut upstream = app.accept().await;
            upstream.head().await;
            upstream.expect(body).await;
            upstream.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
            assert!(client.head().await.starts_with("HTTP/1.1 200 "));
        }
        // The end of the chunks is not tracked, so the connection closes.
        client.end().await;
        assert_eq!(sidecar.metric("rejections_total", &[]).await, 0.0);
    }
}

#[tokio::test]
async fn a_body_with_invalid_framing_is_aborted_and_not_completed() {
    for chunks in ["1;a\nb\r\na\r\n", "1\r\nab\r\n", "fffffffffffffffff\r\na\r\n", "0x1\r\na\r\n", "-1\r\na\r\n"] {
        let (app, sidecar) = Sidecar::with_app().await;
        let mut browser = sidecar.connect().await;
        browser.send(format!("{POST}Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")).await;
        let answer = String::from_utf8(browser.rest().await.unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{chunks:?}: {answer}");
        let got = app.accept().await.rest().await.map(|bytes| String::from_utf8(bytes).unwrap());
        assert!(got.is_err() || got.as_ref().is_ok_and(|got| !got.ends_with("0\r\n\r\n")), "{chunks:?}: {got:?}");
        assert_eq!(sidecar.metric("rejections_total", &[("reason", "framing")]).await, 1.0);
    }
}

#[tokio::test]
async fn forbidden_trailer_fields_are_dropped() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    let trailers = "X-Sum: 1\r\nHost: evil\r\nContent-Length: 9\r\nTransfer-Encoding: gzip\r\n";
    let announced = "Trailer: X-Sum, Host, Content-Length, Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n";
    browser.send(format!("{POST}{announced}\r\n1\r\na\r\n0\r\n{trailers}\r\n")).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    upstream.expect("1\r\na\r\n0\r\nx-sum: 1\r\n\r\n").await;
}
