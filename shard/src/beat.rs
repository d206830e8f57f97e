//! The shard's heartbeat: on the log, where it is judged, and on Redis for all who read that.

use std::time::Duration;

use arbees_core::bus::{Bus, contract};
use arbees_core::log::Log;
use arbees_core::time::now_us;
use arbees_proto::{EventId, Payload, ServiceKind, envelope, v1};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// Who beats, and how often where.
#[derive(Clone, Debug)]
pub struct Heart {
    pub log: Log,
    pub bus: Bus,
    pub producer: v1::Producer,
    pub log_every: Duration,
    pub redis_every: Duration,
    /// What to say; the loop keeps it true.
    pub beat: watch::Receiver<v1::Heartbeat>,
}

impl Heart {
    /// Beats on the log.
    pub async fn beat_log(self) {
        let mut beat = self.beat.clone();
        let mut ticks = tokio::time::interval(self.log_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // A change of what is watched is worth a beat of its own: it is what confirms an assignment.
            tokio::select! {
                _ = ticks.tick() => {}
                changed = beat.changed() => if changed.is_err() { return },
            }
            let now = beat.borrow_and_update().clone();
            self.send(&now).await;
        }
    }

    /// Beats on Redis, and tells the loop whether it is there.
    pub async fn beat_redis(self, is_there: watch::Sender<bool>) {
        let mut ticks = tokio::time::interval(self.redis_every.min(CHECK_EVERY));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut since_beat = self.redis_every;
        loop {
            ticks.tick().await;
            since_beat += ticks.period();
            let told = if since_beat >= self.redis_every {
                since_beat = Duration::ZERO;
                let beat = self.beat.borrow().clone();
                self.say(&beat).await
            } else {
                self.bus.ping().await.is_ok()
            };
            is_there.send_if_modified(|was| std::mem::replace(was, told) != told);
        }
    }

    /// Beats once on both, to say goodbye.
    pub async fn last_word(&self) {
        let beat = v1::Heartbeat { status: "stopping".to_owned(), ..self.beat.borrow().clone() };
        tokio::join!(self.send(&beat), self.say(&beat));
    }

    async fn send(&self, beat: &v1::Heartbeat) {
        let now = now_us();
        let id = EventId::derive(now, &[self.producer.process.as_bytes(), &now.to_le_bytes()]);
        let event = v1::Event {
            id: id.0.to_vec(),
            occurred_at_us: now,
            producer: Some(self.producer.clone()),
            schema_version: envelope::SCHEMA_VERSION,
            payload: Some(Payload::Heartbeat(beat.clone())),
            ..v1::Event::default()
        };
        let subject = self.log.names().heartbeat(ServiceKind::Shard, &self.producer.instance);
        if let Err(error) = self.log.publish(subject, &event, &id.to_string()).await {
            tracing::debug!(%error, "beat not acknowledged");
        }
    }

    async fn say(&self, beat: &v1::Heartbeat) -> bool {
        let payload = contract::shard_beat(beat, now_us()).to_string();
        self.bus.publish(&contract::heartbeat_channel(&self.producer.instance), &payload).await.is_ok()
    }
}

/// How often Redis is looked at, between beats.
const CHECK_EVERY: Duration = Duration::from_secs(2);
