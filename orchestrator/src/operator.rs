//! Operators' requests, as JSON over NATS: checked for the token, then decided about by the leader.

use std::collections::BTreeSet;

use arbees_core::alerts::{self, KINDS};
use arbees_core::log::{Asked, Log};
use arbees_core::time::now_us;
use arbees_fleet::decide::operator::{Ask, Plan};
use arbees_proto::{Payload, v1};
use serde::{Deserialize, Serialize};

/// A request on the wire.
#[derive(Deserialize)]
struct Wire {
    token: String,
    operator: String,
    /// What is asked about alerts; without it the rest is an [`Ask`].
    alert: Option<AboutAlert>,
}

/// What a person says about alerts.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AboutAlert {
    Ack { incident: String, false_alarm: bool },
    Silence { kind: String, seconds: u32 },
}

/// What is asked for.
#[derive(Debug)]
pub enum Request {
    Fleet(Ask),
    Alert { operator: String, about: AboutAlert },
}

/// An answer on the wire: a plan, or why there is none.
#[derive(Debug, Serialize)]
pub struct Answer {
    #[serde(flatten)]
    pub plan: Option<Plan>,
    pub error: Option<String>,
    pub applied: bool,
}

impl Answer {
    /// Nothing was done, for this reason.
    pub fn refused(error: impl Into<String>) -> Self {
        Self { plan: None, error: Some(error.into()), applied: false }
    }

    /// It is done.
    pub const fn done() -> Self {
        Self { plan: None, error: None, applied: true }
    }
}

/// What is asked for, if whoever asks may.
pub fn read(asked: &Asked, token: Option<&str>) -> Result<Request, String> {
    let Some(token) = token else {
        return Err("operator verbs are off: OPERATOR_TOKEN is not set for the orchestrator".to_owned());
    };
    let unreadable = |e: serde_json::Error| format!("the request cannot be read: {e}");
    let wire: Wire = serde_json::from_slice(&asked.payload).map_err(unreadable)?;
    // Hashes are compared, so that the time it takes tells nothing of the token.
    if blake3::hash(wire.token.as_bytes()) != blake3::hash(token.as_bytes()) {
        return Err("the token is not the orchestrator's OPERATOR_TOKEN".to_owned());
    }
    if wire.operator.trim().is_empty() {
        return Err("a request needs the operator's name".to_owned());
    }
    match wire.alert {
        Some(about) => Ok(Request::Alert { operator: wire.operator, about }),
        None => serde_json::from_slice(&asked.payload).map(Request::Fleet).map_err(unreadable),
    }
}

/// Writes down what a person says about alerts, of which those in `open` last.
pub async fn about_alert(
    log: &Log,
    me: &v1::Producer,
    open: &BTreeSet<String>,
    operator: String,
    about: AboutAlert,
) -> Answer {
    let kind_of = |incident: &str| incident.split(':').next().unwrap_or_default().to_owned();
    let payload = match about {
        AboutAlert::Ack { incident, .. } if !open.contains(&incident) => {
            let names: Vec<&str> = open.iter().map(String::as_str).collect();
            let there =
                if names.is_empty() { "none lasts".to_owned() } else { format!("there are {}", names.join(" ")) };
            return Answer::refused(format!("no incident {incident} lasts: {there}"));
        }
        AboutAlert::Ack { incident, false_alarm } => {
            let kind = kind_of(&incident);
            Payload::AlertAcknowledged(v1::AlertAcknowledged { kind, incident, operator, false_alarm })
        }
        AboutAlert::Silence { kind, seconds } => {
            if kind != "all" && !KINDS.contains(&kind.as_str()) {
                return Answer::refused(format!("{kind} is no kind of alert: allowed are all {}", KINDS.join(" ")));
            }
            let until_us = now_us() + i64::from(seconds) * 1_000_000;
            Payload::AlertSilenced(v1::AlertSilenced { kind, until_us, operator })
        }
    };
    match alerts::append(log, &alerts::event(me, payload)).await {
        Ok(()) => Answer::done(),
        Err(error) => Answer::refused(format!("the log does not take it: {error}")),
    }
}
