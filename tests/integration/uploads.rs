//! Uploads that the app rejects early: its response reaches the client before the request was read whole.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::http2::{Browser, whole};
use crate::support::tls::{Pki, Sides};
use crate::support::{App, Sidecar, soon};

const MIB: usize = 1 << 20;
const CLIENTS: usize = 40;
const TOO_LARGE: &str = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n\r\ntoo large";

/// How the app ends a connection after reading only an upload's head.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// It closes, and the kernel sends a reset for unread data.
    Reset,
    /// It half-closes and keeps reading until the client closes.
    Linger,
}

/// An app that answers every upload at once.
async fn reject_upload(app: App, ending: Ending) {
    let mut ends = JoinSet::new();
    loop {
        let mut wire = app.accept().await;
        ends.spawn(async move {
            wire.head().await;
            wire.send(TOO_LARGE).await;
            match ending {
                Ending::Reset => drop(wire),
                Ending::Linger => {
                    wire.stream.shutdown().await.unwrap();
                    let _reset_or_end = tokio::io::copy(&mut wire.stream, &mut tokio::io::sink()).await;
                }
            }
        });
    }
}

/// What a simple client receives: it sends all it can, then reads.
async fn upload(sidecar: &Sidecar, framing: &str, body: Vec<u8>) -> String {
    let mut stream = soon(TcpStream::connect(sidecar.address)).await.unwrap();
    let head = format!("PUT /upload HTTP/1.1\r\nHost: app.test\r\n{framing}\r\n");
    let mut answer = vec![0; 4096];
    let answered = async {
        let _cut_short = stream.write_all(&[head.into_bytes(), body].concat()).await;
        let (mut length, mut more) = (0, 1);
        while more > 0 && !answer[..length].ends_with(b"too large") {
            more = stream.read(&mut answer[length..]).await.unwrap_or(0);
            length += more;
        }
        String::from_utf8_lossy(&answer[..length]).into_owned()
    };
    tokio::time::timeout(Duration::from_secs(60), answered).await.expect("an answer, or an end")
}

/// How many of the clients read the app's answer.
async fn count_answered(ending: Ending, sizes: &[usize]) -> usize {
    let (app, sidecar) = Sidecar::with_app().await;
    let app = tokio::spawn(reject_upload(app, ending));
    let sidecar = std::sync::Arc::new(sidecar);
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (sidecar, size) = (sidecar.clone(), sizes[client % sizes.len()]);
        clients.spawn(async move {
            if client % 2 == 0 {
                upload(&sidecar, &format!("Content-Length: {size}\r\n"), vec![b'x'; size]).await
            } else {
                let chunks =
                    [format!("{size:x}\r\n").into_bytes(), vec![b'x'; size], b"\r\n0\r\n\r\n".to_vec()].concat();
                upload(&sidecar, "Transfer-Encoding: chunked\r\n", chunks).await
            }
        });
    }
    let answers = clients.join_all().await;
    app.abort();
    let other = answers.iter().filter(|answer| !answer.starts_with("HTTP/1.1 413 ") || !answer.ends_with("too large"));
    let other: Vec<_> = other.map(|answer| answer.lines().next()).collect();
    println!("{ending:?}, {sizes:?}: {} others: {other:?}", other.len());
    CLIENTS - other.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_receives_an_early_rejection_of_its_upload() {
    for ending in [Ending::Reset, Ending::Linger] {
        for size in [10_000, MIB, 8 * MIB] {
            assert_eq!(count_answered(ending, &[size]).await, CLIENTS, "{ending:?}, {size} bytes");
        }
    }
}

