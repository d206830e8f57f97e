//! The orchestrator's own heartbeat on the log, with the head of what it has applied, and its word on Redis whether the log
//! is there: shards that cannot renew their leases hold them by it.

use std::time::Duration;

use arbees_core::bus::{Bus, contract};
use arbees_core::health::Health;
use arbees_core::log::Log;
use arbees_core::time::{now_us, rfc3339, steady_us};
use arbees_fleet::state::Head;
use arbees_proto::{EventId, Payload, ServiceKind, envelope, v1};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// How often it beats on the log: twice within the time after which its word changes.
const EVERY: Duration = Duration::from_millis(500);
/// How often it tells Redis whether the log is there.
const STATUS_EVERY: Duration = Duration::from_millis(500);
/// How often it looks whether what it told still holds: a change is told at once.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The log is there if a beat sent within this was acknowledged, and no append has been outstanding longer.
const FRESH_US: i64 = 1_000_000;

/// The part of health that says whether the log takes what is sent: one that can be read is not enough.
pub const TAKES: &str = "log takes events";

/// What the loop tells its heart.
#[derive(Clone, Debug)]
pub struct Pulse {
    pub head: Head,
    pub leads: bool,
    /// Since when an append has been outstanding, by the steady clock.
    pub appending_since_us: Option<i64>,
    /// Another orchestrator has led since this one did.
    pub another_leads: bool,
}

/// Who is beating.
#[derive(Clone, Debug)]
pub struct Heart {
    pub log: Log,
    pub bus: Bus,
    pub producer: v1::Producer,
    pub started_at_us: i64,
    pub pulse: watch::Receiver<Pulse>,
    /// The CONTROL sequence up to which all effects have gone out.
    pub effects_through: watch::Receiver<u64>,
    /// Whether the log is there, as it is told over Redis.
    pub log_ok: watch::Sender<bool>,
    /// How the things are that it stands on.
    pub health: Health,
}

/// Beats until canceled.
pub async fn run(heart: Heart) {
    let (acked, last_acked) = watch::channel(None);
    let (say, word) = watch::channel(String::new());
    let saying = say_status(heart.bus.clone(), word);
    let status = tell_status(heart.clone(), last_acked, say);
    tokio::join!(beat(heart, acked), status, saying);
}

async fn beat(heart: Heart, acked: watch::Sender<Option<i64>>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let subject = heart.log.names().heartbeat(ServiceKind::Orchestrator, &heart.producer.instance);
    loop {
        ticks.tick().await;
        let event = compose(&heart);
        let id = EventId::from_bytes(&event.id).map(|id| id.to_string()).unwrap_or_default();
        let sent_us = steady_us();
        match heart.log.publish(subject.clone(), &event, &id).await {
            Ok(_) => {
                acked.send_replace(Some(sent_us));
                heart.health.ok(TAKES);
            }
            Err(error) => {
                tracing::debug!(%error, "beat not acknowledged");
                heart.health.failed(TAKES, error.to_string());
            }
        }
    }
}

fn compose(heart: &Heart) -> v1::Event {
    let now = now_us();
    let pulse = heart.pulse.borrow().clone();
    let head = pulse.head;
    let service = v1::Service {
        kind: ServiceKind::Orchestrator.as_str().to_owned(),
        instance: heart.producer.instance.clone(),
        process: heart.producer.process.clone(),
        started_at_us: heart.started_at_us,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        on_log: true,
        ..v1::Service::default()
    };
    let beat = v1::Heartbeat {
        service: Some(service),
        status: "healthy".to_owned(),
        last_applied: head.sequence,
        head: Some(v1::LogHead { sequence: head.sequence, hash: head.hash.to_vec() }),
        effects_through: *heart.effects_through.borrow(),
        checks: heart.health.checks(),
        metrics: vec![v1::Metric { name: "leads".to_owned(), value: f64::from(u8::from(pulse.leads)) }],
        ..v1::Heartbeat::default()
    };
    v1::Event {
        id: EventId::derive(now, &[heart.producer.process.as_bytes(), &now.to_le_bytes()]).0.to_vec(),
        occurred_at_us: now,
        producer: Some(heart.producer.clone()),
        schema_version: envelope::SCHEMA_VERSION,
        payload: Some(Payload::Heartbeat(beat)),
        ..v1::Event::default()
    }
}

async fn tell_status(heart: Heart, acked: watch::Receiver<Option<i64>>, say: watch::Sender<String>) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: Option<(bool, tokio::time::Instant)> = None;
    loop {
        looks.tick().await;
        let pulse = heart.pulse.borrow().clone();
        let now = steady_us();
        let is_fresh = acked.borrow().is_some_and(|at| now - at < FRESH_US);
        let is_stuck = pulse.appending_since_us.is_some_and(|since| now - since > FRESH_US);
        let log_ok = heart.log.is_connected() && is_fresh && !is_stuck;
        heart.log_ok.send_if_modified(|was| std::mem::replace(was, log_ok) != log_ok);
        let is_due = told.is_none_or(|(was, at)| was != log_ok || at.elapsed() >= STATUS_EVERY);
        if !is_due {
            continue;
        }
        told = Some((log_ok, tokio::time::Instant::now()));
        let status = contract::LogStatus {
            instance: heart.producer.instance.clone(),
            term: pulse.head.term,
            log_ok,
            last_sequence: pulse.head.sequence,
            timestamp: rfc3339(now_us()),
        };
        let Ok(payload) = serde_json::to_string(&status) else { continue };
        say.send_replace(payload);
    }
}

/// Says the newest word over Redis, however long that takes: whether the log is there is looked at meanwhile.
async fn say_status(bus: Bus, mut word: watch::Receiver<String>) {
    while word.changed().await.is_ok() {
        let payload = word.borrow_and_update().clone();
        // Whether Redis is there is told by those who need it.
        let _ = bus.publish(contract::LOG_STATUS, &payload).await;
    }
}
