//! What systemd is told of a running sidecar (sd_notify(3)), and the sockets that it hands over (sd_listen_fds(3)).

use std::time::Duration;

use anyhow::{Context as _, bail};
use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::app::Sockets;
use crate::drain::Drain;
use crate::session::Sessions;

/// From one look at the number of sessions to the next.
const LOOK: Duration = Duration::from_secs(5);
/// The time that the process takes to end behind its drain, and some.
const MARGIN: Duration = Duration::from_secs(5);

/// More sockets than this are a mistake; two are of use.
const MOST_HANDED: u64 = 1024;

/// Which of our sockets one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Listen,
    Admin,
}

/// Takes over the sockets that the environment names; none where it names none. Changes the environment: call it
/// before there is another thread.
///
/// # Errors
/// A socket that cannot be told to be ours, or is no TCP socket.
pub(super) fn sockets() -> anyhow::Result<Sockets> {
    let count = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse::<u64>().ok());
    if let Some(count) = count.filter(|count| *count > MOST_HANDED) {
        // The library that takes them makes a list as long as this says.
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

/// Which sockets these are: by name where they have names of ours, else by their order.
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

/// Tells systemd that the sidecar serves, how many sessions it has, that its runtime lives, and that it stops; ends behind that,
/// once `over`. Runs as a task of the runtime, so that the watchdog goes unfed where that stands still.
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
            // A drain that has nothing to wait for is over as soon as it has begun.
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

/// Says that the configuration is being read anew. May wait.
pub(super) fn reloading() {
    say(&[NotifyState::Reloading, NotifyState::monotonic_usec_now().unwrap_or(NotifyState::Custom(""))]);
}

/// Says that this is over, whatever came of it. May wait.
pub(super) fn reloaded() {
    say(&[NotifyState::Ready]);
}

fn status(sessions: usize, stopping: bool) -> String {
    format!("{}, sessions: {sessions}", if stopping { "draining" } else { "serving" })
}

/// The drain may take longer than systemd waits by itself.
fn stopping(drain_timeout: Duration) -> String {
    format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}\n", (drain_timeout + MARGIN).as_micros())
}

/// Sends what there is to say. The socket may be full: a thread that may wait does it.
async fn tell(news: String) {
    if news.is_empty() {
        return;
    }
    // Nothing can be done about a thread that panics.
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
    fn sockets_are_told_apart_by_name_or_else_by_order() {
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
    fn sockets_that_cannot_be_told_apart_are_refused() {
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
