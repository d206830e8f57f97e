//! What people read.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::desk::{Notice, What};
use crate::time::rfc3339;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Warning,
    Critical,
}

impl Severity {
    /// As events and payloads have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// The way back. What is unknown counts as critical.
    #[must_use]
    pub fn of(text: &str) -> Self {
        if text == "warning" { Self::Warning } else { Self::Critical }
    }
}

/// Where a kind of alert is explained.
pub fn runbook(kind: &str) -> String {
    format!("docs/operations.md#{kind}")
}

impl Notice {
    /// One line.
    pub(super) fn title(&self) -> String {
        let count = self.incidents.len();
        let what = match self.what {
            What::Raised => "",
            What::Escalated => "STILL OPEN AND NOT ACKNOWLEDGED: ",
            What::Reminder => "still open: ",
            What::Resolved => "resolved: ",
        };
        match self.incidents.as_slice() {
            [only] => format!("{what}{}", only.summary),
            _ => format!("{what}{count} x {}", self.kind),
        }
    }

    /// Title, one line for each incident, and where to read on.
    pub(super) fn text(&self) -> String {
        let mut text = format!("[{}] {}", self.severity.as_str(), self.title());
        if self.incidents.len() > 1 {
            for line in &self.incidents {
                let _ = write!(text, "\n- {}", line.summary);
            }
        }
        if self.suppressed > 0 {
            let _ = write!(text, "\n({} more since the last message were not told)", self.suppressed);
        }
        let _ = write!(text, "\nsince {}, {}", rfc3339(self.since_us), runbook(&self.kind));
        text
    }

    /// All of it, for machines.
    pub(super) fn json(&self) -> Value {
        let incidents: Vec<Value> = self
            .incidents
            .iter()
            .map(|i| json!({ "incident": i.incident, "summary": i.summary, "since": rfc3339(i.since_us) }))
            .collect();
        json!({
            "type": "critical_alert", "alert_type": self.kind, "context": self.title(), "timestamp": rfc3339(self.at_us),
            "severity": self.severity.as_str(), "what": self.what.as_str(), "notice": self.id,
            "incident": self.incidents.first().map(|i| i.incident.clone()), "incidents": incidents,
            "suppressed": self.suppressed, "runbook": runbook(&self.kind),
        })
    }
}
