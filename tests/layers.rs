//! ARCHITECTURE's table of layers, checked: allowed imports, and what pure modules must not use.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Each top-level module with those that it imports, which are all further down.
const IMPORTS: &[(&str, &str)] = &[
    ("main", "cli commands"),
    ("lib", ""),
    ("commands", "cli sidecar proxy config session tls metrics drain telemetry file_watch heartbeat streamlit"),
    ("cli", "config"),
    ("sidecar", "server proxy config relay transport session tls metrics drain"),
    ("server", "proxy config transport session limits metrics drain heartbeat"),
    ("proxy", "config relay transport session limits metrics drain resume tap heartbeat streamlit websocket"),
    ("config", "tls metrics file_watch heartbeat streamlit"),
    ("relay", "transport session metrics drain resume tap heartbeat streamlit websocket"),
    ("transport", "limits"),
    ("session", "metrics heartbeat streamlit"),
    ("limits", "metrics"),
    ("tls", "metrics file_watch"),
    ("metrics", "heartbeat streamlit websocket"),
    ("drain", ""),
    ("telemetry", ""),
    ("file_watch", ""),
    ("resume", "websocket"),
    ("tap", "heartbeat streamlit websocket"),
    ("heartbeat", "streamlit websocket"),
    ("streamlit", ""),
    ("websocket", ""),
];

/// They take bytes and `now`, and return values.
const PURE: [&str; 5] = ["resume", "tap", "heartbeat", "streamlit", "websocket"];

/// Runtime, clocks, locks, logs, metrics and the outside world.
const IMPURE: [&str; 17] = [
    "tokio",
    "Instant::now",
    "SystemTime",
    "Mutex",
    "RwLock",
    "Atomic",
    "OnceLock",
    "thread_local",
    "tracing",
    "log::",
    "metrics",
    "std::net",
    "std::fs",
    "std::io",
    "std::env",
    "std::thread",
    "rand::",
];

/// A source file: its path below `src`, and its text.
struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// The top-level module that it belongs to.
    fn module(&self) -> &str {
        let first = self.path.iter().next().and_then(|part| part.to_str()).expect("a path of letters");
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// The prefix of the library's paths.
    fn root(&self) -> &'static str {
        if self.module() == "main" { "heartbeat_sidecar::" } else { "crate::" }
    }

    /// How many `super`s lead out of its top-level module.
    fn depth(&self) -> usize {
        self.path.components().count() - usize::from(self.path.ends_with("mod.rs"))
    }

    /// Its lines without comments, numbered from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().map(|line| line.split("//").next().unwrap_or_default()).zip(1..).map(|(line, n)| (n, line))
    }

    fn at(&self, line: usize) -> String {
        format!("src/{}:{line}", self.path.display())
    }

    /// Its imports that the table forbids.
    fn forbidden_imports(&self) -> Vec<String> {
        let module = self.module();
        let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == module) else {
            return vec![format!("{}: no layer is known for `{module}`", self.at(1))];
        };
        let mut offences = Vec::new();
        for (number, line) in self.lines() {
            for name in imports(line, self.root()) {
                if name != module && !allowed.split(' ').any(|allowed| allowed == name) {
                    offences.push(format!("{}: `{module}` must not import `{name}`", self.at(number)));
                }
            }
            if climbs_out(line, self.depth()) {
                offences.push(format!("{}: name the top-level module with `crate::`", self.at(number)));
            }
        }
        offences
    }

    /// What a pure module must not use; its tests, at the end of the file, may.
    fn impurities(&self) -> Vec<String> {
        let is_tests =
            self.path.ends_with("tests.rs") || self.path.parent().is_some_and(|folder| folder.ends_with("tests"));
        if !PURE.contains(&self.module()) || is_tests {
            return Vec::new();
        }
        let tests = self.text.lines().position(|line| line == "mod tests {").unwrap_or(usize::MAX);
        self.lines()
            .take_while(|(number, _)| *number <= tests)
            .flat_map(|(number, line)| {
                IMPURE.iter().filter(|word| line.contains(**word)).map(move |word| (number, word))
            })
            .map(|(number, word)| format!("{}: a pure module must not know `{word}`", self.at(number)))
            .collect()
    }
}

