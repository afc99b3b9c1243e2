//! How the last sessions ended: which side ended each, and why.
//!
//! Invariant: as in [`super`], nothing that identifies a user.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::{Serialize, Serializer};

use crate::metrics::{CloseCode, Initiator, LabelValue, Loss};

/// Number of ended sessions kept.
pub const KEPT: usize = 50;

/// Published data of an ended session.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndedView {
    /// When, counted from the sidecar's start.
    pub at_seconds: f64,
    /// Its id in `/sessions`.
    pub id: u64,
    /// The configured name of the upstream.
    pub upstream: String,
    /// Streamlit's version, if it was seen.
    pub version: Option<String>,
    /// How long it lasted.
    pub age_seconds: f64,
    /// Which side ended it.
    #[serde(serialize_with = "name")]
    pub initiator: Initiator,
    /// The close code.
    #[serde(serialize_with = "name")]
    pub code: CloseCode,
    /// Why the sidecar gave a peer up, if it did.
    #[serde(serialize_with = "name_if_any")]
    pub gave_up: Option<Loss>,
}

/// The last ended sessions.
#[derive(Debug, Default)]
pub(super) struct EndedSessions(Mutex<VecDeque<EndedView>>);

impl EndedSessions {
    pub(super) fn record(&self, end: EndedView) {
        // No panic can leave it half changed.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.truncate(KEPT - 1);
        kept.push_front(end);
    }

    /// Latest first.
    pub(super) fn view(&self) -> Vec<EndedView> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

fn name<L: LabelValue, S: Serializer>(label: &L, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(label.name())
}

fn name_if_any<L: LabelValue, S: Serializer>(label: &Option<L>, serializer: S) -> Result<S::Ok, S::Error> {
    label.map(L::name).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{SessionInfo, Sessions, Stop};
    use super::*;

    fn end(sessions: &Sessions, code: u16) {
        let session = sessions.open(SessionInfo { upstream: "app".into(), tapped: true, stop: Stop::default() });
        session.ended(Initiator::Upstream, CloseCode::from(Some(code)), None);
    }

    #[test]
    fn only_the_last_ended_sessions_are_kept() {
        let sessions = Sessions::new();
        for _ in 0..3 * KEPT {
            end(&sessions, 1000);
        }
        end(&sessions, 1012);
        let ended = sessions.ended();
        assert_eq!((ended.len(), ended[0].code, ended[1].code), (KEPT, CloseCode::ServiceRestart, CloseCode::Normal));
        let ids: Vec<_> = ended.iter().map(|end| end.id).collect();
        assert!(ids.iter().rev().is_sorted() && ids[0] == 3 * KEPT as u64 + 1, "{ids:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_ended_session_is_serialized_with_the_label_names_of_metrics() {
        let sessions = Sessions::new();
        tokio::time::advance(std::time::Duration::from_secs(2)).await;
        let session = sessions.open(SessionInfo { upstream: "app".into(), tapped: true, stop: Stop::default() });
        session.version("1.53.1");
        tokio::time::advance(std::time::Duration::from_secs(3)).await;
        session.ended(Initiator::Sidecar, CloseCode::Abnormal, Some(Loss::BrowserDead));
        let expected = json!([{
            "at_seconds": 5.0, "id": 1, "upstream": "app", "version": "1.53.1", "age_seconds": 3.0,
            "initiator": "sidecar", "code": "1006", "gave_up": "browser_dead",
        }]);
        assert_eq!(serde_json::to_value(sessions.ended()).unwrap(), expected);
    }
}
