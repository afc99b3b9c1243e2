//! Random reloads that add, move and remove apps: which series exist, and their values.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

use super::*;
use crate::config::UpstreamAddress;
use crate::metrics::Detail;
use crate::relay::{Report, UpstreamState};
use crate::session::takeover::Owner;
use crate::session::{SessionInfo, Sessions};

/// With two addresses each, at most [`MAX_REMEMBERED`] apps.
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// The number of series of one app.
const SERIES: usize = 122;

/// An app's name and port.
type At = (&'static str, u16);

#[derive(Clone, Debug)]
enum Step {
    /// These apps are active from now on, each at one of two addresses.
    Reload(Vec<At>),
    /// Opens a session of an active app.
    Open(Index),
    /// One session ends.
    Close(Index),
    /// One session sees the version of its app.
    Learn(Index, bool),
    Wait(Duration),
}

/// The apps, their sessions, and the expected series.
struct Model {
    apps: Apps,
    metrics: Arc<Metrics>,
    registry: Sessions,
    now: Instant,
    active: BTreeMap<&'static str, u16>,
    sessions: Vec<(At, Report, Arc<UpstreamState>)>,
    /// Removed apps, and since when each has been unused.
    removed: BTreeMap<At, Option<Instant>>,
    /// Whether each active or remembered app is known to ack natively.
    native: BTreeMap<At, bool>,
    /// Each name's last active port, and its gauge's value.
    gauges: BTreeMap<&'static str, (u16, bool)>,
}

fn config(apps: &[At]) -> Config {
    let route = |(name, port): &At| Route {
        name: (*name).to_owned(),
        host: None,
        path: format!("/{name}").parse().expect("a path"),
        upstream: UpstreamAddress::Http { host: "127.0.0.1".to_owned(), port: *port },
        heartbeat: Config::default().heartbeat,
    };
    Config { routes: apps.iter().map(route).collect(), ..Config::default() }
}

fn step() -> impl Strategy<Value = Step> {
    let apps = (subsequence(&NAMES, 1..=NAMES.len()), prop::array::uniform5(1u16..=2));
    prop_oneof![
        4 => apps.prop_map(|(names, ports)| Step::Reload(names.into_iter().zip(ports).collect())),
        3 => any::<Index>().prop_map(Step::Open),
        2 => any::<Index>().prop_map(Step::Close),
        3 => any::<(Index, bool)>().prop_map(|(session, native)| Step::Learn(session, native)),
        3 => (1..900u64).prop_map(|seconds| Step::Wait(Duration::from_secs(seconds))),
    ]
}

impl Model {
    fn new() -> Self {
        let metrics = Metrics::with_detail(Detail::Lean);
        let mut model = Self {
            apps: Apps::new(metrics.clone()),
            metrics,
            registry: Sessions::new(),
            now: Instant::now(),
            active: BTreeMap::new(),
            sessions: Vec::new(),
            removed: BTreeMap::new(),
            native: BTreeMap::new(),
            gauges: BTreeMap::new(),
        };
        model.reload(&[("a", 1)]);
        model
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Reload(apps) => self.reload(apps),
            Step::Open(app) => {
                let upstream = self.apps.upstreams[app.index(self.apps.upstreams.len())].clone();
                let (&name, &port) = self.active.get_key_value(&*upstream.name()).expect("it is active");
                let owner = Owner::new(None);
                let info = SessionInfo { upstream: upstream.name(), tapped: true, stop: owner.stop() };
                let session = self.registry.open(info);
                let state = upstream.state().clone();
                self.sessions.push(((name, port), Report::new(state.clone(), session, owner, None), state));
            }
            Step::Close(_) | Step::Learn(..) if self.sessions.is_empty() => {}
            Step::Close(session) => {
                self.sessions.swap_remove(session.index(self.sessions.len()));
            }
            Step::Learn(session, native) => self.learn(session.index(self.sessions.len()), *native),
            Step::Wait(time) => self.now += *time,
        }
    }

    fn reload(&mut self, apps: &[At]) {
        self.apps.routes(&config(apps)).expect("no TLS");
        let active: BTreeMap<_, _> = apps.iter().copied().collect();
        for at in std::mem::replace(&mut self.active, active) {
            self.removed.insert(at, None);
        }
        for at in apps {
            self.removed.remove(at);
            let native = *self.native.entry(*at).or_insert(false);
            self.gauges.insert(at.0, (at.1, native));
        }
    }

    fn learn(&mut self, session: usize, native: bool) {
        let (at, _report, state) = &self.sessions[session];
        state.learn(|learning| learning.on_version(if native { "1.55.0" } else { "1.54.0" }));
        self.native.insert(*at, native);
        if let Some((port, gauges)) = self.gauges.get_mut(at.0)
            && *port == at.1
        {
            *gauges = native;
        }
    }

    fn sessions_of(&self, is: impl Fn(&At) -> bool) -> usize {
        self.sessions.iter().filter(|(at, ..)| is(at)).count()
    }

    fn forget(&mut self) {
        self.apps.forget_unused(self.now);
        let used: BTreeSet<_> = self.sessions.iter().map(|(at, ..)| *at).collect();
        for (at, since) in &mut self.removed {
            *since = (!used.contains(at)).then(|| since.unwrap_or(self.now));
        }
        self.removed.retain(|_at, since| since.is_none_or(|since| self.now - since < Duration::from_secs(600)));
        self.native.retain(|at, _native| self.removed.contains_key(at) || self.active.get(at.0) == Some(&at.1));
    }

    /// Checks that remembered names have all their series, others none, and the gauges.
    fn check(&self) {
        let text = self.metrics.render();
        let remembered: BTreeSet<_> = self.active.keys().chain(self.removed.keys().map(|(name, _port)| name)).collect();
        for name in NAMES {
            let label = format!("upstream=\"{name}\"");
            let series = text.lines().filter(|line| line.contains(&label)).count();
            assert_eq!(series, if remembered.contains(&name) { SERIES } else { 0 }, "{name}: {remembered:?}");
            if remembered.contains(&name) {
                let has_line = |gauge: &str, value: usize| {
                    let line = format!("\nheartbeat_sidecar_{gauge}{{{label}}} {value}\n");
                    assert!(text.contains(&line), "no {line} in {text}");
                };
                has_line("sessions", self.sessions_of(|at| at.0 == name));
                has_line("upstream_acks_natively", self.gauges[name].1.into());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_app_has_its_series_while_it_is_active_or_has_sessions_and_ten_minutes_longer(
        steps in prop::collection::vec(step(), 1..16)
    ) {
        let mut model = Model::new();
        for step in steps {
            model.apply(&step);
            model.forget();
            model.check();
        }
    }
}

#[test]
fn reloads_with_ever_new_names_do_not_fill_the_scrape() {
    let mut model = Model::new();
    for number in 0..100 {
        let mut config = config(&[("a", 1)]);
        config.routes[0].name = format!("app-{number}");
        model.apps.routes(&config).expect("no TLS");
        model.now += Duration::from_secs(1);
        model.apps.forget_unused(model.now);
    }
    let text = model.metrics.render();
    let names: BTreeSet<_> =
        text.lines().filter_map(|line| line.split("upstream=\"").nth(1)?.split('"').next()).collect();
    assert_eq!(names.len(), 1 + MAX_REMEMBERED, "{names:?}");
    assert!(names.contains("app-99") && names.contains("app-98"), "{names:?}");
}
