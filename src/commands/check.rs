//! `check`: what the sidecar would run with, as a file that says where each value came from; or what is wrong with it.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::config::{Effective, Loaded, Sources, load};

/// Prints the effective configuration on stdout and warnings or errors on stderr; the exit code is 1 where there are
/// errors, and where the output cannot be written.
pub fn check(sources: &Sources) -> ExitCode {
    match report(sources, &mut io::stdout().lock(), &mut io::stderr().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) | Err(_) => ExitCode::FAILURE,
    }
}

/// Says whether the configuration is valid.
fn report(sources: &Sources, out: &mut impl Write, err: &mut impl Write) -> io::Result<bool> {
    match load(sources) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                writeln!(err, "warning: {warning}")?;
            }
            out.write_all(file(&loaded).as_bytes())?;
            out.flush()?;
            Ok(true)
        }
        Err(problems) => {
            for problem in &problems.0 {
                writeln!(err, "error: {problem}")?;
            }
            Ok(false)
        }
    }
}

/// The configuration as a TOML file in aligned columns, with the origins as comments.
fn file(loaded: &Loaded) -> String {
    let lines: Vec<_> = loaded.settings.iter().map(Line::new).collect();
    let width = |of: fn(&Line) -> &String| lines.iter().map(|line| of(line).chars().count()).max().unwrap_or(0);
    let (names, values) = (width(|line| &line.name), width(|line| &line.value));
    let (mut text, mut table) = (String::new(), "");
    for line in &lines {
        if line.table != table {
            table = line.table;
            text += &format!("\n[{table}]\n");
        }
        text += &format!("{:names$} = {:values$}  # {}\n", line.name, line.value, line.comment);
    }
    text
}

struct Line {
    table: &'static str,
    name: String,
    value: String,
    comment: String,
}

impl Line {
    fn new(Effective { key, value, origin }: &Effective) -> Self {
        let (table, name) = key.split_once('.').unwrap_or(("", key));
        // A file's name may hold what a TOML comment may not.
        let comment = origin.to_string().replace(char::is_control, "?");
        Self { table, name: name.to_owned(), value: toml::Value::from(value.as_str()).to_string(), comment }
    }
}
