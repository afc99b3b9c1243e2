//! Notifies systemd of the sidecar's state (sd_notify(3)), and takes the sockets that it passes (sd_listen_fds(3)).

use std::time::Duration;

use anyhow::{Context as _, bail};
use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::app::Sockets;
use crate::drain::Drain;
use crate::session::Sessions;

/// Time between updates of the number of sessions.
const LOOK: Duration = Duration::from_secs(5);
/// Time for the process to end after its drain, with a reserve.
const MARGIN: Duration = Duration::from_secs(5);

/// More sockets than this are a mistake; two are used.
const MOST_HANDED: u64 = 1024;

/// The use of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Listen,
    Admin,
}

/// Takes the sockets passed in LISTEN_FDS, if any. Changes the environment: call it before another thread starts.
///
/// # Errors
/// Too many sockets, one whose use is unclear, or one that is not TCP.
pub(super) fn sockets() -> anyhow::Result<Sockets> {
    let count = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse::<u64>().ok());
    if let Some(count) = count.filter(|count| *count > MOST_HANDED) {
        // The library allocates a list of this length.
        bail!("LISTEN_FDS={count}: no service manager hands over more than {MOST_HANDED} sockets");
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut handed = ListenFd::from_env();
    let names = names.split(':').filter(|_name| handed.len() > 0).chain(std::iter::repeat("")).take(handed.len());
    let mut sockets = Sockets::default();
    for (position, place) in places(&names.collect::<Vec<_>>())?.into_iter().enumerate() {
        let socket = handed.take_tcp_listener(position).with_context(|| format!("socket {position} of LISTEN_FDS"))?;
        match place {
            Place::Listen => sockets.listen = socket,
            Place::Admin => sockets.admin = socket,
        }
    }
    Ok(sockets)
}

/// Assigns the sockets: by name if the names are ours, else by order.
fn places(names: &[&str]) -> anyhow::Result<Vec<Place>> {
    let named = |name: &&str| match *name {
        "listen" => Some(Place::Listen),
        "admin" => Some(Place::Admin),
        _ => None,
    };
    let places: Vec<_> = names.iter().filter_map(named).collect();
    match (places.as_slice(), names) {
        ([], names) if names.len() <= 2 => Ok([Place::Listen, Place::Admin][..names.len()].to_vec()),
        ([_] | [Place::Listen, Place::Admin] | [Place::Admin, Place::Listen], names) if places.len() == names.len() => {
            Ok(places)
        }
        _ => bail!(
            "LISTEN_FDNAMES={}: name the sockets listen and admin, one of each at most, or neither of two",
            names.join(":")
        ),
    }
}

/// Notifies systemd of readiness, the number of sessions, watchdog keep-alives and the stop; returns once `over`. Runs
/// on the runtime, so that the watchdog fires if the runtime hangs.
pub(super) async fn keep_told(drain: Drain, sessions: Sessions, drain_timeout: Duration, over: CancellationToken) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let watchdog = sd_notify::watchdog_enabled();
    let mut ticks = interval(watchdog.map_or(LOOK, |limit| LOOK.min(limit / 2)).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut status, mut stopping, mut news) = (String::new(), false, "READY=1\n".to_owned());
    loop {
        let now = self::status(sessions.len(), stopping);
        if now != status {
            news += &format!("STATUS={now}\n");
            status = now;
        }
        if watchdog.is_some() {
            news += "WATCHDOG=1\n";
        }
        tell(std::mem::take(&mut news)).await;
        tokio::select! {
            // A drain with nothing to wait for ends as soon as it starts.
            biased;
            () = drain.draining(), if !stopping => {
                stopping = true;
                news = self::stopping(drain_timeout);
            }
            () = over.cancelled() => return,
            _now = ticks.tick() => {}
        }
    }
}

/// Notifies systemd that a reload starts. May block.
pub(super) fn reloading() {
    say(&[NotifyState::Reloading, NotifyState::monotonic_usec_now().unwrap_or(NotifyState::Custom(""))]);
}

/// Notifies systemd that it has ended, with either result. May block.
pub(super) fn reloaded() {
    say(&[NotifyState::Ready]);
}

fn status(sessions: usize, stopping: bool) -> String {
    format!("{}, sessions: {sessions}", if stopping { "draining" } else { "serving" })
}

/// The drain may take longer than systemd's own stop timeout.
fn stopping(drain_timeout: Duration) -> String {
    format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}\n", (drain_timeout + MARGIN).as_micros())
}

/// Sends a notification. The socket may be full, so a blocking thread does it.
async fn tell(news: String) {
    if news.is_empty() {
        return;
    }
    // A panic of the thread is ignored.
    let _told = tokio::task::spawn_blocking(move || say(&[NotifyState::Custom(news.trim_end())])).await;
}

fn say(news: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(news) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_assigned_by_name_or_else_by_order() {
        for (names, expected) in [
            (&[][..], &[][..]),
            (&["listen"], &[Place::Listen]),
            (&["admin"], &[Place::Admin]),
            (&["admin", "listen"], &[Place::Admin, Place::Listen]),
            (&["sidecar.socket"], &[Place::Listen]),
            (&["unknown", "unknown"], &[Place::Listen, Place::Admin]),
            (&["", ""], &[Place::Listen, Place::Admin]),
        ] {
            assert_eq!(places(names).expect("told apart"), expected, "{names:?}");
        }
    }

    #[test]
    fn ambiguous_sockets_are_rejected() {
        for names in [&["listen", "other"][..], &["listen", "listen"], &["a", "b", "c"], &["listen", "admin", "admin"]]
        {
            let refused = places(names).expect_err("not told apart").to_string();
            assert!(refused.starts_with(&format!("LISTEN_FDNAMES={}: ", names.join(":"))), "{refused}");
        }
    }

    #[test]
    fn systemd_waits_longer_than_the_drain_may_take() {
        assert_eq!(stopping(Duration::from_secs(600)), "STOPPING=1\nEXTEND_TIMEOUT_USEC=605000000\n");
    }
}
