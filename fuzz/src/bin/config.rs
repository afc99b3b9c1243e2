//! Configuration files: any bytes give a configuration or one-line errors, and displayed settings are valid input.
#![no_main]

use std::cell::LazyCell;
use std::path::PathBuf;

use heartbeat_sidecar::config::{Config, SETTINGS, Sources, load};
use libfuzzer_sys::fuzz_target;

thread_local! {
    /// The file that this process overwrites for each input.
    static FILE: LazyCell<PathBuf> = LazyCell::new(|| {
        std::env::temp_dir().join(format!("heartbeat-sidecar-fuzz-{}.toml", std::process::id()))
    });
}

fuzz_target!(|bytes: &[u8]| FILE.with(|file| {
    std::fs::write(&**file, bytes).expect("cannot write to the temporary directory");
    check(PathBuf::clone(file));
}));

fn check(file: PathBuf) {
    let loaded = match load(&Sources { config: Some(file), ..Sources::default() }) {
        Ok(loaded) => loaded,
        Err(problems) => {
            assert!(!problems.0.is_empty());
            for problem in problems.0 {
                let line = problem.to_string();
                assert!(!line.is_empty() && !line.chars().any(char::is_control), "{line:?}");
            }
            return;
        }
    };
    assert_eq!(loaded.settings.len(), SETTINGS.len());
    let values = loaded.settings.iter().map(|effective| effective.value.clone());
    let again = Sources { flags: SETTINGS.iter().zip(values).collect(), ..Sources::default() };
    let again: Config = load(&again).expect("displayed settings are valid").config;
    assert_eq!(again, loaded.config);
}
