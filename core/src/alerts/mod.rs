//! Telling people. Whoever finds something wrong appends it to ALERTS ([`Alerter`]); the leading orchestrator follows ALERTS
//! ([`desk::Desk`] decides what is told, when and how often) and sends it through every configured channel
//! ([`delivery::Delivery`]), each on its own.

pub mod channel;
pub mod config;
pub mod delivery;
pub mod desk;
mod file;
mod message;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use arbees_proto::{EventId, Payload, envelope, v1};
use tokio::sync::watch;

use crate::bus::{Bus, contract};
use crate::log::{ALERTS, Log};
use crate::time::now_us;

pub use config::AlertConfig;
pub use desk::{Desk, Notice, What};
pub use message::Severity;

/// All kinds of alerts.
pub const KINDS: [&str; 18] = [
    "all_shards_unhealthy",
    "no_healthy_shards",
    "all_shards_degraded",
    "redis_connectivity",
    "database_connectivity",
    "log_unavailable",
    "no_market_discovery",
    "external_dependency",
    "discovery_failing",
    "shard_lost",
    "duplicate_instance",
    "breaker_opened",
    "brake_engaged",
    "projector_lagging",
    "dead_letter",
    "leader_lost",
    "durability_not_guaranteed",
    "foreign_orchestrator",
];

/// The name of what belongs together: one incident is told of once while it lasts.
#[must_use]
pub fn incident_of(kind: &str, subject: &str) -> String {
    if subject.is_empty() { kind.to_owned() } else { format!("{kind}:{subject}") }
}

/// An event of ALERTS.
#[must_use]
pub fn event(producer: &v1::Producer, payload: Payload) -> v1::Event {
    let now = now_us();
    let unique = uuid::Uuid::new_v4();
    v1::Event {
        id: EventId::derive(now, &[producer.process.as_bytes(), unique.as_bytes()]).0.to_vec(),
        occurred_at_us: now,
        producer: Some(producer.clone()),
        schema_version: envelope::SCHEMA_VERSION,
        payload: Some(payload),
        ..v1::Event::default()
    }
}

/// The kind that an event of ALERTS is about.
fn kind_of(payload: &Payload) -> &str {
    match payload {
        Payload::AlertRaised(a) => &a.kind,
        Payload::AlertResolved(a) => &a.kind,
        Payload::AlertDelivered(a) => &a.kind,
        Payload::AlertDeliveryFailed(a) => &a.kind,
        Payload::AlertSuppressed(a) => &a.kind,
        Payload::AlertAcknowledged(a) => &a.kind,
        Payload::AlertSilenced(a) => &a.kind,
        _ => "unknown",
    }
}

/// Appends `event` to ALERTS.
///
/// # Errors
/// When the log does not take it; the text says why.
pub async fn append(log: &Log, event: &v1::Event) -> Result<(), String> {
    let Some(payload) = &event.payload else { return Ok(()) };
    let id = EventId::from_bytes(&event.id).map(|id| id.to_string()).unwrap_or_default();
    log.publish(log.names().alert(kind_of(payload)), event, &id).await.map(drop).map_err(|e| e.to_string())
}

/// Raises and settles what one program finds wrong.
#[derive(Clone, Debug)]
pub struct Alerter {
    log: Log,
    bus: Option<Bus>,
    producer: v1::Producer,
    /// Incidents that last, as the log has them.
    open: watch::Receiver<BTreeSet<String>>,
    /// Those that this program raised and that may not have come back over the log yet.
    raised: Arc<Mutex<BTreeSet<String>>>,
}

impl Alerter {
    /// Raises as `producer`. `open` tells which incidents last. `bus`: where to say what the log does not take.
    #[must_use]
    pub fn new(log: Log, bus: Option<Bus>, producer: v1::Producer, open: watch::Receiver<BTreeSet<String>>) -> Self {
        Self { log, bus, producer, open, raised: Arc::default() }
    }

    /// Something is wrong with `subject`. Does nothing while the same incident lasts.
    pub async fn raise(&self, kind: &str, subject: &str, severity: Severity, summary: String) {
        let incident = incident_of(kind, subject);
        let is_new = self.raised.lock().unwrap_or_else(PoisonError::into_inner).insert(incident.clone());
        if !is_new || self.open.borrow().contains(&incident) {
            return;
        }
        let severity = severity.as_str().to_owned();
        self.append(v1::AlertRaised { kind: kind.to_owned(), incident, severity, summary }).await;
    }

    /// It is well again. Does nothing when it was not raised.
    pub async fn settle(&self, kind: &str, subject: &str) {
        let incident = incident_of(kind, subject);
        let was_raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner).remove(&incident);
        if was_raised || self.open.borrow().contains(&incident) {
            self.resolve(v1::AlertResolved { kind: kind.to_owned(), incident }).await;
        }
    }

    /// Appends `alert`; says it on Redis when the log does not take it.
    pub async fn append(&self, alert: v1::AlertRaised) {
        tracing::error!(kind = alert.kind, severity = alert.severity, "ALERT {}", alert.summary);
        let event = event(&self.producer, Payload::AlertRaised(alert.clone()));
        if let Err(error) = append(&self.log, &event).await {
            tracing::warn!(error, kind = alert.kind, "alert is not in the log");
            if let Some(bus) = &self.bus {
                let payload = contract::critical_alert(&alert, event.occurred_at_us).to_string();
                // Both ways are closed: the line above is all there is.
                let _ = bus.publish(contract::CRITICAL_ALERTS, &payload).await;
            }
        }
    }

    /// Appends that an incident is over.
    pub async fn resolve(&self, resolved: v1::AlertResolved) {
        tracing::info!(kind = resolved.kind, incident = resolved.incident, "incident is over");
        if let Err(error) = append(&self.log, &event(&self.producer, Payload::AlertResolved(resolved))).await {
            tracing::warn!(error, "the end of an incident is not in the log");
        }
    }
}

/// The incidents of `kinds` that last, as ALERTS has them now: for programs that follow no more of it than that.
pub async fn open_of(log: &Log, kinds: &[&str]) -> BTreeSet<String> {
    let mut desk = Desk::default();
    for kind in kinds {
        let Ok((first, end)) = log.bounds(ALERTS).await else { continue };
        let Ok(mut reader) = log.read(ALERTS, vec![log.names().alert(kind)], first, end).await else { continue };
        while let Ok(Some(stored)) = reader.next().await {
            if let Ok(event) = stored.event() {
                desk.apply(&event);
            }
        }
    }
    desk.open()
}

/// The alert of a process that found another one with its name.
#[must_use]
pub fn duplicate_instance(instance: &str, why: &str) -> v1::AlertRaised {
    v1::AlertRaised {
        kind: "duplicate_instance".to_owned(),
        incident: incident_of("duplicate_instance", instance),
        severity: Severity::Critical.as_str().to_owned(),
        summary: why.to_owned(),
    }
}

/// Raises `alert` for a program that is about to end.
pub async fn raise(log: &Log, bus: &Bus, producer: &v1::Producer, alert: v1::AlertRaised) {
    let (_, open) = watch::channel(BTreeSet::new());
    Alerter::new(log.clone(), Some(bus.clone()), producer.clone(), open).append(alert).await;
}

#[cfg(test)]
mod tests {
    /// Every message names a place where its kind is explained.
    #[test]
    fn every_kind_has_its_place_in_the_operations_manual() {
        let manual = include_str!("../../../docs/operations.md");
        for kind in super::KINDS {
            assert!(manual.contains(&format!("\n### {kind}\n")), "{kind}");
        }
    }
}
