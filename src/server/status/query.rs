//! Selects and sorts the sessions that a status query requests.

use std::cmp::Ordering;
use std::time::Duration;

use crate::session::SessionView;

/// Sort keys of rows, by the names of [`SessionView`]'s fields.
pub(super) const COLUMNS: &[(&str, Column)] = &[
    ("id", |session| Some(Key::Number(session.id as f64))),
    ("upstream", |session| Some(Key::Text(&session.upstream))),
    ("version", |session| session.version.as_deref().map(Key::Text)),
    ("age_seconds", |session| Some(Key::Number(session.age_seconds))),
    ("last_heartbeat_seconds_ago", |session| session.last_heartbeat_seconds_ago.map(Key::Number)),
    ("last_ack_latency_seconds", |session| match session.withheld {
        true => Some(Key::Number(f64::INFINITY)),
        false => session.last_ack_latency_seconds.map(Key::Number),
    }),
    ("browser_rtt_seconds", |session| session.browser_rtt_seconds.map(Key::Number)),
    ("proof_rtt_seconds", |session| session.proof_rtt_seconds.map(Key::Number)),
    ("resumed", |session| match session.parked {
        true => Some(Key::Number(f64::INFINITY)),
        false => Some(Key::Number(session.resumed.into())),
    }),
    ("bytes_to_browser", |session| Some(Key::Number(session.bytes_to_browser as f64))),
    ("bytes_to_upstream", |session| Some(Key::Number(session.bytes_to_upstream as f64))),
    ("messages_to_browser", |session| Some(Key::Number(session.messages_to_browser as f64))),
    ("messages_to_upstream", |session| Some(Key::Number(session.messages_to_upstream as f64))),
];

/// Maximum number of sessions in a response.
pub(super) const MAX_ROWS: usize = 1000;
/// Default number of sessions in a response.
const DEFAULT_ROWS: usize = 100;

/// Query parameters, all optional: `sort` (the name of a number or text in `/sessions`), `order` (`asc`, `desc`),
/// `limit` (rows), `filter` (part of an id, an upstream or a version) and `since` (milliseconds: answers from then on).
pub(super) struct Query {
    column: Column,
    descending: bool,
    limit: usize,
    filter: String,
    pub(super) since: Duration,
}

/// Returns a session's sort key; `None` comes last in either order.
pub(super) type Column = for<'a> fn(&'a SessionView) -> Option<Key<'a>>;

/// One column's keys are all of one kind.
#[derive(PartialEq, PartialOrd)]
pub(super) enum Key<'a> {
    Number(f64),
    Text(&'a str),
}

impl Default for Query {
    fn default() -> Self {
        let [(_id, column), ..] = COLUMNS else { unreachable!("the table is not empty") };
        Self { column: *column, descending: false, limit: DEFAULT_ROWS, filter: String::new(), since: Duration::ZERO }
    }
}

impl Query {
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let number = || value.parse().map_err(|_no_number| format!("{name} must be a whole number"));
            match &*name {
                "sort" => {
                    let column = COLUMNS.iter().find(|(name, _column)| *name == value);
                    let names = || COLUMNS.iter().map(|(name, _column)| *name).collect::<Vec<_>>().join(", ");
                    parsed.column = column.ok_or_else(|| format!("sort must be one of {}", names()))?.1;
                }
                "order" if matches!(&*value, "asc" | "desc") => parsed.descending = value == "desc",
                "order" => return Err("order must be asc or desc".to_owned()),
                "limit" => parsed.limit = usize::try_from(number()?).unwrap_or(MAX_ROWS).min(MAX_ROWS),
                "since" => parsed.since = Duration::from_millis(number()?),
                "filter" => parsed.filter = value.trim().to_ascii_lowercase(),
                _ => return Err(format!("unknown parameter \"{name}\": use sort, order, limit, filter or since")),
            }
        }
        Ok(parsed)
    }

    fn matches(&self, session: &SessionView) -> bool {
        let has = |text: &str| text.to_ascii_lowercase().contains(&self.filter);
        self.filter.is_empty()
            || has(&session.upstream)
            || session.version.as_deref().is_some_and(has)
            || session.id.to_string().contains(&self.filter)
    }

    /// The first sessions that match the filter, and the number of all that do.
    pub(super) fn first<'s>(&self, sessions: &'s [SessionView]) -> (Vec<&'s SessionView>, usize) {
        let mut rows: Vec<_> = sessions.iter().filter(|session| self.matches(session)).collect();
        let matching = rows.len();
        if matching > self.limit {
            // Only the rows that are shown need an order among themselves.
            rows.select_nth_unstable_by(self.limit, |one, other| self.compare(one, other));
            rows.truncate(self.limit);
        }
        rows.sort_unstable_by(|one, other| self.compare(one, other));
        (rows, matching)
    }

    pub(super) fn compare(&self, one: &SessionView, other: &SessionView) -> Ordering {
        let order = match ((self.column)(one), (self.column)(other)) {
            (Some(one), Some(other)) => {
                // Neither is NaN, and both are of one kind.
                let order = one.partial_cmp(&other).unwrap_or(Ordering::Equal);
                if self.descending { order.reverse() } else { order }
            }
            (one, other) => one.is_none().cmp(&other.is_none()),
        };
        order.then(one.id.cmp(&other.id))
    }
}
