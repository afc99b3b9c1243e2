//! The log: one line per event on stderr, as text or JSON.
//!
//! Invariant: a thread that logs never waits for the reader.

mod lines;
mod text;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tracing::Subscriber;
use tracing::subscriber::set_global_default;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::reload::Handle;

use self::lines::{LineBuffer, WriterThread};

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is invalid.
    #[error("{filter:?} is not a log filter such as \"info\" or \"info,heartbeat_sidecar::relay=debug\"")]
    Filter {
        /// As given.
        filter: String,
        /// The parser's error.
        source: ParseError,
    },
    /// The log is already set up.
    #[error("the log is set up already")]
    Installed(#[source] tracing::subscriber::SetGlobalDefaultError),
    /// The log's thread could not be started.
    #[error("cannot start the thread that writes the log")]
    Thread(#[source] io::Error),
}

type BoxedSubscriber = Box<dyn Subscriber + Send + Sync>;

/// The process's log. Dropping it writes the waiting lines, for at most one second.
#[must_use]
pub struct Log {
    lines: Arc<LineBuffer>,
    filter: Filter,
    _writer: WriterThread,
}

/// Selects the lines that are written; clones share one log.
#[derive(Clone)]
pub struct Filter(Arc<dyn Fn(EnvFilter) + Send + Sync>);

impl Filter {
    /// A filter that `set` activates.
    pub(crate) fn new(set: impl Fn(EnvFilter) + Send + Sync + 'static) -> Self {
        Self(Arc::new(set))
    }

    /// Replaces the filter. A filter from [`parse_filter`] cannot fail here.
    pub fn set(&self, filter: EnvFilter) {
        (self.0)(filter);
    }
}

impl Log {
    /// The filter of this log.
    pub fn filter(&self) -> Filter {
        self.filter.clone()
    }

    /// Warns every 10 s if lines were lost; never returns.
    pub fn warn_of_lost_lines(&self) -> impl Future<Output = ()> + Send + use<> {
        const INTERVAL: Duration = Duration::from_secs(10);
        let lines = self.lines.clone();
        async move {
            let mut reported = 0;
            loop {
                tokio::time::sleep(INTERVAL).await;
                let lost = lines.lost();
                if lost > reported {
                    tracing::warn!(lines = lost - reported, "log lines lost: the reader of stderr is too slow");
                    reported = lost;
                }
            }
        }
    }
}

/// Sets up the process's log, once. JSON lines have the event's fields at the top level.
///
/// # Errors
/// The filter is invalid, the log is already set up, or its thread could not be started.
pub fn init(json: bool, filter: &str) -> Result<Log, TelemetryError> {
    let lines = Arc::new(LineBuffer::default());
    let (subscriber, filter) = subscriber(json, filter, lines.clone())?;
    let writer = WriterThread::start(lines.clone(), io::stderr()).map_err(TelemetryError::Thread)?;
    set_global_default(subscriber).map_err(TelemetryError::Installed)?;
    Ok(Log { lines, filter, _writer: writer })
}

/// Writes an error to stderr, independent of the filter and the log. JSON has the form of the log's lines. Drop the
/// [`Log`] first, or its last lines come later.
pub fn print_error(json: bool, reason: &str) {
    if json && let Ok((subscriber, _filter)) = subscriber(true, "error", io::stderr) {
        return tracing::subscriber::with_default(subscriber, || tracing::error!("{reason}"));
    }
    eprintln!("error: {reason}");
}

/// Parses a filter without activating it.
///
/// # Errors
/// It is invalid.
pub fn parse_filter(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(filter).map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })
}

fn subscriber<W>(json: bool, filter: &str, writer: W) -> Result<(BoxedSubscriber, Filter), TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let log = tracing_subscriber::fmt().with_env_filter(parse_filter(filter)?).with_writer(writer);
    Ok(if json {
        let log = log.json().flatten_event(true).with_current_span(false).with_span_list(false).with_filter_reloading();
        let filter = reloadable(log.reload_handle());
        (Box::new(log.finish()), filter)
    } else {
        let log = log.with_timer(text::Clock).fmt_fields(text::Fields).with_filter_reloading();
        let filter = reloadable(log.reload_handle());
        (Box::new(log.finish()), filter)
    })
}

fn reloadable<S: 'static>(handle: Handle<EnvFilter, S>) -> Filter {
    Filter::new(move |filter| {
        // Fails only without its subscriber, which then writes no lines.
        let _gone = handle.reload(filter);
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    pub(super) struct Written(Arc<Mutex<Vec<u8>>>);

    impl Written {
        pub(super) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    pub(super) fn logged(json: bool, filter: &str, event: impl FnOnce()) -> String {
        logged_with(json, filter, |_filter| event())
    }

    fn logged_with(json: bool, filter: &str, event: impl FnOnce(Filter)) -> String {
        let written = Written::default();
        let writer = written.clone();
        let (subscriber, filter) = subscriber(json, filter, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || event(filter));
        written.text()
    }

    #[test]
    fn json_lines_have_their_fields_at_the_top_and_no_spans() {
        let line = logged(true, "info", || {
            tracing::info_span!("session", id = 7).in_scope(|| tracing::info!(address = "127.0.0.1:1", "listening"));
        });
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["message"], "listening");
        assert_eq!(line["address"], "127.0.0.1:1");
        assert_eq!(line["level"], "INFO");
        assert!(line.get("span").is_none() && line.get("spans").is_none(), "{line}");
    }

    #[test]
    fn text_lines_are_plain() {
        let line = logged(false, "info", || tracing::warn!("listening on 127.0.0.1:1"));
        assert!(line.contains("WARN") && line.ends_with("listening on 127.0.0.1:1\n"), "{line}");
        assert!(!line.contains('\x1b'));
    }

    #[test]
    fn the_filter_selects_lines_by_module() {
        let event = || {
            tracing::debug!(target: "heartbeat_sidecar::relay", "seen");
            tracing::debug!(target: "hyper", "unseen");
        };
        let lines = logged(false, "info,heartbeat_sidecar::relay=debug", event);
        assert!(lines.contains("seen") && !lines.contains("unseen"), "{lines}");
    }

    #[test]
    fn the_filter_can_change() {
        for json in [false, true] {
            let lines = logged_with(json, "info", |filter| {
                let event = |name| tracing::debug!(target: "heartbeat_sidecar::relay", "{name}");
                event("before");
                filter.set(parse_filter("debug").unwrap());
                event("between");
                assert!(parse_filter("info,relay=loud").is_err());
                event("unchanged");
                filter.set(parse_filter("warn").unwrap());
                event("after");
            });
            let seen = ["before", "between", "unchanged", "after"].map(|name| lines.contains(name));
            assert_eq!(seen, [false, true, true, false], "{lines}");
        }
    }

    #[test]
    fn an_invalid_filter_is_named_in_the_error() {
        let error = subscriber(false, "info,relay=loud", io::sink).err().unwrap();
        assert!(error.to_string().contains("info,relay=loud"), "{error}");
    }
}
