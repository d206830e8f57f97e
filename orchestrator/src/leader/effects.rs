//! What follows from decisions that are in the log.

use std::sync::Arc;

use arbees_core::bus::notify;
use arbees_core::log::{CONTROL, ReadError, Verdict, snapshot_slot};
use arbees_fleet::decide::Medium;
use arbees_fleet::{Effect, Input};
use arbees_proto::{Payload, v1};

use super::Desk;
use crate::inbox::Mail;
use crate::outbox::Errand;

impl Desk<'_> {
    /// Tells again what the leader before may have died too early to tell.
    pub(super) async fn repeat_notifications(&mut self, from: u64, to: u64) -> Result<(), ReadError> {
        let mut reader = self.log.read(CONTROL, Vec::new(), from, to).await?;
        while let Some(stored) = reader.next().await? {
            if let Ok(event) = stored.event() {
                self.notify(&event);
            }
        }
        tracing::info!(from, to, "notifications of the leader before repeated");
        Ok(())
    }

    pub(super) fn notify(&self, event: &v1::Event) {
        if self.fleet.state().shadow {
            return;
        }
        if let Some((channel, payload)) = notify::notification(event) {
            self.outbox.put(Errand::Say { channel: channel.to_owned(), payload });
        }
    }

    /// Does what a decision led to. What the log is asked does not wait for Redis.
    pub(super) fn send(&self, effect: Effect) {
        let (log, sender) = (self.log.clone(), self.sender.clone());
        match effect {
            Effect::Probe { key } => drop(self.tasks.spawn(async move {
                let answer = log.probe(&key).await;
                // A closed inbox means that we are stopping.
                let _ = sender.send(Mail::Input(Input::Probed { key, answer })).await;
            })),
            Effect::Judge { key, heartbeat } => {
                let (me, term) = (self.me.clone(), self.fleet.state().head.term);
                drop(self.tasks.spawn(async move {
                    let input = match log.judge(&key, heartbeat, &me, term).await {
                        Verdict::Fenced { fence } => Input::Fenced { key, heartbeat, fence },
                        Verdict::Alive(stored) => match stored.event() {
                            Ok(event) => Input::Beat(Arc::new(event), Medium::Log { sequence: stored.sequence }),
                            Err(_) => return,
                        },
                        Verdict::Unknown => return,
                    };
                    let _ = sender.send(Mail::Input(input)).await;
                }));
            }
            Effect::Alert(alert) => drop(self.alerter.say(Payload::AlertRaised(alert))),
            Effect::Resolve(over) => drop(self.alerter.say(Payload::AlertResolved(over))),
            other => self.outbox.put(Errand::Effect(other)),
        }
    }

    pub(super) fn snapshot_if_due(&mut self) {
        let sequence = self.fleet.state().head.sequence;
        if snapshot_slot(sequence) <= snapshot_slot(self.snapshot_at) {
            return;
        }
        self.snapshot_at = sequence;
        let (log, state) = (self.log.clone(), self.fleet.state().clone());
        self.tasks.spawn(async move {
            match log.save_snapshot(&state).await {
                Ok(()) => tracing::info!(sequence, "snapshot kept"),
                Err(error) => tracing::warn!(sequence, %error, "snapshot not kept"),
            }
        });
    }
}
