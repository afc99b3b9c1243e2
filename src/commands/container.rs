//! `healthcheck`, `wait` and `drain`: probes, start order and preStop for containers without a shell.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::uri::PathAndQuery;
use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::failure::failed;
use crate::cli::{DrainArgs, HealthcheckArgs, WaitArgs};
use crate::config::{Loaded, Problem, Problems, Route, Sources, UpstreamAddress, glance, load};
use crate::proxy::upstream::{ConnectError, Connector};
use crate::tls;

/// Time between attempts.
const PAUSE: Duration = Duration::from_millis(200);
/// Timeout of one attempt.
const LOOK: Duration = Duration::from_secs(2);
/// Time between messages while waiting.
const REMINDER: Duration = Duration::from_secs(5);

/// A server to query, and the setting of its address.
struct Peer {
    connector: Connector,
    /// Prefix of its paths; empty for none.
    base: String,
    host: String,
    /// `admin = "127.0.0.1:9600" (default)`
    setting: String,
}

/// Why no status was received.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("no HTTP answer")]
    Http(#[from] hyper::Error),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

/// Checks that a running sidecar is alive, or ready. Exit code 0 if so, 1 if not or if no response comes in time.
pub fn healthcheck(sources: &Sources, args: &HealthcheckArgs) -> ExitCode {
    run(async {
        let admin = Peer::admin(sources)?;
        let path = PathAndQuery::from_static(if args.ready { "/readyz" } else { "/livez" });
        let status = admin.ask(Method::GET, &path, args.timeout).await.with_context(|| admin.setting.clone())?;
        ensure!(status == StatusCode::OK, "{}: {path} answers {status}", admin.setting);
        Ok(())
    })
}

/// Waits until every app answers its health page with 200. Exit code 1 if one does not in time.
pub fn wait(sources: &Sources, args: &WaitArgs) -> ExitCode {
    run(async {
        let begun = Instant::now();
        for app in Peer::apps(sources)? {
            app.up(args, begun).await?;
        }
        Ok(())
    })
}

/// Starts the drain of a running sidecar; with `--wait`, waits until it is gone. Exit code 1 if it cannot be reached,
/// refuses, or is not gone in time.
pub fn drain(sources: &Sources, args: &DrainArgs) -> ExitCode {
    run(async {
        let admin = Peer::admin(sources)?;
        let deadline = Instant::now() + args.timeout;
        let path = PathAndQuery::from_static("/drain");
        let status =
            admin.ask(Method::POST, &path, LOOK.min(args.timeout)).await.with_context(|| admin.setting.clone())?;
        ensure!(status == StatusCode::ACCEPTED, "{}: {path} answers {status}", admin.setting);
        if args.wait {
            let gone = timeout_at(deadline, admin.gone()).await.is_ok();
            ensure!(gone, "{}: still there after {:?}", admin.setting, args.timeout);
        }
        Ok(())
    })
}

/// Runs a command until it is done or a signal arrives. A container's first process ignores signals that it does not
/// handle.
fn run(command: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let done = || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let done = runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            tokio::select! {
                done = command => done,
                _signal = terminate.recv() => bail!("interrupted"),
                _signal = tokio::signal::ctrl_c() => bail!("interrupted"),
            }
        });
        // Does not wait for a hanging name look-up.
        runtime.shutdown_background();
        done
    };
    match done() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error, false),
    }
}

impl Peer {
    /// The admin port of the sidecar on this machine.
    fn admin(sources: &Sources) -> anyhow::Result<Self> {
        let glance = glance(sources)?;
        for problem in &glance.problems {
            eprintln!("heartbeat-sidecar: warning: {problem}");
        }
        let (admin, setting) = (glance.config.admin, glance.shown("admin"));
        if admin.port() == 0 {
            let reason =
                format!("{setting}: name the port that the sidecar's log tells, such as --admin 127.0.0.1:9600");
            return Err(Problems(vec![Problem::Conflict(reason)]).into());
        }
        let host = match admin.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.to_string(),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.to_string(),
            ip => ip.to_string(),
        };
        Ok(Self::new(UpstreamAddress::Http { host, port: admin.port() }, setting))
    }

    /// The apps.
    fn apps(sources: &Sources) -> anyhow::Result<Vec<Self>> {
        let Loaded { config, .. } = load(sources)?;
        let apps = config.apps();
        let tls = config.upstream_tls.files(&apps).map(|files| tls::build(&files)).transpose()?;
        let tls = tls.map(|built| Arc::new(ArcSwap::from_pointee(built.config)));
        let only = if config.routes.is_empty() { Some(glance(sources)?.shown("upstream")) } else { None };
        let peer = |app: Route| {
            let setting =
                only.clone().unwrap_or_else(|| format!("route {:?}: upstream = \"{}\"", app.name, app.upstream));
            let name = config.upstream_tls.name(&app.upstream);
            let tls = tls.clone().filter(|_tls| app.upstream.is_encrypted());
            let mut peer = Self::new(app.upstream.clone(), setting);
            peer.connector = peer.connector.encrypted(tls, name);
            peer.base = app.path.segments().to_owned();
            peer
        };
        Ok(apps.into_iter().map(peer).collect())
    }

    /// Resolves when the health page returns 200.
    async fn up(&self, args: &WaitArgs, begun: Instant) -> anyhow::Result<()> {
        let path: PathAndQuery = format!("{}{}", self.base, args.path).parse().context("a path of a route is one")?;
        let mut reminded = None::<Instant>;
        loop {
            let lack = match self.ask(Method::GET, &path, LOOK.min(args.timeout)).await {
                Ok(StatusCode::OK) => return Ok(()),
                Ok(status) => format!("it answers {status}"),
                Err(silence) => format!("{:#}", anyhow::Error::from(silence)),
            };
            let (what, waited) = (format!("{}: {path}", self.setting), begun.elapsed());
            ensure!(waited < args.timeout, "{what}: given up after {:?}: {lack}", args.timeout);
            if reminded.is_none_or(|last| last.elapsed() >= REMINDER) {
                eprintln!("heartbeat-sidecar: {what}: waiting: {lack}");
                reminded = Some(Instant::now());
            }
            sleep(PAUSE.min(args.timeout - waited)).await;
        }
    }

    fn new(address: UpstreamAddress, setting: String) -> Self {
        let host = match &address {
            UpstreamAddress::Http { .. } | UpstreamAddress::Https { .. } => {
                address.to_string().split_once("://").map_or_else(String::new, |(_scheme, host)| host.to_owned())
            }
            UpstreamAddress::Unix(_) => "localhost".to_owned(),
        };
        Self { connector: Connector::new(address, LOOK, LOOK), base: String::new(), host, setting }
    }

    async fn ask(&self, method: Method, path: &PathAndQuery, within: Duration) -> Result<StatusCode, NoAnswer> {
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = method;
        *request.uri_mut() = path.clone().into();
        let host = self.host.parse().expect("a host that could be parsed is no bad header");
        request.headers_mut().insert(HOST, host);
        request.headers_mut().insert(CONNECTION, http::HeaderValue::from_static("close"));
        let exchange = async {
            let stream = TokioIo::new(self.connector.connect().await?);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
            // `send_request` returns its errors too.
            tokio::spawn(connection);
            Ok(sender.send_request(request).await?.status())
        };
        timeout(within, exchange).await.map_err(|_elapsed| NoAnswer::TimedOut(within))?
    }

    /// Resolves when the address is unreachable.
    async fn gone(&self) {
        while !matches!(self.connector.connect().await, Err(ConnectError::Unreachable { .. })) {
            sleep(PAUSE).await;
        }
    }
}
