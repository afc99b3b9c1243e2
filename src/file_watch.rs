//! Detects changes of files by polling their content: notifications miss a replaced link on some file systems.

use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

/// Time between polls.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The compared length of a file. Larger than any file that is loaded: 1 MiB of configuration, 4 MiB of certificates.
const MAX_BYTES: u64 = 5 * 1024 * 1024;

/// Watches the content of some files. Its functions read them, and a file system may hang.
pub struct FileWatch {
    files: Vec<PathBuf>,
    /// Fingerprint at the last poll.
    seen: u64,
    /// Fingerprint at the last load.
    loaded: u64,
}

impl FileWatch {
    /// Call it before the files are loaded, so that no change in between is missed.
    pub fn new(files: Vec<PathBuf>) -> Self {
        let now = fingerprint(&files);
        Self { files, seen: now, loaded: now }
    }

    /// Whether the files must be loaded: they differ from the last load, and two polls have seen the same content. Not
    /// every tool replaces a file atomically, and none replaces a pair so.
    pub fn poll(&mut self) -> bool {
        let now = fingerprint(&self.files);
        let steady = std::mem::replace(&mut self.seen, now) == now;
        steady && std::mem::replace(&mut self.loaded, now) != now
    }

    /// The files are loaded now without a poll.
    pub fn on_load(&mut self) {
        self.loaded = fingerprint(&self.files);
    }
}

/// Ticks at which to poll.
pub fn poll_ticks() -> Interval {
    let mut ticks = interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// A fingerprint of each file's content or read error; practically unique. Keeps no key in memory.
fn fingerprint(files: &[PathBuf]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in files {
        read(file).map_err(|error| error.kind()).hash(&mut hasher);
    }
    hasher.finish()
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_change_is_reported_once_and_after_two_polls_have_seen_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = ["a", "b"].map(|name| folder.path().join(name));
        fs::write(&files[0], "1").expect("written");
        let mut watch = FileWatch::new(files.to_vec());
        let mut polls = || [(); 3].map(|()| watch.poll());
        assert_eq!(polls(), [false; 3], "nothing has changed");
        fs::write(&files[0], "2").expect("written");
        assert_eq!(polls(), [false, true, false]);
        fs::write(&files[1], "").expect("written");
        assert_eq!(polls(), [false, true, false], "an empty file differs from none");
        fs::rename(&files[0], &files[1]).expect("moved");
        assert_eq!(polls(), [false, true, false], "the same content in another file");
    }

    #[test]
    fn content_that_changes_back_before_the_second_poll_is_not_reported() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut watch = FileWatch::new(vec![file.path().to_owned()]);
        fs::write(file.path(), "half").expect("written");
        assert!(!watch.poll());
        fs::write(file.path(), "").expect("written");
        assert!(!watch.poll() && !watch.poll());
    }

    #[test]
    fn content_that_was_loaded_without_a_poll_is_not_reported() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut watch = FileWatch::new(vec![file.path().to_owned()]);
        fs::write(file.path(), "loaded on SIGHUP").expect("written");
        watch.on_load();
        assert!(!watch.poll() && !watch.poll());
    }
}
