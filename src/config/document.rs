//! Parses the TOML file into known settings with their lines, and reports every mistake.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::setting::{Setting, nearest};
use super::settings::SETTINGS;
use super::values::TomlType;

/// A larger file is rejected before it is parsed.
pub(super) const MAX_BYTES: u64 = 1024 * 1024;

/// A setting in the file.
#[derive(Clone)]
pub(super) struct Entry {
    /// The setting.
    pub(super) setting: &'static Setting,
    /// Its value, not validated yet.
    pub(super) text: String,
    /// The line of its key, from 1.
    pub(super) line: usize,
}

/// An array of tables that a file may have, whose values are all text.
pub(super) struct TableArray {
    /// Its key: `route` for `[[route]]`.
    pub(super) key: &'static str,
    /// The keys that a table of it may have, those of inner tables with a dot.
    pub(super) fields: &'static [&'static str],
}

/// One table of an array.
#[derive(Clone)]
pub(super) struct Table {
    /// The array's key.
    pub(super) array: &'static str,
    /// The line of its header, from 1.
    pub(super) line: usize,
    /// Its fields, each once.
    pub(super) fields: Vec<Field>,
}

/// A value in a table of an array.
#[derive(Clone)]
pub(super) struct Field {
    /// One of the array's fields.
    pub(super) key: &'static str,
    /// Its value, not validated yet.
    pub(super) text: String,
    /// The line of its key, from 1.
    pub(super) line: usize,
}

/// An error in the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LineError {
    /// Its line, from 1.
    pub(super) line: usize,
    /// The key, if any, and what is wrong.
    pub(super) reason: String,
}

/// The content of a file; no entries if its syntax is wrong.
#[derive(Default)]
pub(super) struct Document {
    /// The settings, each once.
    pub(super) entries: Vec<Entry>,
    /// The tables of arrays, in their order.
    pub(super) tables: Vec<Table>,
    /// The errors, in any order.
    pub(super) errors: Vec<LineError>,
}

/// Reads and parses a file, which may have these arrays.
///
/// # Errors
/// The file cannot be read (such as a directory), or is larger than 1 MiB.
pub(super) fn read(path: &Path, arrays: &'static [TableArray]) -> io::Result<Document> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    Ok(Document::parse(&bytes, arrays))
}

/// A document being parsed, with the offsets of its line ends.
struct Reader {
    arrays: &'static [TableArray],
    newlines: Vec<usize>,
    document: Document,
}

impl Document {
    /// Parses the bytes of a file. Never fails: the document contains the errors.
    pub(super) fn parse(bytes: &[u8], arrays: &'static [TableArray]) -> Self {
        let newlines = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at).collect();
        let mut reader = Reader { arrays, newlines, document: Self::default() };
        match str::from_utf8(bytes) {
            Ok(source) => reader.parse(source),
            Err(error) => reader.error(error.valid_up_to(), "not valid UTF-8".to_owned()),
        }
        reader.document
    }
}

impl Reader {
    fn parse(&mut self, source: &str) {
        let (root, errors) = DeTable::parse_recoverable(source);
        if errors.is_empty() {
            return self.walk("", root.get_ref());
        }
        for error in errors {
            let span = error.span().unwrap_or_default();
            let reason = match error.message() {
                // The parser marks the second key without naming it; the source has the name.
                "duplicate key" => format!("{}: duplicate key", source.get(span.clone()).unwrap_or_default()),
                other => format!("TOML syntax: {other} (column {})", column(source, span.start)),
            };
            self.error(span.start, reason);
        }
    }

    /// Reads the keys of one table; the root's name is empty.
    fn walk(&mut self, table: &str, content: &DeTable<'_>) {
        for (name, value) in content {
            let key = if table.is_empty() { bare(name) } else { format!("{table}.{}", bare(name)) };
            let (at, name) = (name.span().start, name.get_ref().as_ref());
            if let Some(array) = self.arrays.iter().find(|array| array.key == key) {
                self.array(array, at, value.get_ref());
                continue;
            }
            let setting = SETTINGS.iter().find(|setting| setting.table() == table && setting.name() == name);
            let is_table = table.is_empty() && tables().any(|known| known == name);
            match (setting, value.get_ref()) {
                (Some(setting), value) => match written(setting.toml, value) {
                    Ok(text) => self.entry(at, setting, text),
                    Err(expected) => {
                        let expected = expected.replace("VALUE", &setting.default_text());
                        self.error(at, format!("{key}: expected {expected}, found {}", kind(value)));
                    }
                },
                (None, DeValue::Table(inner)) if is_table => self.walk(name, inner),
                (None, other) if is_table => {
                    self.error(at, format!("{key}: expected a table, [{key}], found {}", kind(other)));
                }
                (None, value) if table.is_empty() && holds_tables(value) => {
                    self.error(at, unknown_table(&key, self.arrays))
                }
                (None, _) => self.error(at, unknown_key(table, &key, self.arrays)),
            }
        }
    }

    /// Reads the tables of an array.
    fn array(&mut self, array: &'static TableArray, at: usize, value: &DeValue<'_>) {
        let expected = |value| format!("{0}: expected an array of tables, [[{0}]], found {1}", array.key, kind(value));
        let DeValue::Array(tables) = value else { return self.error(at, expected(value)) };
        for table in tables.iter() {
            match table.get_ref() {
                DeValue::Table(content) => {
                    let mut fields = Vec::new();
                    self.fields(array, "", content, &mut fields);
                    let line = self.line(table.span().start);
                    self.document.tables.push(Table { array: array.key, line, fields });
                }
                other => self.error(table.span().start, expected(other)),
            }
        }
    }

