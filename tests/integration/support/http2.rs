//! An HTTP/2 browser: built on a library, or frame by frame for input that no library sends.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use heartbeat_sidecar::config::Config;
use http::{Request, Response, StatusCode};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;

use super::tls::{Pki, Sides};
use super::{App, Sidecar, Wire, soon};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection; requests may be concurrent.
pub(crate) struct Browser {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl Browser {
    pub(crate) async fn connect(pki: &Pki, address: SocketAddr) -> Self {
        let stream = pki.offer(address, &[b"h2", b"http/1.1"]).await;
        // Room for other streams while one is full.
        let mut client = h2::client::Builder::new();
        let (requests, connection) =
            soon(client.initial_connection_window_size(1 << 20).handshake(stream)).await.unwrap();
        Self { requests, connection: tokio::spawn(connection) }
    }

    /// Sends a request's head; returns the response and the body's sender.
    #[track_caller]
    pub(crate) fn start(
        &mut self,
        request: Request<()>,
    ) -> (impl Future<Output = Result<Response<RecvStream>, h2::Error>> + use<>, SendStream<Bytes>) {
        let (answer, body) = self.requests.send_request(request, false).unwrap();
        (soon(answer), body)
    }

    /// Sends a request without a body; returns the response.
    #[track_caller]
    pub(crate) fn ask(
        &mut self,
        request: Request<()>,
    ) -> impl Future<Output = Result<Response<RecvStream>, h2::Error>> + use<> {
        soon(self.requests.send_request(request, true).unwrap().0)
    }

    /// How the connection ends.
    pub(crate) async fn ended(self) -> Result<(), h2::Error> {
        soon(self.connection).await.unwrap()
    }
}

/// Reads a whole body, and releases window as data arrives.
pub(crate) async fn whole(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = soon(body.data()).await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok(all)
}

/// A GET request.
pub(crate) fn get(path: &str) -> Request<()> {
    Request::get(format!("https://app.test{path}")).body(()).unwrap()
}

/// A frame (RFC 9113 §4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as literals without indexing (RFC 7541 §6.2.2), so they are sent as written here.
pub(crate) fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| {
        let mut coded = vec![u8::try_from(text.len().min(127)).unwrap()];
        if let Some(mut rest) = text.len().checked_sub(127) {
            while rest >= 128 {
                coded.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            coded.push(rest as u8);
        }
        [&coded, text.as_bytes()].concat()
    };
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// The fields that every request needs, and these.
pub(crate) fn request(more: &[(&str, &str)]) -> Vec<u8> {
    let least = [(":method", "GET"), (":scheme", "https"), (":authority", "app.test"), (":path", "/")];
    fields(&[&least, more].concat())
}

/// A connection frame by frame, after preface and settings.
pub(crate) struct Frames(pub(crate) Wire<TlsStream<TcpStream>>);

impl Frames {
    pub(crate) async fn connect(pki: &Pki, address: SocketAddr) -> Self {
        let mut wire = Wire::new(pki.offer(address, &[b"h2"]).await);
        wire.send([PREFACE, &frame(SETTINGS, 0, 0, []), &frame(SETTINGS, 1, 0, [])].concat()).await;
        Self(wire)
    }

    /// The next frame: type, stream and payload.
    pub(crate) async fn next(&mut self) -> (u8, u32, Vec<u8>) {
        let header = self.0.exactly(9).await;
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, &byte| number << 8 | u32::from(byte));
        let payload = self.0.exactly(number(&header[..3]) as usize).await;
        (header[3], number(&header[5..9]), payload)
    }

    /// The next frame of this type.
    pub(crate) async fn until(&mut self, kind: u8) -> (u32, Vec<u8>) {
        loop {
            let (found, stream, payload) = self.next().await;
            if found == kind {
                return (stream, payload);
            }
        }
    }
}

/// An app, and a sidecar with TLS for browsers in front of it.
pub(crate) struct Scene {
    pub(crate) pki: Pki,
    pub(crate) app: App,
    pub(crate) sidecar: Sidecar,
}

impl Scene {
    pub(crate) async fn new() -> Self {
        Self::with(|_config| {}).await
    }

    pub(crate) async fn with(settings: impl FnOnce(&mut Config)) -> Self {
        let (pki, app) = (Pki::new(), App::bind().await);
        let mut config = app.config();
        pki.configure(Sides::Browser, &mut config);
        settings(&mut config);
        let sidecar = Sidecar::start(config).await;
        Self { pki, app, sidecar }
    }

    pub(crate) async fn browser(&self) -> Browser {
        Browser::connect(&self.pki, self.sidecar.address).await
    }

    pub(crate) async fn frames(&self) -> Frames {
        Frames::connect(&self.pki, self.sidecar.address).await
    }

    pub(crate) async fn rejected(&self, reason: &str) -> f64 {
        self.sidecar.metric("rejections_total", &[("reason", reason)]).await
    }

    /// The head of a request as the app receives it; the app answers 200.
    pub(crate) async fn forwarded(&self, browser: &mut Browser, request: Request<()>) -> String {
        let (answer, head) = tokio::join!(browser.ask(request), async {
            let mut upstream = self.app.accept().await;
            let head = upstream.head().await;
            upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
            head
        });
        let mut answer = answer.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(whole(answer.body_mut()).await.unwrap(), b"ok");
        head
    }
}
