//! The delivery probe: reports to a page whether bytes reach it over one of its websockets.
//!
//! Invariant: without a socket's token a client learns nothing, and with it nothing else.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Context;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::mailbox::Mailbox;
use crate::transport::Delivery;

/// Minimum time between probes of one socket.
pub const MIN_PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// Maximum duration of a probe.
pub const MAX_PROBE_TIME: Duration = Duration::from_secs(5);

/// Bytes must wait for this long before acknowledgements count. A proxy in between acknowledges small messages at once, also
/// for a browser that it no longer reaches.
const MIN_PENDING: Duration = Duration::from_millis(500);

/// How often the kernel is polled during a probe: it does not report acknowledged bytes by itself.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The name that a page gave to one of its sockets: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token([u8; 16]);

/// The sockets that pages may probe; clones share them.
#[derive(Clone, Default)]
pub struct DeliveryProbes(Arc<Mutex<HashMap<Token, Target>>>);

/// A session's entry in [`DeliveryProbes`], until dropped.
pub struct ProbeHandle {
    probes: DeliveryProbes,
    token: Token,
    requests: Arc<Requests>,
}

/// Carries requests for the TCP state to the session's task.
type Requests = Mailbox<oneshot::Sender<Delivery>>;

/// Result of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Bytes wait for the browser, and its kernel acknowledges some: the network works.
    Moving,
    /// Bytes wait for the browser, which acknowledges none.
    Stalled,
    /// Everything sent so far has been received, by the browser or by a proxy in between; the page waits for something else.
    Idle,
}

/// Why a probe has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeError {
    /// No live socket has this token.
    Unknown,
    /// The last probe of the same socket was less than [`MIN_PROBE_INTERVAL`] ago.
    TooSoon,
}

/// A socket that may be probed.
struct Target {
    requests: Weak<Requests>,
    /// Boxed, because most sockets are never probed.
    last_probe: Option<Box<Instant>>,
}

impl Token {
    /// Parses 32 hexadecimal digits; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let bits = digits.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        bits.map(|bits| Self(bits.to_be_bytes()))
    }
}

impl DeliveryProbes {
    /// Registers a session; `None` if the token is already in use.
    pub fn register(&self, token: Token) -> Option<ProbeHandle> {
        let requests = Arc::new(Requests::default());
        match self.lock().entry(token) {
            Entry::Occupied(_) => return None,
            Entry::Vacant(entry) => entry.insert(Target { requests: Arc::downgrade(&requests), last_probe: None }),
        };
        Some(ProbeHandle { probes: self.clone(), token, requests })
    }

    /// Whether bytes reach the browser over this socket. Waits up to `limit` for progress, at most [`MAX_PROBE_TIME`].
    ///
    /// # Errors
    /// The token is unknown, the socket was closed meanwhile, or the probe came too soon.
    pub async fn probe(&self, token: Token, limit: Duration) -> Result<Progress, ProbeError> {
        self.admit(token)?;
        let start = Instant::now();
        let limit = limit.min(MAX_PROBE_TIME);
        let first = self.delivery(token).await?;
        let mut polls = tokio::time::interval(POLL_INTERVAL);
        loop {
            polls.tick().await;
            let now = self.delivery(token).await?;
            if !now.pending {
                return Ok(Progress::Idle);
            }
            if now.acknowledged > first.acknowledged && start.elapsed() >= limit.min(MIN_PENDING) {
                return Ok(Progress::Moving);
            }
            if start.elapsed() >= limit {
                return Ok(Progress::Stalled);
            }
        }
    }

    /// Admits one probe per [`MIN_PROBE_INTERVAL`].
    fn admit(&self, token: Token) -> Result<(), ProbeError> {
        let (mut targets, now) = (self.lock(), Instant::now());
        let target = targets.get_mut(&token).ok_or(ProbeError::Unknown)?;
        if target.last_probe.as_ref().is_some_and(|last| now - **last < MIN_PROBE_INTERVAL) {
            return Err(ProbeError::TooSoon);
        }
        target.last_probe = Some(Box::new(now));
        Ok(())
    }

