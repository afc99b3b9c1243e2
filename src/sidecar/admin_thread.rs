//! The thread for the admin port and upkeep, so that their work does not delay sessions.

use std::io;
use std::sync::mpsc;
use std::thread;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A thread with its own runtime. Dropping this ends the thread and aborts its tasks.
pub(super) struct AdminThread {
    runtime: Handle,
    _end: DropGuard,
}

impl AdminThread {
    /// # Errors
    /// No thread or file descriptor is available.
    pub(super) fn start() -> io::Result<Self> {
        let (started, result) = mpsc::channel();
        let end = CancellationToken::new();
        let ended = end.clone();
        // A runtime must not be dropped in async code, so the thread creates and drops it.
        thread::Builder::new().name("admin".to_owned()).spawn(move || {
            match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => {
                    // The caller is waiting for it.
                    let _received = started.send(Ok(runtime.handle().clone()));
                    runtime.block_on(ended.cancelled());
                }
                Err(error) => _ = started.send(Err(error)),
            }
        })?;
        let runtime = result.recv().map_err(io::Error::other)??;
        Ok(Self { runtime, _end: end.drop_guard() })
    }

    /// Moves a listener to this thread's runtime.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn adopt(&self, listener: TcpListener) -> io::Result<TcpListener> {
        let listener = listener.into_std()?;
        let _entered = self.runtime.enter();
        TcpListener::from_std(listener)
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.runtime.spawn(task)
    }
}
