//! An echo server by tungstenite for Autobahn|Testsuite: prints its address and sends every message back.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Error;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, _peer) = listener.accept().await?;
        tokio::spawn(async {
            // What Autobahn sends is broken on purpose: it sees how the session ends, and nobody else asks.
            let _ended = echo(stream).await;
        });
    }
}

async fn echo(stream: TcpStream) -> Result<(), Error> {
    let mut websocket = accept_async(stream).await?;
    while let Some(message) = websocket.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            websocket.send(message).await?;
        }
    }
    Ok(())
}
