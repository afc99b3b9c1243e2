//! A handshake passes in the same bytes, however TCP cuts it: whole heads are read without hyper, others by hyper.

use crate::support::{ACCEPT, App, KEY, Sidecar, Wire};

/// Requests for a websocket: typical ones, and what two parsers might read differently.
fn requests() -> Vec<String> {
    let of = |lines: &str| {
        format!(
            "GET /_stcore/stream?a=%20b HTTP/1.1\r\nHost: app.test\r\nConnection: keep-alive, Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nX-Request-ID: one\r\n{lines}\r\n"
        )
    };
    vec![
        of("Sec-WebSocket-Protocol: streamlit, , id\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"),
        of("cOOKIE: a=b\r\nX-twice: 1\r\nX-Between: \r\nx-tWICE:   2 \t\r\n"),
        of("X-Latin: \u{e4}\r\nConnection: X-Named\r\nx-named: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n"),
        of("Upgrade: h2c\r\nX-Forwarded-For: 192.0.2.1\r\nX-Real-IP: 192.0.2.1\r\n"),
        of("Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nExpect: 100-continue\r\nOrigin: http://app.test\r\n"),
        of("").replace("\r\n", "\n"),
        of("").replacen("GET ", "\r\n\r\nGET ", 1),
        of("").replacen("/_stcore/stream?a=%20b", "//double?#fragment", 1),
    ]
}

/// 101 answers, likewise.
fn answers() -> Vec<String> {
    let of = |lines: &str| {
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {ACCEPT}\r\n{lines}\r\n"
        )
    };
    vec![
        of(
            "Server: TornadoServer/6.5.1\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nSec-Websocket-Protocol: streamlit\r\n",
        ),
        of("sERVER: a\r\nX-twice: 1\r\nX-Between: \r\nx-tWICE:   2 \t\r\nSet-Cookie: a=b\r\nset-cookie: c=d\r\n"),
        of("X-Latin: \u{e4}\r\nConnection: X-Named\r\nx-named: 1\r\nKeep-Alive: timeout=5\r\n"),
        of("").replacen("Switching Protocols", "", 1),
        of("").replacen("Switching Protocols", "As  You Like", 1),
        of("").replacen(" Switching Protocols", "", 1),
        of("").replace("\r\n", "\n"),
    ]
}

/// What the app and the browser receive of a handshake that is sent in these pieces.
async fn passed(app: &App, sidecar: &Sidecar, request: [&[u8]; 2], answer: [&[u8]; 2]) -> (String, String) {
    let mut browser = sidecar.connect().await;
    send_pieces(sidecar, &mut browser, request).await;
    let mut upstream = app.accept().await;
    let received = upstream.head().await;
    send_pieces(sidecar, &mut upstream, answer).await;
    let answer = browser.head().await;
    // The sidecar's own.
    let lines =
        answer.split_inclusive("\r\n").map(|line| if line.starts_with("date: ") { "date: now\r\n" } else { line });
    (received, lines.collect())
}

/// The second piece is sent when the sidecar has read the first.
async fn send_pieces(sidecar: &Sidecar, to: &mut Wire, [first, second]: [&[u8]; 2]) {
    to.stream.set_nodelay(true).expect("a TCP socket");
    to.send(first).await;
    if !second.is_empty() {
        for _round in 0..3 {
            // Answered once the relay's runtime has run a task.
            sidecar.admin("/livez").await;
        }
        to.send(second).await;
    }
}

/// Latin-1, as the heads above are written.
fn bytes(head: &str) -> Vec<u8> {
    head.chars().map(|letter| u8::try_from(u32::from(letter)).expect("Latin-1")).collect()
}

#[tokio::test]
async fn a_handshake_in_two_pieces_passes_in_the_same_bytes_as_a_whole_one() {
    let (app, sidecar) = Sidecar::with_app().await;
    let typical = (bytes(&requests()[0]), bytes(&answers()[0]));
    let varied_requests = requests().into_iter().map(|request| (bytes(&request), typical.1.clone()));
    let varied_answers = answers().into_iter().map(|answer| (typical.0.clone(), bytes(&answer)));
    for (request, answer) in varied_requests.chain(varied_answers) {
        let (whole_request, whole_answer) = ([&request[..], b""], [&answer[..], b""]);
        let whole = passed(&app, &sidecar, whole_request, whole_answer).await;
        for at in [1, 20, 60, request.len() - 1] {
            let split = passed(&app, &sidecar, request.split_at(at).into(), whole_answer).await;
            assert_eq!(split, whole, "the request is split at {at}");
        }
        for at in [1, 20, 60, answer.len() - 1] {
            let split = passed(&app, &sidecar, whole_request, answer.split_at(at).into()).await;
            assert_eq!(split, whole, "the answer is split at {at}");
        }
    }
}
