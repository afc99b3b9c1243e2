//! Notifies systemd of the sidecar's state (sd_notify(3)), and takes the sockets that it passes (sd_listen_fds(3)).

use std::time::Duration;

use anyhow::{Context as _, bail};
use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::drain::Drain;
use crate::session::Sessions;
use crate::sidecar::Sockets;

/// Time between updates of the number of sessions.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// Time for the process to exit after its drain, with a reserve.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// More sockets than this are a mistake: two are used. The library allocates a list of `LISTEN_FDS` entries.
const MAX_SOCKETS: u64 = 1024;

/// The use of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SocketUse {
    Listen,
    Admin,
}

/// Takes the sockets passed in LISTEN_FDS, if any. Changes the environment: call it before another thread starts.
///
/// # Errors
/// Too many sockets, one whose use is unclear, or one that is not TCP.
pub(super) fn sockets() -> anyhow::Result<Sockets> {
    let count = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse::<u64>().ok());
    if let Some(count) = count.filter(|count| *count > MAX_SOCKETS) {
        bail!("LISTEN_FDS={count}: at most {MAX_SOCKETS} sockets are accepted");
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut passed = ListenFd::from_env();
    let names = names.split(':').filter(|_name| passed.len() > 0).chain(std::iter::repeat("")).take(passed.len());
    let mut sockets = Sockets::default();
    for (position, usage) in socket_uses(&names.collect::<Vec<_>>())?.into_iter().enumerate() {
        let socket = passed.take_tcp_listener(position).with_context(|| format!("socket {position} of LISTEN_FDS"))?;
        match usage {
            SocketUse::Listen => sockets.listen = socket,
            SocketUse::Admin => sockets.admin = socket,
        }
    }
    Ok(sockets)
}

/// Assigns the sockets: by name if the names are ours, else by order.
fn socket_uses(names: &[&str]) -> anyhow::Result<Vec<SocketUse>> {
    let named = |name: &&str| match *name {
        "listen" => Some(SocketUse::Listen),
        "admin" => Some(SocketUse::Admin),
        _ => None,
    };
    let uses: Vec<_> = names.iter().filter_map(named).collect();
    match (uses.as_slice(), names) {
        ([], names) if names.len() <= 2 => Ok([SocketUse::Listen, SocketUse::Admin][..names.len()].to_vec()),
        ([_] | [SocketUse::Listen, SocketUse::Admin] | [SocketUse::Admin, SocketUse::Listen], names)
            if uses.len() == names.len() =>
        {
            Ok(uses)
        }
        _ => bail!(
            "LISTEN_FDNAMES={}: pass at most one socket named listen and one named admin, or at most two without these names",
            names.join(":")
        ),
    }
}

/// Notifies systemd of readiness, the number of sessions, watchdog keep-alives and the stop; returns once `over`. Runs
/// on the runtime, so that the watchdog fires if the runtime hangs.
pub(super) async fn notify_until(over: CancellationToken, drain: Drain, sessions: Sessions, drain_timeout: Duration) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let watchdog = sd_notify::watchdog_enabled();
    let mut ticks = interval(
        watchdog.map_or(STATUS_INTERVAL, |limit| STATUS_INTERVAL.min(limit / 2)).max(Duration::from_millis(1)),
    );
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut status, mut stopping, mut message) = (String::new(), false, "READY=1\n".to_owned());
    loop {
        let now = self::status(sessions.len(), stopping);
        if now != status {
            message += &format!("STATUS={now}\n");
            status = now;
        }
        if watchdog.is_some() {
            message += "WATCHDOG=1\n";
        }
        send(std::mem::take(&mut message)).await;
        tokio::select! {
            // A drain with nothing to wait for ends as soon as it starts.
            biased;
            () = drain.draining(), if !stopping => {
                stopping = true;
                message = self::stopping(drain_timeout);
            }
            () = over.cancelled() => return,
            _now = ticks.tick() => {}
        }
    }
}

/// Notifies systemd that a reload starts. May block.
pub(super) fn reloading() {
    notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now().unwrap_or(NotifyState::Custom(""))]);
}

/// Notifies systemd that it has ended, with either result. May block.
pub(super) fn reloaded() {
    notify(&[NotifyState::Ready]);
}

fn status(sessions: usize, stopping: bool) -> String {
    format!("{}, sessions: {sessions}", if stopping { "draining" } else { "serving" })
}

/// Requests more time: the drain may take longer than `TimeoutStopSec`.
fn stopping(drain_timeout: Duration) -> String {
    format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}\n", (drain_timeout + EXIT_TIMEOUT).as_micros())
}

/// Sends a notification. The socket may be full, so a blocking thread does it.
async fn send(message: String) {
    if message.is_empty() {
        return;
    }
    // A panic of the thread is ignored.
    let _sent = tokio::task::spawn_blocking(move || notify(&[NotifyState::Custom(message.trim_end())])).await;
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_assigned_by_name_or_else_by_order() {
        for (names, expected) in [
            (&[][..], &[][..]),
            (&["listen"], &[SocketUse::Listen]),
            (&["admin"], &[SocketUse::Admin]),
            (&["admin", "listen"], &[SocketUse::Admin, SocketUse::Listen]),
            (&["sidecar.socket"], &[SocketUse::Listen]),
            (&["unknown", "unknown"], &[SocketUse::Listen, SocketUse::Admin]),
            (&["", ""], &[SocketUse::Listen, SocketUse::Admin]),
        ] {
            assert_eq!(socket_uses(names).expect("valid names"), expected, "{names:?}");
        }
    }

    #[test]
    fn ambiguous_sockets_are_rejected() {
        for names in [&["listen", "other"][..], &["listen", "listen"], &["a", "b", "c"], &["listen", "admin", "admin"]]
        {
            let error = socket_uses(names).expect_err("ambiguous names").to_string();
            assert!(error.starts_with(&format!("LISTEN_FDNAMES={}: ", names.join(":"))), "{error}");
        }
    }

    #[test]
    fn systemd_waits_longer_than_the_drain_may_take() {
        assert_eq!(stopping(Duration::from_secs(600)), "STOPPING=1\nEXTEND_TIMEOUT_USEC=605000000\n");
    }
}
