//! Reloads certificates and keys when their files change.
//!
//! Invariant: broken files never replace a working configuration.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{BuiltConfig, PemFiles, TlsError, build};
use crate::file_watch::{FileWatch, poll_ticks};
use crate::metrics::{Metrics, Reload};

/// Reloads one TLS configuration.
pub struct CertificateReloader<F: PemFiles> {
    files: F,
    watch: FileWatch,
    current: Arc<ArcSwap<F::Config>>,
}

impl<F: PemFiles> CertificateReloader<F> {
    /// Loads the files. Also returns [`BuiltConfig::not_after`].
    ///
    /// # Errors
    /// Names the invalid file.
    pub fn load(files: F) -> Result<(Self, u64), TlsError> {
        let watch = FileWatch::new(files.files().iter().map(|file| file.path.to_owned()).collect());
        let BuiltConfig { config, not_after } = build(&files)?;
        Ok((Self { files, watch, current: Arc::new(ArcSwap::from_pointee(config)) }, not_after))
    }

    /// The last configuration that loaded. Connections keep the one that they started with.
    pub fn current(&self) -> Arc<ArcSwap<F::Config>> {
        self.current.clone()
    }

    /// Polls the files, and loads them if they have changed. Returns the result of a load: when the new certificate
    /// expires, or why the old one stays. Reads files.
    fn poll(&mut self) -> Option<Result<u64, TlsError>> {
        let load = || {
            let BuiltConfig { config, not_after } = build(&self.files)?;
            self.current.store(Arc::new(config));
            Ok(not_after)
        };
        self.watch.poll().then(load)
    }
}

impl<F> CertificateReloader<F>
where
    F: PemFiles + Send + 'static,
    F::Config: Send + Sync,
{
    /// Reloads the files for ever. `expires` receives the expiry of a new certificate, in seconds of Unix time.
    pub async fn run(mut self, metrics: Arc<Metrics>, expires: impl Fn(u64)) {
        let mut ticks = poll_ticks();
        loop {
            ticks.tick().await;
            // A file system may hang.
            let polled = tokio::task::spawn_blocking(move || {
                let result = self.poll();
                (self, result)
            });
            let Ok((reloader, result)) = polled.await else { return };
            self = reloader;
            match result {
                Some(Ok(not_after)) => {
                    metrics.tls_reload(Reload::Accepted);
                    expires(not_after);
                    tracing::info!("TLS certificates reloaded");
                }
                Some(Err(error)) => {
                    metrics.tls_reload(Reload::Refused);
                    tracing::error!(%error, "TLS certificates not reloaded, the previous ones stay");
                }
                None => {}
            }
        }
    }
}
