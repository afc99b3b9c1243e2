//! The log: one line an event on stderr, as text or JSON.
//!
//! Law: whoever logs never waits for whoever reads: lines that find no room are lost, and counted.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use tracing::Subscriber;
use tracing::subscriber::set_global_default;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be read.
    #[error("{filter:?} is no log filter such as \"info\" or \"info,heartbeat_sidecar::relay=debug\"")]
    Filter {
        /// As it was given.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The process has a log already.
    #[error("the log is set up already")]
    Installed(#[source] tracing::subscriber::SetGlobalDefaultError),
}

/// Lines that may wait for a reader that is slow, some 300 bytes each.
const WAITING_LINES: usize = 16_384;

/// The process' log. Lines that still wait are written when it is dropped, within a second.
#[must_use]
pub struct Log {
    lost: ErrorCounter,
    _writer: WorkerGuard,
}

impl Log {
    /// Counts the lines that were lost.
    pub fn lost(&self) -> ErrorCounter {
        self.lost.clone()
    }
}

/// Sets up the process' log, once. Text has colours only on a terminal; JSON has the fields of an event at the top.
///
/// # Errors
/// The filter cannot be read, or there is a log already.
pub fn init(json: bool, filter: &str) -> Result<Log, TelemetryError> {
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(WAITING_LINES)
        .thread_name("log")
        .finish(io::stderr());
    let log = Log { lost: writer.error_counter(), _writer: guard };
    let subscriber = subscriber(json, filter, writer, io::stderr().is_terminal())?;
    set_global_default(subscriber).map_err(TelemetryError::Installed)?;
    Ok(log)
}

/// Says now and then how many lines were lost; for ever.
pub async fn tell_of_losses(lost: ErrorCounter) {
    const INTERVAL: Duration = Duration::from_secs(10);
    let mut told = 0;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let lines = lost.dropped_lines();
        if lines > told {
            tracing::warn!(lines = lines - told, "lines of this log were lost: its reader is too slow");
            told = lines;
        }
    }
}

fn subscriber<W>(
    json: bool,
    filter: &str,
    writer: W,
    ansi: bool,
) -> Result<Box<dyn Subscriber + Send + Sync>, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let env = EnvFilter::try_new(filter);
    let filter = env.map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(ansi);
    Ok(if json {
        Box::new(log.json().flatten_event(true).with_current_span(false).with_span_list(false).finish())
    } else {
        Box::new(log.finish())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool, filter: &str, event: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = subscriber(json, filter, move || writer.clone(), false).unwrap();
        tracing::subscriber::with_default(subscriber, event);
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
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
    fn text_lines_are_plain_off_a_terminal() {
        let line = logged(false, "info", || tracing::warn!("listening on 127.0.0.1:1"));
        assert!(line.contains("WARN") && line.ends_with("listening on 127.0.0.1:1\n"), "{line}");
        assert!(!line.contains('\x1b'));
    }

    #[test]
    fn the_filter_decides_by_module() {
        let event = || {
            tracing::debug!(target: "heartbeat_sidecar::relay", "seen");
            tracing::debug!(target: "hyper", "unseen");
        };
        let lines = logged(false, "info,heartbeat_sidecar::relay=debug", event);
        assert!(lines.contains("seen") && !lines.contains("unseen"), "{lines}");
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_named() {
        let error = subscriber(false, "info,relay=loud", io::sink, false).err().unwrap();
        assert!(error.to_string().contains("info,relay=loud"), "{error}");
    }
}
