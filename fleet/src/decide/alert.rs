//! Telling people: once for each incident while it lasts.

use arbees_proto::{ServiceKind, v1};

use super::{Effect, Fleet};
use crate::state::{Service, ServiceKey, Status};

/// How bad it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Severity {
    Warning,
    Critical,
}

impl Fleet {
    pub(super) fn raise(&mut self, kind: &str, subject: &str, severity: Severity, summary: String) {
        let incident = incident_of(kind, subject);
        if !self.seen.alerts.insert(incident.clone()) {
            return;
        }
        let severity = match severity {
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        };
        let alert = v1::AlertRaised { kind: kind.to_owned(), incident, severity: severity.to_owned(), summary };
        self.turn.effects.push(Effect::Alert(alert));
    }

    /// The incident is over: the next one is told again.
    pub(super) fn settle(&mut self, kind: &str, subject: &str) {
        let incident = incident_of(kind, subject);
        if self.seen.alerts.remove(&incident) {
            self.turn.effects.push(Effect::Resolve(v1::AlertResolved { kind: kind.to_owned(), incident }));
        }
    }

    /// The incidents that last, as the leader before left them.
    pub fn know_open(&mut self, open: std::collections::BTreeSet<String>) {
        self.seen.alerts = open;
    }

    /// What was said of services that are forgotten or retired is over; and who could tell of the fleet as a whole.
    pub(super) fn look_at_alerts(&mut self) {
        let shards = |status: &dyn Fn(Status) -> bool| {
            let is_it = |(key, s): &(&ServiceKey, &Service)| key.kind == ServiceKind::Shard && status(s.status);
            self.state.services.iter().filter(is_it).count()
        };
        let known = shards(&|s| s != Status::Retired);
        let working = shards(&|s| !s.is_gone() && s != Status::Unhealthy);
        let lost: Vec<String> =
            self.seen.alerts.iter().filter_map(|i| i.strip_prefix("shard_lost:").map(ToOwned::to_owned)).collect();
        if known > 0 && working == 0 {
            let summary = format!("none of {known} shards works");
            self.raise("all_shards_unhealthy", "", Severity::Critical, summary);
        } else {
            self.settle("all_shards_unhealthy", "");
        }
        for name in lost {
            let is_lost = |(key, s): (&ServiceKey, &Service)| key.instance.as_str() == name && s.status == Status::Dead;
            if !self.state.services.iter().any(is_lost) {
                self.settle("shard_lost", &name);
            }
        }
        let discovery = self.state.services.iter().filter(|(key, _)| key.kind == ServiceKind::Discovery);
        let (gone, all) = discovery.fold((0, 0), |(gone, all), (_, s)| (gone + u32::from(s.status.is_gone()), all + 1));
        if all > 0 && gone == all {
            let summary = "no market discovery beats: games get no markets".to_owned();
            self.raise("no_market_discovery", "", Severity::Warning, summary);
        } else {
            self.settle("no_market_discovery", "");
        }
    }
}

fn incident_of(kind: &str, subject: &str) -> String {
    if subject.is_empty() { kind.to_owned() } else { format!("{kind}:{subject}") }
}
