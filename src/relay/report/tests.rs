//! The log line of a session.

use std::io::{Read as _, Seek as _};

use super::*;
use crate::metrics::Metrics;
use crate::session::{SessionInfo, Sessions};

/// The line that a session's end logs.
fn logged(report: Report) -> serde_json::Value {
    let mut file = tempfile::tempfile().unwrap();
    let writer = Arc::new(file.try_clone().unwrap());
    let log = tracing_subscriber::fmt().json().flatten_event(true).with_writer(writer).finish();
    tracing::subscriber::with_default(log, || drop(report));
    let mut line = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_line_of_a_session_counts_its_resumptions_and_parked_time() {
    let timeout = Duration::from_secs(1);
    let timeouts = Timeouts { dead_peer: timeout, write_stall: timeout, takeover: timeout };
    let state = Arc::new(UpstreamState::new(Metrics::new().upstream("app"), timeouts));
    let owner = Owner::new(None);
    let session = Sessions::new().open(SessionInfo { upstream: "app".into(), tapped: true, stop: owner.stop() });
    let report = Report::new(state, session, owner, None);
    for seconds in [2, 3] {
        report.session.set_parked(true);
        tokio::time::advance(Duration::from_secs(seconds)).await;
        report.session.set_parked(false);
        report.session.resumed();
    }
    let line = logged(report);
    assert_eq!((&line["message"], &line["resumed"]), (&"session ended".into(), &2.into()));
    assert_eq!((&line["parked_seconds"], &line["duration_seconds"]), (&5.0.into(), &5.0.into()));
}
