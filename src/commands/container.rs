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
use humantime::format_duration;
use hyper_util::rt::TokioIo;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::failure::failed;
use crate::cli::{DrainArgs, HealthcheckArgs, WaitArgs};
use crate::config::{Problem, Problems, Route, Sources, UpstreamAddress, load, load_tolerant};
use crate::proxy::upstream::{ConnectError, Connector};
use crate::tls;

/// Time between attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// Timeout of one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time between progress messages of `wait`.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// A server to query.
struct Server {
    connector: Connector,
    /// Prefix of its paths; empty for none.
    base: String,
    host: String,
    /// Its address as configured: `admin = "127.0.0.1:9600" (default)`.
    setting: String,
}

/// Why no response was received.
#[derive(Debug, thiserror::Error)]
enum NoResponse {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("invalid HTTP response")]
    Http(#[from] hyper::Error),
    #[error("no response within {}", format_duration(*.0))]
    TimedOut(Duration),
}

/// Checks that a running sidecar is alive, or ready. Exit code 0 if so, 1 if not or if no response comes in time.
pub fn healthcheck(sources: &Sources, args: &HealthcheckArgs) -> ExitCode {
    run(async {
        let admin = Server::admin(sources)?;
        let path = PathAndQuery::from_static(if args.ready { "/readyz" } else { "/livez" });
        let status = admin.request(Method::GET, &path, args.timeout).await.with_context(|| admin.setting.clone())?;
        ensure!(status == StatusCode::OK, "{}: {path} returned {status}", admin.setting);
        Ok(())
    })
}

/// Waits until every app's health page returns 200. Exit code 1 if one does not in time.
pub fn wait(sources: &Sources, args: &WaitArgs) -> ExitCode {
    run(async {
        let started = Instant::now();
        for app in Server::apps(sources)? {
            app.wait_until_healthy(args, started).await?;
        }
        Ok(())
    })
}

/// Starts the drain of a running sidecar; with `--wait`, waits until it is gone. Exit code 1 if it cannot be reached,
/// rejects the request, or is not gone in time.
pub fn drain(sources: &Sources, args: &DrainArgs) -> ExitCode {
    run(async {
        let admin = Server::admin(sources)?;
        let deadline = Instant::now() + args.timeout;
        let path = PathAndQuery::from_static("/drain");
        let status = admin
            .request(Method::POST, &path, ATTEMPT_TIMEOUT.min(args.timeout))
            .await
            .with_context(|| admin.setting.clone())?;
        ensure!(status == StatusCode::ACCEPTED, "{}: {path} returned {status}", admin.setting);
        if args.wait {
            let gone = timeout_at(deadline, admin.wait_until_gone()).await.is_ok();
            let timeout = format_duration(args.timeout);
            ensure!(gone, "{}: the sidecar is still running after {timeout}", admin.setting);
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

impl Server {
    /// The admin port of the sidecar on this machine.
    fn admin(sources: &Sources) -> anyhow::Result<Self> {
        let (loaded, problems) = load_tolerant(sources)?;
        for problem in &problems {
            eprintln!("warning: {problem}");
        }
        let (admin, setting) = (loaded.config.admin, loaded.setting("admin").to_string());
        if admin.port() == 0 {
            let reason =
                format!("{setting}: write the port that the sidecar's log shows, such as --admin 127.0.0.1:9600");
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
        let loaded = load(sources)?;
        let (config, apps) = (&loaded.config, loaded.config.apps());
        let tls = config.upstream_tls.files(&apps).map(|files| tls::build(&files)).transpose()?;
        let tls = tls.map(|built| Arc::new(ArcSwap::from_pointee(built.config)));
        let single_app = config.routes.is_empty().then(|| loaded.setting("upstream").to_string());
        let server = |app: Route| {
            let setting =
                single_app.clone().unwrap_or_else(|| format!("route {:?}: upstream = \"{}\"", app.name, app.upstream));
            let name = config.upstream_tls.name(&app.upstream);
            let tls = tls.clone().filter(|_tls| app.upstream.is_encrypted());
            let mut server = Self::new(app.upstream.clone(), setting);
            server.connector = server.connector.encrypted(tls, name);
            server.base = app.path.segments().to_owned();
            server
        };
        Ok(apps.into_iter().map(server).collect())
    }

    /// Resolves when the health page returns 200.
    async fn wait_until_healthy(&self, args: &WaitArgs, started: Instant) -> anyhow::Result<()> {
        let path: PathAndQuery = format!("{}{}", self.base, args.path).parse().context("invalid health path")?;
        let mut reported = None::<Instant>;
        loop {
            let problem = match self.request(Method::GET, &path, ATTEMPT_TIMEOUT.min(args.timeout)).await {
                Ok(StatusCode::OK) => return Ok(()),
                Ok(status) => format!("returned {status}"),
                Err(error) => format!("{:#}", anyhow::Error::from(error)),
            };
            let (app, waited) = (format!("{}: {path}", self.setting), started.elapsed());
            let timeout = format_duration(args.timeout);
            ensure!(waited < args.timeout, "{app}: not healthy after {timeout}: {problem}");
            if reported.is_none_or(|last| last.elapsed() >= REPORT_INTERVAL) {
                eprintln!("waiting for {app}: {problem}");
                reported = Some(Instant::now());
            }
            sleep(RETRY_INTERVAL.min(args.timeout - waited)).await;
        }
    }

    fn new(address: UpstreamAddress, setting: String) -> Self {
        let host = match &address {
            UpstreamAddress::Http { .. } | UpstreamAddress::Https { .. } => {
                address.to_string().split_once("://").map_or_else(String::new, |(_scheme, host)| host.to_owned())
            }
            UpstreamAddress::Unix(_) => "localhost".to_owned(),
        };
        Self {
            connector: Connector::new(address, ATTEMPT_TIMEOUT, ATTEMPT_TIMEOUT),
            base: String::new(),
            host,
            setting,
        }
    }

    /// Sends a request without a body; returns the status of the response.
    async fn request(&self, method: Method, path: &PathAndQuery, limit: Duration) -> Result<StatusCode, NoResponse> {
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = method;
        *request.uri_mut() = path.clone().into();
        let host = self.host.parse().expect("a parsed host is a valid header");
        request.headers_mut().insert(HOST, host);
        request.headers_mut().insert(CONNECTION, http::HeaderValue::from_static("close"));
        let exchange = async {
            let stream = TokioIo::new(self.connector.connect().await?);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
            // `send_request` returns its errors too.
            tokio::spawn(connection);
            Ok(sender.send_request(request).await?.status())
        };
        timeout(limit, exchange).await.map_err(|_elapsed| NoResponse::TimedOut(limit))?
    }

    /// Resolves when the address is unreachable.
    async fn wait_until_gone(&self) {
        while !matches!(self.connector.connect().await, Err(ConnectError::Unreachable { .. })) {
            sleep(RETRY_INTERVAL).await;
        }
    }
}