    /// Reads the keys of one table of an array; `inner` is the table within, with its dot.
    fn fields(&mut self, array: &'static TableArray, inner: &str, content: &DeTable<'_>, fields: &mut Vec<Field>) {
        for (name, value) in content {
            let (at, key) = (name.span().start, format!("{inner}{}", bare(name)));
            let known = array.fields.iter().find(|field| **field == key);
            let is_table = inner.is_empty() && array.fields.iter().any(|field| field.starts_with(&format!("{key}.")));
            match (known, value.get_ref()) {
                (Some(field), value) => match written(TomlType::String, value) {
                    Ok(text) => fields.push(Field { key: field, text, line: self.line(at) }),
                    Err(_expected) => {
                        let (array, kind) = (array.key, kind(value));
                        self.error(at, format!("{array}.{key}: expected a string, found {kind}"));
                    }
                },
                (None, DeValue::Table(content)) if is_table => self.fields(array, &format!("{key}."), content, fields),
                (None, _) => {
                    let known = nearest(&key, array.fields.iter().copied());
                    let hint = known.map_or_else(
                        || format!("valid keys: {}", array.fields.join(", ")),
                        |known| format!("did you mean {}.{known}?", array.key),
                    );
                    self.error(at, format!("{}.{key}: unknown key; {hint}", array.key));
                }
            }
        }
    }

    fn entry(&mut self, at: usize, setting: &'static Setting, text: String) {
        let line = self.line(at);
        self.document.entries.push(Entry { setting, text, line });
    }

    fn error(&mut self, at: usize, reason: String) {
        let (line, reason) = (self.line(at), one_line(&reason));
        self.document.errors.push(LineError { line, reason });
    }

    /// The line, from 1, of the byte at this offset.
    fn line(&self, at: usize) -> usize {
        self.newlines.partition_point(|newline| *newline < at) + 1
    }
}

/// The column, from 1, of the byte at this offset.
fn column(source: &str, at: usize) -> usize {
    let before = source.get(..at).unwrap_or(source);
    before.rsplit('\n').next().unwrap_or_default().chars().count() + 1
}

/// The text of a value, if it has this type; else what was expected.
fn written(toml: TomlType, value: &DeValue<'_>) -> Result<String, &'static str> {
    match (toml, value) {
        (TomlType::String, DeValue::String(text)) => Ok(text.to_string()),
        (TomlType::Boolean, DeValue::Boolean(value)) => Ok(value.to_string()),
        // In decimal digits, whatever its base.
        (TomlType::Integer, DeValue::Integer(number)) => Ok(i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| number.to_string(), |number| number.to_string())),
        (TomlType::String, _) => Err("a string such as \"VALUE\""),
        (TomlType::Boolean, _) => Err("true or false"),
        (TomlType::Integer, _) => Err("a number such as VALUE"),
    }
}

/// Whether this was likely meant as one or more tables.
fn holds_tables(value: &DeValue<'_>) -> bool {
    match value {
        DeValue::Table(_) => true,
        DeValue::Array(values) => values.iter().any(|value| value.get_ref().is_table()),
        _ => false,
    }
}

/// Escapes control characters: the parser quotes invalid input, and an error must be one line.
fn one_line(text: &str) -> String {
    let escaped = |char: char| char.is_control().then(|| char.escape_default().to_string());
    text.chars().map(|char| escaped(char).unwrap_or_else(|| char.to_string())).collect()
}

/// The message for an unknown table.
fn unknown_table(key: &str, arrays: &'static [TableArray]) -> String {
    let known = || tables().chain(top_level(arrays));
    match nearest(key, known()) {
        Some(known) => format!("{key}: unknown table; did you mean {}?", header(known, arrays)),
        None => format!("{key}: unknown table; valid tables: {}", known().collect::<Vec<_>>().join(", ")),
    }
}

/// The header of a table.
fn header(table: &str, arrays: &[TableArray]) -> String {
    if arrays.iter().any(|array| array.key == table) { format!("[[{table}]]") } else { format!("[{table}]") }
}

/// The message for an unknown key in `table`.
fn unknown_key(table: &str, key: &str, arrays: &'static [TableArray]) -> String {
    match nearest(key, SETTINGS.iter().map(|setting| setting.key)) {
        Some(known) if !table.is_empty() && !known.contains('.') => {
            format!("{key}: unknown key; did you mean {known}, above [{table}]?")
        }
        Some(known) => format!("{key}: unknown key; did you mean {known}?"),
        None => {
            let here = SETTINGS.iter().filter(|setting| setting.table() == table).map(|setting| setting.key.to_owned());
            let below = tables().chain(top_level(arrays)).filter(|_| table.is_empty());
            let below = below.map(|table| header(table, arrays));
            format!("{key}: unknown key; valid keys: {}", here.chain(below).collect::<Vec<_>>().join(", "))
        }
    }
}

/// The names of the tables, each once.
fn tables() -> impl Iterator<Item = &'static str> {
    let mut last = "";
    SETTINGS
        .iter()
        .map(Setting::table)
        .filter(move |table| !table.is_empty() && std::mem::replace(&mut last, table) != *table)
}

/// The keys of the top-level arrays.
fn top_level(arrays: &'static [TableArray]) -> impl Iterator<Item = &'static str> {
    arrays.iter().map(|array| array.key).filter(|key| !key.contains('.'))
}

/// A key for messages: bare if TOML allows it, else quoted and escaped.
fn bare(name: &Spanned<toml::de::DeString<'_>>) -> String {
    let name = name.get_ref();
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if !name.is_empty() && name.bytes().all(is_bare) { name.to_string() } else { format!("{name:?}") }
}

/// The TOML type of a value, with its article.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
