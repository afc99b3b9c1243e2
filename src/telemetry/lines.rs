//! The log's line buffer: lines are collected in memory, and a thread of its own writes them.
//!
//! Invariant: logging never waits for the reader. Lines that do not fit or cannot be written are lost and counted.
//!
//! tracing-appender does not replace this: it does not count lines that cannot be written, and if its queue is full at
//! exit it prints to stdout, which blocks forever if stdout and stderr are one stuck pipe.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes that may wait for a slow reader: about 10,000 lines.
const MAX_BUFFERED_BYTES: usize = 4 << 20;

/// Capacity kept while the buffer is empty: a burst's memory is given back.
const IDLE_CAPACITY_BYTES: usize = 64 << 10;

/// Time to collect more lines after a write, so that one system call writes many.
const BATCH_DELAY: Duration = Duration::from_millis(20);

/// Time limit for the last lines at exit.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The lines that wait to be written; each write to it is one whole line.
#[derive(Debug, Default)]
pub(super) struct LineBuffer {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    lost: u64,
    /// The writer waits for a notification.
    idle: bool,
    /// No more lines come.
    ended: bool,
    /// All lines are written.
    written: bool,
}

/// Owns the writer thread. Dropping it writes the waiting lines, for at most one second.
#[must_use]
#[derive(Debug)]
pub(super) struct WriterThread(Arc<LineBuffer>);

impl LineBuffer {
    /// The number of lines lost so far.
    pub(super) fn lost(&self) -> u64 {
        self.lock().lost
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.waiting.len() + line.len() > MAX_BUFFERED_BYTES {
            state.lost += 1;
            return;
        }
        state.waiting.extend_from_slice(line);
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        if idle {
            self.changed.notify_all();
        }
    }

    fn write_to(&self, mut output: impl io::Write) {
        let mut lines = Vec::new();
        let mut state = self.lock();
        while !state.ended || !state.waiting.is_empty() {
            if state.waiting.is_empty() {
                state.idle = true;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.idle = false;
            std::mem::swap(&mut lines, &mut state.waiting);
            drop(state);
            let unwritten = write_out(&mut output, &lines);
            lines.clear();
            lines.shrink_to(IDLE_CAPACITY_BYTES);
            state = self.lock();
            state.lost += unwritten;
            let waited = self.changed.wait_timeout_while(state, BATCH_DELAY, |state| !state.ended);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.written = true;
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No panic can leave it inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes until the output fails; returns the number of lines that were not written whole.
fn write_out(output: &mut impl io::Write, mut lines: &[u8]) -> u64 {
    while !lines.is_empty() {
        match output.write(lines) {
            Ok(0) => break,
            Ok(length) => lines = &lines[length..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

impl io::Write for &LineBuffer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriterThread {
    /// Starts the thread that writes to `output`.
    ///
    /// # Errors
    /// The thread could not be started.
    pub(super) fn start(lines: Arc<LineBuffer>, output: impl io::Write + Send + 'static) -> io::Result<Self> {
        let writer = Self(lines.clone());
        std::thread::Builder::new().name("log".to_owned()).spawn(move || lines.write_to(output))?;
        Ok(writer)
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ended = true;
        self.0.changed.notify_all();
        drop(self.0.changed.wait_timeout_while(state, FLUSH_TIMEOUT, |state| !state.written));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// Accepts a write when the test receives it.
    struct Slow(SyncSender<String>);

    impl io::Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8_lossy(bytes).into_owned();
            self.0.send(text).map(|()| bytes.len()).map_err(io::Error::other)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn started() -> (Arc<LineBuffer>, WriterThread, Receiver<String>) {
        let (sender, receiver) = sync_channel(0);
        let lines = Arc::new(LineBuffer::default());
        (lines.clone(), WriterThread::start(lines, Slow(sender)).expect("a thread"), receiver)
    }

    fn log(lines: &LineBuffer, line: &str) {
        (&mut &*lines).write_all(line.as_bytes()).expect("never fails");
    }

    #[test]
    fn lines_are_written_in_order_and_batched_if_the_reader_is_slow() {
        let (lines, writer, read) = started();
        log(&lines, "first\n");
        let first = read.recv().expect("a line");
        let mut expected = String::new();
        for number in 0..100 {
            log(&lines, &format!("{number}\n"));
            expected += &format!("{number}\n");
        }
        let mut all = String::new();
        let mut times = 0;
        while all.len() < expected.len() {
            all += &read.recv().expect("more lines");
            times += 1;
        }
        assert_eq!((first.as_str(), all), ("first\n", expected));
        assert!(times < 100, "{times}");
        drop(writer);
    }

    #[test]
    fn lines_that_do_not_fit_are_counted_and_the_rest_is_written_on_drop() {
        let (lines, writer, read) = started();
        let line = "x".repeat(MAX_BUFFERED_BYTES / 4);
        for _line in 0..9 {
            log(&lines, &line);
        }
        let reading = std::thread::spawn(move || read.iter().map(|text| text.len()).sum::<usize>());
        drop(writer);
        let lost = usize::try_from(lines.lost()).expect("a few");
        assert!((1..=5).contains(&lost), "{lost}");
        assert_eq!(reading.join().expect("no panic"), (9 - lost) * line.len());
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        struct Full(usize);
        impl io::Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let taken = bytes.len().min(std::mem::take(&mut self.0));
                if taken > 0 { Ok(taken) } else { Err(io::ErrorKind::WouldBlock.into()) }
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for (room, refused) in [(0, 3), (3, 3), (4, 2), (9, 1), (12, 0)] {
            assert_eq!(write_out(&mut Full(room), b"one\ntwo\nthr\n"), refused, "{room}");
        }
    }

    #[test]
    fn a_stuck_reader_delays_the_exit_only_until_the_flush_timeout() {
        let (lines, writer, _stuck) = started();
        log(&lines, "first\n");
        log(&lines, "second\n");
        let started = std::time::Instant::now();
        drop(writer);
        assert!(started.elapsed() < FLUSH_TIMEOUT * 5);
    }
}
