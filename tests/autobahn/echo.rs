//! An echo server for Autobahn|Testsuite, built on tungstenite. It prints its address and echoes every message.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, _peer) = listener.accept().await?;
        tokio::spawn(async {
            // Autobahn sends protocol errors on purpose and checks the close itself.
            let _ended = echo(stream).await;
        });
    }
}

/// Selects Streamlit's subprotocol, which all of its clients offer.
#[expect(clippy::result_large_err, reason = "the signature is tungstenite's")]
fn select(_request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("streamlit"));
    Ok(response)
}

async fn echo(stream: TcpStream) -> Result<(), Error> {
    let mut websocket = accept_hdr_async(stream, select).await?;
    while let Some(message) = websocket.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            websocket.send(message).await?;
        }
    }
    Ok(())
}
