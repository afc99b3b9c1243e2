//! Memory while bodies and messages of any size stream through.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::oneshot;

use crate::support::frame::{BINARY, header};
use crate::support::{Session, Sidecar, Wire, soon};
use crate::{MIB, STREAM, alone, growth};

static CHUNK: [u8; 1 << 16] = [0; 1 << 16];

/// Writes `bytes` zeros; the last chunk only after the first has arrived.
async fn write_zeros(end: &mut (impl AsyncWrite + Unpin), bytes: usize, first_arrived: oneshot::Receiver<()>) {
    let mut left = bytes;
    while left > CHUNK.len() {
        left -= soon(end.write(&CHUNK)).await.unwrap();
    }
    soon(first_arrived).await.unwrap();
    soon(end.write_all(&CHUNK[..left])).await.unwrap();
}

/// Reads and drops `bytes` bytes.
async fn read_zeros(end: &mut (impl AsyncRead + Unpin), bytes: usize, first_arrived: oneshot::Sender<()>) {
    let (mut buffer, mut left, mut first_arrived) = (vec![0; CHUNK.len()], bytes, Some(first_arrived));
    while left > 0 {
        let limit = left.min(buffer.len());
        let received = soon(end.read(&mut buffer[..limit])).await.unwrap();
        assert!(received > 0, "ended with {left} bytes missing");
        left -= received;
        if let Some(first_arrived) = first_arrived.take() {
            first_arrived.send(()).unwrap();
        }
    }
}

/// Streams `bytes` from one endpoint to the other; the first arrive before the last are sent.
async fn flow(from: &mut Wire, to: &mut Wire, bytes: usize) {
    let (sender, receiver) = oneshot::channel();
    tokio::join!(write_zeros(&mut from.stream, bytes, receiver), read_zeros(&mut to.stream, bytes, sender));
}

#[test]
fn a_200_mb_message_streams_through_in_constant_memory_in_either_direction() {
    const SIZE: usize = 200 * 1000 * 1000;
    alone(async {
        let (app, sidecar) = Sidecar::with_app().await;
        for path in [STREAM, "/other"] {
            let Session { mut browser, app: mut upstream } = sidecar.open(&app, path).await;
            for size in [MIB, SIZE] {
                let grown = growth(async {
                    upstream.send(header(BINARY, size as u64, false)).await;
                    browser.expect(header(BINARY, size as u64, false)).await;
                    flow(&mut upstream, &mut browser, size).await;
                    browser.send(header(BINARY, size as u64, true)).await;
                    upstream.expect(header(BINARY, size as u64, true)).await;
                    flow(&mut browser, &mut upstream, size).await;
                })
                .await;
                println!("{size} bytes each way on {path}: memory grew by {} KiB", grown / 1024);
                assert!(grown < 8 * MIB, "{grown}");
            }
        }
        let sent = [("direction", "upstream_to_browser")];
        assert_eq!(sidecar.metric("message_bytes_total", &sent).await as usize, 2 * (SIZE + MIB));
    });
}

#[test]
fn a_300_mb_upload_and_download_stream_through_in_constant_memory() {
    const SIZE: usize = 300 * 1000 * 1000;
    alone(async {
        let (app, sidecar) = Sidecar::with_app().await;
        let mut browser = sidecar.connect().await;
        for size in [MIB, SIZE] {
            let grown = growth(async {
                let line = format!("PUT /upload HTTP/1.1\r\nHost: app.test\r\nContent-Length: {size}\r\n\r\n");
                browser.send(line).await;
                let mut upstream = app.accept().await;
                upstream.head().await;
                flow(&mut browser, &mut upstream, size).await;
                upstream.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")).await;
                browser.head().await;
                flow(&mut upstream, &mut browser, size).await;
            })
            .await;
            println!("{size} bytes up and down: memory grew by {} KiB", grown / 1024);
            assert!(grown < 16 * MIB, "{grown}");
        }
    });
}

#[test]
fn a_browser_that_does_not_read_costs_no_memory() {
    alone(async {
        let (app, sidecar) = Sidecar::with_app().await;
        let Session { browser, app: mut upstream } = sidecar.stream(&app).await;
        upstream.send(header(BINARY, 200_000_000, false)).await;
        let mut written = 0;
        let grown = growth(async {
            // No event shows that a socket accepts no more, so the test waits for many round trips.
            while let Ok(count) = tokio::time::timeout(Duration::from_millis(300), upstream.stream.write(&CHUNK)).await
            {
                written += count.unwrap();
                assert!(written < 64 * MIB, "64 MiB were accepted");
            }
        })
        .await;
        println!("{written} bytes in the kernel's buffers: memory grew by {} KiB", grown / 1024);
        assert!(written > 0 && grown < 2 * MIB, "{grown}");
        drop(browser);
    });
}

#[test]
fn a_message_of_a_million_empty_fragments_costs_no_memory() {
    const FRAGMENTS: usize = 1_000_000;
    alone(async {
        let (app, sidecar) = Sidecar::with_app().await;
        for masked in [false, true] {
            let Session { browser, app: upstream } = sidecar.stream(&app).await;
            let (mut from, mut to) = if masked { (browser, upstream) } else { (upstream, browser) };
            let (opening, fragment) = (header(0x02, 0, masked), header(0x00, 0, masked));
            let batch = fragment.repeat(1000);
            let grown = growth(async {
                from.send(&opening).await;
                to.expect(&opening).await;
                for _thousand in 0..FRAGMENTS / 1000 {
                    from.send(&batch).await;
                    to.expect(&batch).await;
                }
            })
            .await;
            let last = header(0x80, 0, masked);
            from.send(&last).await;
            to.expect(&last).await;
            println!("a million fragments, masked: {masked}: memory grew by {} KiB", grown / 1024);
            assert!(grown < 2 * MIB, "{grown}");
        }
        assert_eq!(sidecar.metric("sessions_unparsable_total", &[]).await, 0.0);
    });
}
