//! Certificates of a test CA, and both ends of TLS by a library that the sidecar does not use.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use heartbeat_sidecar::config::{Config, UpstreamAddress};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::{App, Sidecar, Wire, handshake, soon, switching};

pub(crate) const REQUEST: &str = "GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n";
pub(crate) const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Which sides of the sidecar use TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sides {
    None,
    Browser,
    Upstream,
    Both,
}

/// Those with TLS on some side.
pub(crate) const ENCRYPTED: [Sides; 3] = [Sides::Browser, Sides::Upstream, Sides::Both];

pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection of any kind.
pub(crate) type Any = Box<dyn Io>;

/// Both ends of a websocket through the sidecar.
pub(crate) struct Session {
    pub(crate) browser: Wire<Any>,
    pub(crate) app: Wire<Any>,
}

/// A CA, and a folder with `ca.crt`, `tls.crt`, `tls.key`, `client.crt` and `client.key`.
pub(crate) struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, format!("authority {:x}", rand::random::<u64>()));
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let pki = Self { issuer, folder: tempfile::tempdir().unwrap() };
        fs::write(pki.path("ca.crt"), pki.issuer.pem()).unwrap();
        pki.issue("tls", 2040);
        pki.issue("client", 2040);
        pki
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a certificate for this machine that expires at the start of this year, and its key.
    pub(crate) fn issue(&self, name: &str, year: i32) {
        self.issue_for(name, &["app.test", "127.0.0.1"], year);
    }

    /// Like [`Self::issue`], for these names.
    pub(crate) fn issue_for(&self, name: &str, names: &[&str], year: i32) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{name}.crt")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// Enables TLS on these sides of the sidecar.
    pub(crate) fn configure(&self, sides: Sides, config: &mut Config) {
        if matches!(sides, Sides::Browser | Sides::Both) {
            (config.tls.certificate, config.tls.key) = (Some(self.path("tls.crt")), Some(self.path("tls.key")));
        }
        if matches!(sides, Sides::Upstream | Sides::Both) {
            let UpstreamAddress::Http { host, port } = config.upstream.clone() else { panic!("no plain upstream") };
            config.upstream = UpstreamAddress::Https { host, port };
            config.upstream_tls.ca = Some(self.path("ca.crt"));
        }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.crt")).unwrap()).unwrap();
        roots
    }

    fn pair(&self, name: &Path) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let certificate = CertificateDer::from_pem_file(name.with_extension("crt")).unwrap();
        (vec![certificate], PrivateKeyDer::from_pem_file(name.with_extension("key")).unwrap())
    }

    /// A browser's TLS settings for these versions; it sends `client.crt` if `shows`.
    pub(crate) fn client(&self, versions: &[&'static SupportedProtocolVersion], shows: bool) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let builder = builder.with_root_certificates(self.roots());
        let (certificate, key) = self.pair(&self.path("client"));
        let mut config = match shows {
            true => builder.with_client_auth_cert(certificate, key).unwrap(),
            false => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config
    }

    /// An app server's TLS settings; it requires a certificate of the CA if `asks`.
    pub(crate) fn server(&self, asks: bool) -> ServerConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let builder = match asks {
            true => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(self.roots().into(), provider).build().unwrap(),
            ),
            false => builder.with_no_client_auth(),
        };
        let (certificate, key) = self.pair(&self.path("tls"));
        builder.with_single_cert(certificate, key).unwrap()
    }

    /// A browser's connection under TLS.
    pub(crate) async fn connect(&self, address: SocketAddr) -> Wire<client::TlsStream<TcpStream>> {
        let socket = soon(TcpStream::connect(address)).await.unwrap();
        Wire::new(self.secure(socket, rustls::ALL_VERSIONS).await)
    }

    pub(crate) async fn secure(
        &self,
        socket: TcpStream,
        versions: &[&'static SupportedProtocolVersion],
    ) -> client::TlsStream<TcpStream> {
        let connector = TlsConnector::from(Arc::new(self.client(versions, false)));
        soon(connector.connect(ServerName::try_from("app.test").unwrap(), socket)).await.unwrap()
    }

    /// A browser's connection that offers these protocols by ALPN (RFC 7301).
    pub(crate) async fn offer(&self, address: SocketAddr, protocols: &[&[u8]]) -> client::TlsStream<TcpStream> {
        let mut config = self.client(rustls::ALL_VERSIONS, false);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let socket = soon(TcpStream::connect(address)).await.unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        soon(connector.connect(ServerName::try_from("app.test").unwrap(), socket)).await.unwrap()
    }

    /// The sidecar's next connection to an app under TLS.
    pub(crate) async fn accept(&self, app: &App) -> Wire<server::TlsStream<TcpStream>> {
        let acceptor = TlsAcceptor::from(Arc::new(self.server(false)));
        Wire::new(soon(acceptor.accept(app.accept().await.stream)).await.unwrap())
    }

    /// The head of the response to a request, which the app answers with 200.
    pub(crate) async fn ask(&self, app: &App, sidecar: &Sidecar) -> String {
        let mut browser = self.connect(sidecar.address).await;
        browser.send(REQUEST).await;
        let mut upstream = app.accept().await;
        upstream.head().await;
        upstream.send(ANSWER).await;
        browser.head().await
    }

    /// A session through a new sidecar, with a browser of these TLS versions.
    pub(crate) async fn session(
        &self,
        sides: Sides,
        versions: &[&'static SupportedProtocolVersion],
        path: &str,
        settings: impl FnOnce(&mut Config),
    ) -> (Sidecar, Session) {
        let app = App::bind().await;
        let mut config = app.config();
        settings(&mut config);
        self.configure(sides, &mut config);
        let sidecar = Sidecar::start(config).await;
        let session = self.open(sides, versions, sidecar.address, &app, path).await;
        (sidecar, session)
    }

    /// A session through the sidecar at this address.
    pub(crate) async fn open(
        &self,
        sides: Sides,
        versions: &[&'static SupportedProtocolVersion],
        sidecar: SocketAddr,
        app: &App,
        path: &str,
    ) -> Session {
        let socket = soon(TcpStream::connect(sidecar)).await.unwrap();
        let mut browser: Wire<Any> = match sides {
            Sides::None | Sides::Upstream => Wire::new(Box::new(socket)),
            Sides::Browser | Sides::Both => Wire::new(Box::new(self.secure(socket, versions).await)),
        };
        browser.send(handshake(path, "")).await;
        let mut app: Wire<Any> = match sides {
            Sides::None | Sides::Browser => Wire::new(Box::new(app.accept().await.stream)),
            Sides::Upstream | Sides::Both => Wire::new(Box::new(self.accept(app).await.stream)),
        };
        app.head().await;
        app.send(switching("")).await;
        assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
        Session { browser, app }
    }
}
