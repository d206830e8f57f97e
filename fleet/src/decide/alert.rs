//! Telling people: once for each incident while it lasts.

use arbees_proto::v1;

use super::{Effect, Fleet};

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
        self.seen.alerts.remove(&incident_of(kind, subject));
    }
}

fn incident_of(kind: &str, subject: &str) -> String {
    if subject.is_empty() { kind.to_owned() } else { format!("{kind}:{subject}") }
}
