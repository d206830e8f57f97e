//! Telling people. Whoever finds something wrong appends it to ALERTS ([`Alerter`]); the leading orchestrator follows ALERTS
//! ([`desk::Desk`] decides what is told, when and how often) and sends it through every configured channel
//! ([`delivery::Delivery`]), each on its own.

pub mod channel;
pub mod config;
pub mod delivery;
pub mod desk;
mod file;
mod message;

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arbees_fleet::Incidents;
use arbees_proto::{EventId, Payload, envelope, v1};
use tokio::sync::mpsc;

use crate::bus::{Bus, contract};
use crate::log::{ALERTS, Log, ReadError};
use crate::retry::Policy;
use crate::time::{now_us, steady_us};

pub use arbees_fleet::incident_of;
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

/// Events that may wait to be written into ALERTS. What does not fit is dropped and said again, if it still is so.
const CAPACITY: usize = 1_000;

/// Raises and settles what one program finds wrong. What it says goes into ALERTS in its order, and waits while the log is away.
#[derive(Clone, Debug)]
pub struct Alerter {
    producer: v1::Producer,
    known: Arc<Mutex<Incidents>>,
    events: mpsc::Sender<v1::Event>,
}

impl Alerter {
    /// Raises as `producer`. `bus`: where to say what the log does not take. The second half writes for as long as it is polled.
    pub fn new(
        log: Log,
        bus: Option<Bus>,
        producer: v1::Producer,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (events, to_write) = mpsc::channel(CAPACITY);
        (Self { producer, known: Arc::default(), events }, write(log, bus, to_write))
    }

    /// The incidents that last, as ALERTS has them.
    pub fn know(&self, open: &BTreeSet<String>) {
        self.known().know(steady_us(), open);
    }

    /// Something is wrong with `subject`. Does nothing while the same incident lasts.
    pub fn raise(&self, kind: &str, subject: &str, severity: Severity, summary: String) {
        let incident = incident_of(kind, subject);
        if self.known().raise(steady_us(), &incident) {
            let severity = severity.as_str().to_owned();
            self.say(Payload::AlertRaised(v1::AlertRaised { kind: kind.to_owned(), incident, severity, summary }));
        }
    }

    /// It is well again. Does nothing when it was not raised.
    pub fn settle(&self, kind: &str, subject: &str) {
        let incident = incident_of(kind, subject);
        if self.known().settle(steady_us(), &incident) {
            self.say(Payload::AlertResolved(v1::AlertResolved { kind: kind.to_owned(), incident }));
        }
    }

    fn known(&self) -> MutexGuard<'_, Incidents> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes `payload` into ALERTS; the event that it is.
    pub fn say(&self, payload: Payload) -> v1::Event {
        match &payload {
            Payload::AlertRaised(a) => {
                tracing::error!(kind = a.kind, severity = a.severity, "ALERT {}", a.summary);
            }
            Payload::AlertResolved(a) => tracing::info!(kind = a.kind, incident = a.incident, "incident is over"),
            _ => {}
        }
        let event = event(&self.producer, payload);
        if self.events.try_send(event.clone()).is_err() {
            tracing::warn!(CAPACITY, "too much waits to be written into ALERTS, dropped");
        }
        event
    }
}

/// Writes `events` into ALERTS in their order, each for as long as it takes. What the log does not take at once is said on
/// Redis.
async fn write(log: Log, bus: Option<Bus>, mut events: mpsc::Receiver<v1::Event>) {
    let mut waiting: VecDeque<v1::Event> = VecDeque::new();
    loop {
        let Some(event) = waiting.pop_front() else {
            match events.recv().await {
                Some(event) => waiting.push_back(event),
                None => return,
            }
            continue;
        };
        let mut delays = Policy::patient().delays();
        let mut is_first = waiting.is_empty();
        while let Err(error) = append(&log, &event).await {
            tracing::debug!(error, "an event of ALERTS is not in the log yet");
            if std::mem::take(&mut is_first) {
                say_on_redis(bus.as_ref(), &event).await;
            }
            let rest = tokio::time::sleep(delays.next_delay());
            tokio::pin!(rest);
            loop {
                tokio::select! {
                    () = &mut rest => break,
                    // Whoever comes meanwhile is said on Redis at once, too.
                    Some(next) = events.recv(), if waiting.len() < CAPACITY => {
                        say_on_redis(bus.as_ref(), &next).await;
                        waiting.push_back(next);
                    }
                }
            }
        }
    }
}

async fn say_on_redis(bus: Option<&Bus>, event: &v1::Event) {
    let (Some(bus), Some(Payload::AlertRaised(alert))) = (bus, &event.payload) else { return };
    tracing::warn!(kind = alert.kind, "alert is not in the log yet");
    // Both ways are closed: the line in the program's own log is all there is.
    let _ = bus
        .publish(contract::CRITICAL_ALERTS, &contract::critical_alert(alert, event.occurred_at_us).to_string())
        .await;
}

/// The incidents of `kinds` that last, as ALERTS has them now: for programs that follow no more of it than that.
///
/// # Errors
/// When they cannot be read whole.
pub async fn open_of(log: &Log, kinds: &[&str]) -> Result<BTreeSet<String>, ReadError> {
    let mut desk = Desk::default();
    for kind in kinds {
        let (first, end) = log.bounds(ALERTS).await?;
        let mut reader = log.read(ALERTS, vec![log.names().alert(kind)], first, end).await?;
        while let Some(stored) = reader.next().await? {
            if let Ok(event) = stored.event() {
                desk.apply(&event);
            }
        }
    }
    Ok(desk.open())
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

/// Raises `alert` for a program that is about to end: one try, and then on Redis.
pub async fn raise(log: &Log, bus: &Bus, producer: &v1::Producer, alert: v1::AlertRaised) {
    tracing::error!(kind = alert.kind, severity = alert.severity, "ALERT {}", alert.summary);
    let event = event(producer, Payload::AlertRaised(alert));
    if append(log, &event).await.is_err() {
        say_on_redis(Some(bus), &event).await;
    }
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
