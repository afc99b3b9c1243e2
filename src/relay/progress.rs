//! The delivery probe: answers a page that asks whether bytes still reach it over a websocket.
//!
//! Invariant: without a socket's token a client learns nothing, and with it nothing else.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Context;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::transport::Delivery;

/// Minimum time between questions about one socket.
pub const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// The longest time before an answer.
pub const LONGEST_WATCH: Duration = Duration::from_secs(5);

/// How often the kernel is polled meanwhile: it does not report acknowledged bytes by itself.
const GLANCE: Duration = Duration::from_millis(50);

/// The name that a page gave to one of its sockets: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u128);

/// The sockets that pages may ask about; clones share them.
#[derive(Clone, Default)]
pub struct Watch(Arc<Mutex<HashMap<Token, Line>>>);

/// A session's entry in [`Watch`], until dropped.
pub struct Watched {
    watch: Watch,
    token: Token,
    ear: Arc<Ear>,
}

/// The answer to a page's question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The browser's kernel acknowledges bytes: the network works.
    Progress,
    /// Bytes wait for the browser, which acknowledges none.
    Stalled,
    /// The browser has received everything; the upstream has not sent what it waits for.
    Idle,
}

/// Why a question gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No live socket has this token.
    Unknown,
    /// The same socket was asked about less than [`ASK_INTERVAL`] ago.
    TooSoon,
}

struct Line {
    ear: Weak<Ear>,
    asked: Option<Instant>,
}

/// Lets a request ask the session task, which owns the socket, for its TCP state.
#[derive(Default)]
struct Ear {
    session: AtomicWaker,
    question: Mutex<Option<oneshot::Sender<Delivery>>>,
}

impl Token {
    /// Reads 32 hexadecimal digits; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits.then(|| u128::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl Watch {
    /// Registers a session; `None` if the token is already in use.
    pub fn enter(&self, token: Token) -> Option<Watched> {
        let ear = Arc::new(Ear::default());
        match self.lock().entry(token) {
            Entry::Occupied(_) => return None,
            Entry::Vacant(place) => place.insert(Line { ear: Arc::downgrade(&ear), asked: None }),
        };
        Some(Watched { watch: self.clone(), token, ear })
    }

    /// Whether bytes reach the browser over this socket. Waits for progress up to `limit`, at most [`LONGEST_WATCH`].
    ///
    /// # Errors
    /// Unknown tokens, sockets that are closed meanwhile, and questions that come too soon.
    pub async fn ask(&self, token: Token, limit: Duration) -> Result<Answer, Refusal> {
        self.admit(token)?;
        let deadline = Instant::now() + limit.min(LONGEST_WATCH);
        let first = self.delivery(token).await?;
        let mut glances = tokio::time::interval(GLANCE);
        loop {
            glances.tick().await;
            let now = self.delivery(token).await?;
            if now.acknowledged > first.acknowledged {
                return Ok(Answer::Progress);
            }
            if Instant::now() >= deadline {
                return Ok(if now.waits { Answer::Stalled } else { Answer::Idle });
            }
        }
    }

    /// Accepts one question per [`ASK_INTERVAL`].
    fn admit(&self, token: Token) -> Result<(), Refusal> {
        let (mut lines, now) = (self.lock(), Instant::now());
        let line = lines.get_mut(&token).ok_or(Refusal::Unknown)?;
        if line.asked.is_some_and(|asked| now - asked < ASK_INTERVAL) {
            return Err(Refusal::TooSoon);
        }
        line.asked = Some(now);
        Ok(())
    }