    async fn delivery(&self, token: Token) -> Result<Delivery, ProbeError> {
        let response = {
            let requests = self.lock().get(&token).and_then(|target| target.requests.upgrade());
            let requests = requests.ok_or(ProbeError::Unknown)?;
            let (request, response) = oneshot::channel();
            // A pending request of another probe is dropped, and that probe fails.
            requests.post(request);
            response
        };
        response.await.map_err(|_session_is_over| ProbeError::Unknown)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Token, Target>> {
        // No panic can leave the map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProbeHandle {
    /// Serves a pending request, and registers the task to be woken by the next.
    pub(super) fn poll_request(&self, cx: &Context<'_>, delivery: impl FnOnce() -> Delivery) {
        if let Some(request) = self.requests.poll(cx) {
            // Fails if the page has disconnected.
            let _page_is_gone = request.send(delivery());
        }
    }
}

impl Drop for ProbeHandle {
    fn drop(&mut self) {
        self.probes.lock().remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    const TOKEN: Token = Token([7; 16]);

    /// A session that reports these deliveries one by one, and then repeats the last.
    fn session(handle: ProbeHandle, deliveries: &'static [(u64, bool)]) -> tokio::task::JoinHandle<()> {
        let mut deliveries = deliveries.iter();
        let mut last = None;
        tokio::spawn(std::future::poll_fn(move |cx| {
            handle.poll_request(cx, || {
                last = deliveries.next().or(last);
                let (acknowledged, pending) = *last.expect("some delivery");
                Delivery { acknowledged, pending, ..Delivery::default() }
            });
            Poll::Pending
        }))
    }

    async fn result(deliveries: &'static [(u64, bool)]) -> Result<Progress, ProbeError> {
        let probes = DeliveryProbes::default();
        let session = session(probes.register(TOKEN).expect("a free token"), deliveries);
        let result = probes.probe(TOKEN, Duration::from_secs(1)).await;
        session.abort();
        result
    }

    #[tokio::test(start_paused = true)]
    async fn progress_means_bytes_acknowledged_while_others_wait() {
        assert_eq!(result(&[(10, true), (10, true), (11, true)]).await, Ok(Progress::Moving));
        assert_eq!(result(&[(10, true)]).await, Ok(Progress::Stalled));
        assert_eq!(result(&[(10, false)]).await, Ok(Progress::Idle));
        assert_eq!(result(&[(10, true), (10, true), (11, true), (12, false), (13, true)]).await, Ok(Progress::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_ends_in_time_for_any_requested_limit() {
        let probes = DeliveryProbes::default();
        let _session = session(probes.register(TOKEN).expect("a free token"), &[(1, true)]);
        let start = Instant::now();
        assert_eq!(probes.probe(TOKEN, Duration::MAX).await, Ok(Progress::Stalled));
        assert!(start.elapsed() <= MAX_PROBE_TIME + POLL_INTERVAL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_probe_within_the_minimum_interval_is_rejected() {
        let probes = DeliveryProbes::default();
        let _session = session(probes.register(TOKEN).expect("a free token"), &[(1, false)]);
        assert_eq!(probes.probe(TOKEN, Duration::ZERO).await, Ok(Progress::Idle));
        assert_eq!(probes.probe(TOKEN, Duration::ZERO).await, Err(ProbeError::TooSoon));
        tokio::time::advance(MIN_PROBE_INTERVAL).await;
        assert_eq!(probes.probe(TOKEN, Duration::ZERO).await, Ok(Progress::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn only_live_sockets_can_be_probed_and_each_token_names_one() {
        let probes = DeliveryProbes::default();
        assert_eq!(probes.probe(TOKEN, Duration::ZERO).await, Err(ProbeError::Unknown));
        let handle = probes.register(TOKEN).expect("a free token");
        assert!(probes.register(TOKEN).is_none());
        let probe = tokio::spawn({
            let probes = probes.clone();
            async move { probes.probe(TOKEN, Duration::from_secs(1)).await }
        });
        tokio::task::yield_now().await;
        drop(handle);
        assert_eq!(probe.await.expect("no panic"), Err(ProbeError::Unknown), "the session ended during the probe");
        assert!(probes.register(TOKEN).is_some());
    }

    #[test]
    fn a_token_is_32_hexadecimal_digits() {
        assert!(
            Token::parse("0123456789abcdefABCDEF0123456789")
                == Some(Token(0x0123_4567_89ab_cdef_abcd_ef01_2345_6789_u128.to_be_bytes()))
        );
        for text in ["", "0123456789abcdef", "+123456789abcdefABCDEF0123456789", "g123456789abcdefABCDEF0123456789"] {
            assert!(Token::parse(text).is_none(), "{text}");
        }
    }
}