impl Source {
    /// Its path in the crate, such as `server::admin`.
    fn module_path(&self) -> String {
        let path = self.path.with_extension("").to_string_lossy().replace('/', "::");
        path.strip_suffix("::mod").map(str::to_owned).unwrap_or(path)
    }

    /// The items that it imports, and the child modules that it uses. Re-exports and its tests do not count.
    fn uses(&self) -> Vec<String> {
        let own = &*self.module_path();
        let code: String = self.lines().map(|(_, line)| format!("{line}\n")).collect();
        let code = code.split("\nmod tests {").next().unwrap_or_default();
        let imports = code.split(';').filter_map(|statement| statement.trim_start().strip_prefix("use "));
        let imported = imports.flat_map(|import| {
            let (path, names) = import.split_once('{').unwrap_or((import, ""));
            names.trim_end_matches('}').split(',').map(move |name| absolute(own, &format!("{path}{}", name.trim())))
        });
        let children = code.lines().filter_map(|line| line.trim_start().strip_prefix("mod ")?.strip_suffix(';'));
        let code = || code.split(';').filter(|statement| !statement.trim_start().starts_with("pub use "));
        let used = children.filter(|child| code().any(|statement| statement.contains(&format!(" {child}::"))));
        imported.chain(used.map(|child| format!("{own}::{child}"))).collect()
    }
}

/// A path of an import in the module `own`, from the crate's root.
fn absolute(own: &str, path: &str) -> String {
    if let Some(path) = path.strip_prefix("crate::") {
        return path.to_owned();
    }
    match path.strip_prefix("super::") {
        Some(path) => absolute(own.rsplit_once("::").map_or("", |(parent, _)| parent), path),
        None => format!("{own}::{}", path.trim_start_matches("self::")),
    }
}

/// The imports between files of one top-level module that lead back to where they start.
fn circles(house: &[Source]) -> Vec<String> {
    let files: BTreeSet<_> = house.iter().map(Source::module_path).collect();
    let file_of = |item: String| {
        let mut parents = std::iter::successors(Some(&*item), |path| Some(path.rsplit_once("::")?.0));
        parents.find(|path| files.contains(*path)).map(str::to_owned)
    };
    let mut edges = BTreeSet::new();
    for file in house.iter().filter(|file| !file.path.ends_with("tests.rs")) {
        let targets = file.uses().into_iter().filter_map(file_of).filter(|target| *target != file.module_path());
        edges.extend(targets.map(|target| (file.module_path(), target)));
    }
    edges.retain(|(from, to)| from.split("::").next() == to.split("::").next());
    loop {
        // An edge of a circle starts where another ends, and ends where another starts.
        let (starts, ends): (BTreeSet<_>, BTreeSet<_>) = edges.iter().cloned().unzip();
        let before = edges.len();
        edges.retain(|(from, to)| ends.contains(from) && starts.contains(to));
        if edges.len() == before {
            return edges.iter().map(|(from, to)| format!("{from} imports {to}")).collect();
        }
    }
}

/// The top-level modules that a line names after `root`.
fn imports<'a>(line: &'a str, root: &'static str) -> Vec<&'a str> {
    line.match_indices(root)
        .map(|(at, root)| &line[at + root.len()..])
        .flat_map(|path| {
            let group = path.strip_prefix('{').map(|rest| rest.split('}').next().unwrap_or(rest));
            let names = group.map_or_else(|| vec![path], |group| group.split(',').collect());
            names.into_iter().map(|name| name.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap())
        })
        .filter(|name| !name.is_empty())
        .collect()
}

/// Whether an import outside any inline module leaves the top-level module by `super`.
fn climbs_out(line: &str, depth: usize) -> bool {
    let path = ["use ", "pub use ", "pub(crate) use "].iter().find_map(|start| line.strip_prefix(start));
    path.is_some_and(|path| path.matches("super::").count() >= depth)
}

fn sources(below: &Path, root: &Path, found: &mut Vec<Source>) {
    for entry in std::fs::read_dir(below).expect("src is there") {
        let path = entry.expect("src can be read").path();
        if path.is_dir() {
            sources(&path, root, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source file is text");
            found.push(Source { path: path.strip_prefix(root).expect("below its root").to_owned(), text });
        }
    }
}

fn house() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &root, &mut found);
    let modules: BTreeSet<_> = found.iter().map(Source::module).collect();
    let known: BTreeSet<_> = IMPORTS.iter().map(|(name, _)| *name).collect();
    assert_eq!(modules, known, "the table names every module there is, and no other");
    assert!(found.len() >= 30, "only {} files were seen", found.len());
    found
}