    async fn delivery(&self, token: Token) -> Result<Delivery, Refusal> {
        let answer = {
            let ear = self.lock().get(&token).and_then(|line| line.ear.upgrade()).ok_or(Refusal::Unknown)?;
            let (question, answer) = oneshot::channel();
            // Replaces a question that has no answer yet: its asker is refused.
            *ear.question.lock().unwrap_or_else(PoisonError::into_inner) = Some(question);
            ear.session.wake();
            answer
        };
        answer.await.map_err(|_session_is_over| Refusal::Unknown)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Token, Line>> {
        // No panic can leave the map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    /// Answers a pending question, and registers to be woken by the next.
    pub(super) fn poll_answer(&self, cx: &Context<'_>, delivery: impl FnOnce() -> Delivery) {
        self.ear.session.register(cx.waker());
        let question = self.ear.question.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(question) = question {
            // Fails if the page has disconnected.
            let _nobody_listens = question.send(delivery());
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watch.lock().remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    const TOKEN: Token = Token(7);

    /// A session that reports each of these deliveries in turn, and then repeats the last.
    fn session(watched: Watched, deliveries: &'static [(u64, bool)]) -> tokio::task::JoinHandle<()> {
        let mut deliveries = deliveries.iter();
        let mut last = None;
        tokio::spawn(std::future::poll_fn(move |cx| {
            watched.poll_answer(cx, || {
                last = deliveries.next().or(last);
                let (acknowledged, waits) = *last.expect("some delivery");
                Delivery { acknowledged, waits, ..Delivery::default() }
            });
            Poll::Pending
        }))
    }

    async fn answer(deliveries: &'static [(u64, bool)]) -> Result<Answer, Refusal> {
        let watch = Watch::default();
        let session = session(watch.enter(TOKEN).expect("a free token"), deliveries);
        let answer = watch.ask(TOKEN, Duration::from_secs(1)).await;
        session.abort();
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn progress_means_bytes_acknowledged_during_the_question() {
        assert_eq!(answer(&[(10, true), (10, true), (11, true)]).await, Ok(Answer::Progress));
        assert_eq!(answer(&[(10, true)]).await, Ok(Answer::Stalled));
        assert_eq!(answer(&[(10, false)]).await, Ok(Answer::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_is_answered_in_time_for_any_requested_timeout() {
        let watch = Watch::default();
        let _session = session(watch.enter(TOKEN).expect("a free token"), &[(1, true)]);
        let began = Instant::now();
        assert_eq!(watch.ask(TOKEN, Duration::MAX).await, Ok(Answer::Stalled));
        assert!(began.elapsed() <= LONGEST_WATCH + GLANCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_question_within_the_ask_interval_is_refused() {
        let watch = Watch::default();
        let _session = session(watch.enter(TOKEN).expect("a free token"), &[(1, false)]);
        assert_eq!(watch.ask(TOKEN, Duration::ZERO).await, Ok(Answer::Idle));
        assert_eq!(watch.ask(TOKEN, Duration::ZERO).await, Err(Refusal::TooSoon));
        tokio::time::advance(ASK_INTERVAL).await;
        assert_eq!(watch.ask(TOKEN, Duration::ZERO).await, Ok(Answer::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn only_live_sockets_are_known_and_a_token_names_one() {
        let watch = Watch::default();
        assert_eq!(watch.ask(TOKEN, Duration::ZERO).await, Err(Refusal::Unknown));
        let watched = watch.enter(TOKEN).expect("a free token");
        assert!(watch.enter(TOKEN).is_none());
        let asked = tokio::spawn({
            let watch = watch.clone();
            async move { watch.ask(TOKEN, Duration::from_secs(1)).await }
        });
        tokio::task::yield_now().await;
        drop(watched);
        assert_eq!(asked.await.expect("no panic"), Err(Refusal::Unknown), "it ended before it could answer");
        assert!(watch.enter(TOKEN).is_some());
    }

    #[test]
    fn a_token_is_32_hexadecimal_digits() {
        assert!(
            Token::parse("0123456789abcdefABCDEF0123456789") == Some(Token(0x0123_4567_89ab_cdef_abcd_ef01_2345_6789))
        );
        for text in ["", "0123456789abcdef", "+123456789abcdefABCDEF0123456789", "g123456789abcdefABCDEF0123456789"] {
            assert!(Token::parse(text).is_none(), "{text}");
        }
    }
}