#[tokio::test]
async fn an_early_response_is_complete_even_if_the_client_reads_it_late() {
    let (app, sidecar) = Sidecar::with_app().await;
    // The sidecar's kernel has all of it before the app's kernel resets, which drops unsent data.
    let body = vec![b'y'; 32 * 1024];
    let answer = [&b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 32768\r\n\r\n"[..], &body].concat();
    for _upload in 0..10 {
        let mut browser = sidecar.connect().await;
        browser.send("PUT / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1000000000\r\n\r\n").await;
        let mut upstream = app.accept().await;
        upstream.head().await;
        browser.send(vec![b'x'; MIB]).await;
        upstream.send(&answer).await;
        drop(upstream);
        browser.send(vec![b'x'; MIB]).await;
        assert!(browser.head().await.starts_with("HTTP/1.1 413 "));
        browser.expect(&body).await;
    }
}

#[tokio::test]
async fn an_http_2_client_receives_an_early_response_too() {
    let (pki, app) = (Pki::new(), App::bind().await);
    let mut config = app.config();
    pki.configure(Sides::Browser, &mut config);
    let sidecar = Sidecar::start(config).await;
    let _app = tokio::spawn(reject_upload(app, Ending::Reset));
    for _request in 0..CLIENTS {
        let mut browser = Browser::connect(&pki, sidecar.address).await;
        let request = http::Request::put("https://app.test/upload").body(()).unwrap();
        let (answer, mut body) = browser.start(request);
        body.reserve_capacity(64 * 1024);
        body.send_data(vec![b'x'; 64 * 1024].into(), false).unwrap();
        let mut answer = answer.await.unwrap();
        assert_eq!(answer.status(), 413);
        assert_eq!(whole(answer.body_mut()).await.unwrap(), b"too large");
    }
}

#[tokio::test]
async fn an_early_response_of_an_app_under_tls_is_received_too() {
    let (pki, app) = (Pki::new(), App::bind().await);
    let mut config = app.config();
    pki.configure(Sides::Upstream, &mut config);
    let sidecar = Sidecar::start(config).await;
    for _upload in 0..10 {
        let refused = async {
            let mut upstream = pki.accept(&app).await;
            // Otherwise the answer waits behind the session tickets, and the reset drops it.
            upstream.stream.get_ref().0.set_nodelay(true).unwrap();
            upstream.head().await;
            upstream.send(TOO_LARGE).await;
        };
        let body = vec![b'x'; 4 * MIB];
        let ((), answer) = tokio::join!(refused, upload(&sidecar, "Content-Length: 4194304\r\n", body));
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }
}

#[tokio::test]
async fn a_client_that_keeps_sending_a_rejected_upload_is_disconnected() {
    const MAX_BYTES: usize = 100 * MIB;
    let (app, sidecar) = Sidecar::with_app().await;
    let _app = tokio::spawn(reject_upload(app, Ending::Reset));
    let mut browser = sidecar.connect().await;
    browser.send("PUT / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let chunk = [&b"10000\r\n"[..], &[b'x'; 0x10000], b"\r\n"].concat();
    let mut sent = 0;
    while sent < MAX_BYTES && soon(browser.stream.write_all(&chunk)).await.is_ok() {
        sent += chunk.len();
    }
    assert!(sent < MAX_BYTES, "{sent} bytes of a refused upload");
    sidecar.until("client_connections", &[], 0.0).await;
}

#[tokio::test]
async fn an_upload_to_a_hung_app_ends_when_its_client_resets() {
    for answers in [false, true] {
        let (app, sidecar) = Sidecar::with_app().await;
        let mut client = sidecar.connect().await;
        client.send("PUT /upload HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1000000000\r\n\r\n").await;
        let mut hung = app.accept().await;
        hung.head().await;
        if answers {
            hung.send(TOO_LARGE).await;
            client.head().await;
        }
        let more_than_sockets_hold = vec![0; 32 * MIB];
        let sent = tokio::time::timeout(Duration::from_secs(1), client.stream.write_all(&more_than_sockets_hold)).await;
        assert!(answers || sent.is_err(), "the app reads nothing");
        client.reset();
        sidecar.until("client_connections", &[], 0.0).await;
        let _reset_or_end = hung.rest().await;
    }
}