fn source(path: &str, text: &str) -> Source {
    Source { path: path.into(), text: text.to_owned() }
}

#[test]
fn modules_import_only_lower_layers() {
    let house = house();
    let seen: usize =
        house.iter().flat_map(|file| file.lines().map(|(_, line)| imports(line, file.root()).len())).sum();
    assert!(seen >= 50, "only {seen} imports were seen");
    let offences: Vec<_> = house.iter().flat_map(Source::forbidden_imports).collect();
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn the_table_has_no_unused_and_no_upward_import() {
    let house = house();
    for (row, (module, allowed)) in IMPORTS.iter().enumerate() {
        let files = || house.iter().filter(|file| file.module() == *module);
        for name in allowed.split_whitespace() {
            let used = files().any(|file| file.lines().any(|(_, line)| imports(line, file.root()).contains(&name)));
            assert!(used, "`{module}` does not import `{name}`");
            assert!(IMPORTS[row + 1..].iter().any(|(lower, _)| *lower == name), "`{name}` is above `{module}`");
        }
    }
}

#[test]
fn files_do_not_import_each_other_in_a_circle() {
    let circles = circles(&house());
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}

#[test]
fn pure_modules_use_no_runtime_clock_lock_log_or_metric() {
    let offences: Vec<_> = house().iter().flat_map(Source::impurities).collect();
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn violations_are_reported_with_file_and_line() {
    let upwards = source("relay/pump.rs", "//! x\nuse crate::session::Session;\nuse crate::proxy::Proxy;\n");
    assert_eq!(upwards.forbidden_imports(), ["src/relay/pump.rs:3: `relay` must not import `proxy`"]);
    let grouped = source("drain.rs", "use crate::{metrics, drain::Guard};");
    assert_eq!(grouped.forbidden_imports(), ["src/drain.rs:1: `drain` must not import `metrics`"]);
    let inline = source("websocket/frame.rs", "    let x = crate::streamlit::ack::PLAIN; // crate::proxy\n");
    assert_eq!(inline.forbidden_imports(), ["src/websocket/frame.rs:1: `websocket` must not import `streamlit`"]);
    let climbing = source("heartbeat/mod.rs", "use super::super::proxy;");
    assert_eq!(climbing.forbidden_imports(), ["src/heartbeat/mod.rs:1: name the top-level module with `crate::`"]);
    let climbing = source("heartbeat/mod.rs", "use super::proxy;");
    assert_eq!(climbing.forbidden_imports().len(), 1);
    let main = source("main.rs", "use heartbeat_sidecar::{cli, sidecar};");
    assert_eq!(main.forbidden_imports(), ["src/main.rs:1: `main` must not import `sidecar`"]);
    let stranger = source("helpers.rs", "");
    assert_eq!(stranger.forbidden_imports(), ["src/helpers.rs:1: no layer is known for `helpers`"]);
    let impure = source("tap/mod.rs", "use std::time::Instant;\nlet now = Instant::now();\nmod tests {\nMutex\n");
    assert_eq!(impure.impurities(), ["src/tap/mod.rs:2: a pure module must not know `Instant::now`"]);
    let circle = [
        source("relay/mod.rs", "mod pump;\nuse self::pump::Pump;\nuse super::tls::{A,\n B};\nstruct State;"),
        source("relay/pump.rs", "use super::State;\nmod tests {\nuse super::valve::Valve;\n}"),
        source("relay/valve.rs", "use std::io;\nuse super::pump::Pump;"),
    ];
    assert_eq!(circles(&circle), ["relay imports relay::pump", "relay::pump imports relay"]);
    let inline =
        [source("relay.rs", "mod pump;\nfn run() { pump::run() }"), source("relay/pump.rs", "use super::run;")];
    assert_eq!(circles(&inline).len(), 2);
    let re_export = [source("relay.rs", "mod pump;\npub use self::pump::P;"), source("relay/pump.rs", "use super::S;")];
    assert!(circles(&re_export).is_empty());
}
