//! `run`: the proxy, from its configuration to its drain.

mod reload;
mod systemd;

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::reload::ConfigReloader;
use super::failure::{MISUSE, failed};
use crate::config::{self, LogFormat, Problem, Problems, Reloader, Source, Sources};
use crate::sidecar::{Sidecar, Sockets};
use crate::telemetry;

/// Tokio's variable, parsed here because tokio panics on an invalid value.
const WORKER_THREADS: &str = "TOKIO_WORKER_THREADS";
/// More threads than any machine has cores are a mistake.
const MAX_WORKERS: usize = 1024;

/// Timeout of the last notification to systemd, after the drain: it may not read.
const LAST_NOTIFICATION_TIMEOUT: Duration = Duration::from_secs(1);

/// SIGTERM and SIGINT, which both stop the sidecar.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

/// Runs until SIGTERM or SIGINT, then drains. Exit code 0 after a drain, even if it timed out; 2 if the configuration
/// is invalid; 1 if the sidecar could not start, or was ended by a second signal.
pub fn run(sources: &Sources) -> ExitCode {
    let reloader = Reloader::new(sources.clone());
    let ended = config::load(sources).map_err(anyhow::Error::from).and_then(|loaded| start(loaded, reloader));
    ended.unwrap_or_else(|error| failed(&error, is_json(sources)))
}

/// Reports invalid arguments, in the log format that `sources` give.
pub fn misused(sources: &Sources, error: &clap::Error) -> ExitCode {
    if !is_json(sources) {
        error.exit();
    }
    // The usage below the first line is for people at a terminal.
    let text = error.to_string();
    let reason = text.lines().next().unwrap_or_default();
    telemetry::print_error(true, reason.strip_prefix("error: ").unwrap_or(reason));
    ExitCode::from(MISUSE)
}

fn is_json(sources: &Sources) -> bool {
    config::log_format(sources) == LogFormat::Json
}

fn start(loaded: config::Loaded, reloader: Reloader) -> anyhow::Result<ExitCode> {
    // First: changing the environment needs a single thread, and the log starts another.
    let sockets = systemd::sockets()?;
    let settings = &loaded.config.log;
    let log = telemetry::init(settings.format == LogFormat::Json, &settings.level)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    raise_descriptor_limit();
    let workers = worker_threads().map_err(|problem| Problems(vec![problem]))?;
    let runtime = runtime(workers).context("cannot start the runtime")?;
    runtime.spawn(log.warn_of_lost_lines());
    let result = runtime.block_on(serve(loaded, sockets, reloader, log.filter()));
    // Aborts sessions that outlived the drain; does not wait for a hanging name look-up.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// The number of relay threads: the value of [`WORKER_THREADS`], else one per core that the process may use.
///
/// # Errors
/// The variable is set to an invalid number.
pub(super) fn worker_threads() -> Result<usize, Problem> {
    let Some(value) = std::env::var_os(WORKER_THREADS) else {
        return Ok(std::thread::available_parallelism().map_or(1, NonZeroUsize::get));
    };
    let number = value.to_str().and_then(|text| text.parse().ok()).filter(|number| (1..=MAX_WORKERS).contains(number));
    number.ok_or_else(|| Problem::Invalid {
        at: Source::Environment(WORKER_THREADS.to_owned()),
        reason: format!("{value:?} is not a whole number from 1 to {MAX_WORKERS}"),
    })
}

/// One worker needs no multi-thread scheduler, which takes 2 % of a handshake's time.
fn runtime(workers: usize) -> std::io::Result<Runtime> {
    let mut builder = match workers {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.worker_threads(workers).enable_all().build()
}

/// A session needs two file descriptors, and the soft limit is 1024 on many systems.
fn raise_descriptor_limit() {
    match rlimit::increase_nofile_limit(rlimit::INFINITY) {
        Ok(nofile) => tracing::info!(nofile, "file descriptor limit"),
        Err(error) => tracing::warn!(%error, "cannot raise the file descriptor limit"),
    }
}

async fn serve(
    loaded: config::Loaded,
    sockets: Sockets,
    reloader: Reloader,
    filter: telemetry::Filter,
) -> anyhow::Result<ExitCode> {
    let mut signals = StopSignals::new().context("cannot listen for signals")?;
    let hangups = signal(SignalKind::hangup()).context("cannot listen for signals")?;
    let drain_timeout = loaded.config.drain.timeout;
    let sidecar = Sidecar::bind_with(loaded.config.clone(), sockets).await?;
    tracing::info!("listening on {}", sidecar.address()?);
    tracing::info!("admin on {}", sidecar.admin_address()?);
    let version = env!("CARGO_PKG_VERSION");
    for app in loaded.config.apps() {
        tracing::info!(version, upstream = app.name, address = %app.upstream, "relaying");
    }

    let over = CancellationToken::new();
    let notifier = systemd::notify_until(over.clone(), sidecar.drain(), sidecar.sessions(), drain_timeout);
    let notifier = AbortOnDropHandle::new(tokio::spawn(notifier));
    let reloader = ConfigReloader { reloader, active: loaded, reloading: sidecar.reloading(), filter };
    let _reloading = AbortOnDropHandle::new(tokio::spawn(reload::run(reloader, hangups)));
    let stop = CancellationToken::new();
    let second_signal = async {
        signals.next().await;
        stop.cancel();
        signals.next().await;
    };
    tokio::select! {
        () = sidecar.run(stop.cancelled()) => {
            over.cancel();
            // Fails if systemd does not read, or the task panicked; the process ends either way.
            let _notified = timeout(LAST_NOTIFICATION_TIMEOUT, notifier).await;
            Ok(ExitCode::SUCCESS)
        }
        () = second_signal => {
            tracing::warn!("second stop signal: exiting without a drain");
            Ok(ExitCode::FAILURE)
        }
    }
}

impl StopSignals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _signal = self.terminate.recv() => {}
            _signal = self.interrupt.recv() => {}
        }
    }
}
