//! Telling people: every alert is an event in ALERTS first, then a message on Redis.

use arbees_proto::{EventId, Payload, envelope, v1};

use crate::bus::{Bus, contract};
use crate::log::Log;
use crate::time::now_us;

/// The alert of a process that found another one with its name.
#[must_use]
pub fn duplicate_instance(instance: &str, why: &str) -> v1::AlertRaised {
    v1::AlertRaised {
        kind: "duplicate_instance".to_owned(),
        incident: format!("duplicate_instance:{instance}"),
        severity: "critical".to_owned(),
        summary: why.to_owned(),
    }
}

/// Raises `alert`: into the log, and on Redis whether or not the log took it.
pub async fn raise(log: &Log, bus: &Bus, producer: &v1::Producer, alert: v1::AlertRaised) {
    let now = now_us();
    tracing::error!(kind = alert.kind, severity = alert.severity, "ALERT {}", alert.summary);
    let id = EventId::derive(now, &[producer.process.as_bytes(), alert.incident.as_bytes()]);
    let event = v1::Event {
        id: id.0.to_vec(),
        occurred_at_us: now,
        producer: Some(producer.clone()),
        schema_version: envelope::SCHEMA_VERSION,
        payload: Some(Payload::AlertRaised(alert.clone())),
        ..v1::Event::default()
    };
    if let Err(error) = log.publish(log.names().alert(&alert.kind), &event, &id.to_string()).await {
        tracing::warn!(%error, kind = alert.kind, "alert is not in the log");
    }
    let payload = contract::critical_alert(&alert, now).to_string();
    if let Err(error) = bus.publish(contract::CRITICAL_ALERTS, &payload).await {
        tracing::warn!(%error, kind = alert.kind, "alert is not on Redis");
    }
}
