//! Reloads a configuration file that changes while the sidecar runs.
//!
//! Invariant: all of a change or nothing; a value that cannot change at run time is rejected with its line.

use super::SETTINGS;
use super::load::{Sources, load};
use super::loaded::{Effective, Loaded, Problem, Problems, Source};
use crate::file_watch::FileWatch;

/// Watches the file of a running sidecar. Its functions read files.
pub struct Reloader {
    sources: Sources,
    watch: FileWatch,
}

impl Reloader {
    /// Call it before the configuration is loaded, so that no change in between is missed.
    pub fn new(sources: Sources) -> Self {
        let watch = FileWatch::new(sources.file().into_iter().map(Into::into).collect());
        Self { sources, watch }
    }

    /// Whether there is a file that could change.
    pub fn has_file(&self) -> bool {
        self.sources.file().is_some()
    }

    /// Polls the file, and loads it if it has changed. Links are followed, so a link to other content is a change.
    ///
    /// # Errors
    /// See [`Reloader::read`].
    pub fn look(&mut self, running: &Loaded) -> Option<Result<Loaded, Problems>> {
        self.watch.poll().then(|| self.read(running))
    }

    /// Loads everything again, changed or not.
    ///
    /// # Errors
    /// The errors of [`load`], or valid values that must not change while `running` runs.
    pub fn read(&mut self, running: &Loaded) -> Result<Loaded, Problems> {
        self.watch.on_load();
        let loaded = load(&self.sources)?;
        let fixed = fixed(running, &loaded);
        if fixed.is_empty() { Ok(loaded) } else { Err(Problems(fixed)) }
    }
}

/// The values that differ and may not, with the sources of the new ones.
fn fixed(running: &Loaded, loaded: &Loaded) -> Vec<Problem> {
    let values = running.settings.iter().zip(&loaded.settings);
    let changed = SETTINGS.iter().zip(values);
    let changed = changed.filter(|(setting, (old, new))| old.value != new.value && !setting.is_reloadable());
    let problem = |(_setting, (old, new)): (_, (&Effective, &Effective))| {
        let reason = format!("{}: {:?} cannot become {:?} while the sidecar runs", new.key, old.value, new.value);
        // A key removed from the file has no line there.
        let at = if new.source == Source::Default { old.source.clone() } else { new.source.clone() };
        Problem::Invalid { at, reason: format!("{reason}: restart it") }
    };
    let mut fixed: Vec<_> = changed.map(problem).collect();
    if running.config.tls.certificates != loaded.config.tls.certificates {
        let reason = "[[tls.certificates]]: other files cannot be taken while the sidecar runs: restart it";
        fixed.push(Problem::Conflict(reason.to_owned()));
    }
    fixed
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    struct Folder {
        _folder: tempfile::TempDir,
        path: PathBuf,
        sources: Sources,
    }

    fn folder(text: &str) -> Folder {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("sidecar.toml");
        fs::write(&path, text).expect("a file");
        let sources = Sources { config: Some(path.clone()), ..Sources::default() };
        Folder { _folder: folder, path, sources }
    }

    #[test]
    fn a_change_is_loaded_when_two_polls_have_seen_it() {
        let Folder { path, sources, .. } = &folder("");
        let mut reloader = Reloader::new(sources.clone());
        let running = load(sources).expect("valid");
        assert!(reloader.look(&running).is_none());
        fs::write(path, "[heartbeat]\nmode = 'answer'\n").expect("a file");
        assert!(reloader.look(&running).is_none(), "it may be half written");
        let taken = reloader.look(&running).expect("a change").expect("valid");
        assert_eq!(taken.config.heartbeat.mode, crate::heartbeat::Mode::Answer);
        assert!(reloader.look(&taken).is_none(), "once");
    }

    #[test]
    fn a_bad_file_is_reported_once_and_a_later_good_one_is_loaded() {
        let Folder { path, sources, .. } = &folder("log_level = 'info'\n");
        let mut reloader = Reloader::new(sources.clone());
        let running = load(sources).expect("valid");
        let looks = |reloader: &mut Reloader| [(); 3].map(|()| reloader.look(&running));
        for bad in ["log_level = 1\n", "log_level", "[[route]]\n"] {
            fs::write(path, bad).expect("a file");
            let [None, Some(Err(_)), None] = looks(&mut reloader) else { panic!("{bad}") };
        }
        fs::remove_file(path).expect("removed");
        let [None, Some(Err(Problems(problems))), None] = looks(&mut reloader) else { panic!("no file") };
        assert!(matches!(problems[..], [Problem::Unreadable { .. }]));
        fs::write(path, "log_level = 'info'\n").expect("a file");
        let [None, Some(Ok(_)), None] = looks(&mut reloader) else { panic!("as it was") };
    }

    #[test]
    fn a_change_that_needs_a_restart_is_rejected_with_its_line() {
        let Folder { path, sources, .. } = &folder("admin = '127.0.0.1:1'\n");
        let mut reloader = Reloader::new(sources.clone());
        let running = load(sources).expect("valid");
        fs::write(path, "\nlisten = '127.0.0.1:2'\n[heartbeat]\nmode = 'answer'\n[session]\ntakeover = false\n")
            .expect("a file");
        let Problems(problems) = reloader.read(&running).expect_err("all of it or nothing");
        let messages: Vec<_> =
            problems.iter().map(|it| it.to_string().rsplit('/').next().unwrap_or_default().to_owned()).collect();
        assert_eq!(
            messages,
            [
                r#"sidecar.toml:2: listen: "0.0.0.0:8500" cannot become "127.0.0.1:2" while the sidecar runs: restart it"#,
                r#"sidecar.toml:1: admin: "127.0.0.1:1" cannot become "127.0.0.1:9600" while the sidecar runs: restart it"#,
                r#"sidecar.toml:6: session.takeover: "true" cannot become "false" while the sidecar runs: restart it"#,
            ]
        );
    }

    #[test]
    fn other_certificates_need_a_restart() {
        let Folder { path, sources, .. } = &folder("");
        let mut reloader = Reloader::new(sources.clone());
        let pki = |name: &str| path.with_file_name(name);
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::new(["a.test".to_owned()]).expect("a name").self_signed(&key);
        fs::write(pki("a.crt"), certificate.expect("signed").pem()).expect("a file");
        fs::write(pki("a.key"), key.serialize_pem()).expect("a file");
        let pair = format!("certificate = {:?}\nkey = {:?}\n", pki("a.crt"), pki("a.key"));
        fs::write(path, format!("[tls]\n{pair}")).expect("a file");
        let running = load(sources).expect("valid");
        fs::write(path, format!("[tls]\n{pair}[[tls.certificates]]\n{pair}")).expect("a file");
        let Problems(problems) = reloader.read(&running).expect_err("restart");
        let messages: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(messages, ["[[tls.certificates]]: other files cannot be taken while the sidecar runs: restart it"]);
    }
}
