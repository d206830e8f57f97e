//! Sends messages through every channel, each on its own: none can delay another, nor whoever decides.

use std::time::{Duration, Instant};

use arbees_proto::{Payload, v1};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::channel::{Channel, SendError};
use super::{Alerter, Notice};
use crate::retry::Policy;
use crate::shutdown::spawn;
use crate::time::micros;

/// Messages that may wait for one channel. Beyond it the newest is dropped: what lasts is told again.
const CAPACITY: usize = 1_000;
/// A message is tried for this long. Whoever reads it later is better served by the next one.
const GIVE_UP_AFTER: Duration = Duration::from_secs(1_800);
/// Failed tries in a row after which a channel rests, and for how long.
const BREAKER_AFTER: u32 = 5;
const BREAKER_REST: Duration = Duration::from_secs(60);

/// All channels at work. Dropping it ends them when their queues are empty.
#[derive(Debug)]
pub struct Delivery {
    channels: Vec<(Channel, mpsc::Sender<(Notice, Instant)>)>,
}

/// What became of a message on one channel.
#[derive(Debug)]
struct Told {
    notice: Notice,
    channel: String,
    attempts: u32,
    latency: Duration,
    /// Why it was given up, if it was.
    error: Option<String>,
}

impl Delivery {
    /// Starts a task for each of `channels`; what became of each message is written by `alerter`.
    #[must_use]
    pub fn start(channels: Vec<Channel>, alerter: &Alerter, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let start = |channel: Channel| {
            let (sender, queue) = mpsc::channel(CAPACITY);
            let (alerter, mine) = (alerter.clone(), channel.clone());
            spawn(tasks, stop, work(mine, queue, alerter));
            (channel, sender)
        };
        Self { channels: channels.into_iter().map(start).collect() }
    }

    /// Hands `notice` to every channel that takes it and does not have it.
    pub fn send(&self, notice: &Notice) {
        for (channel, queue) in &self.channels {
            if !channel.takes(notice) || notice.has.contains(channel.name()) {
                continue;
            }
            if queue.try_send((notice.clone(), Instant::now())).is_err() {
                tracing::warn!(channel = channel.name(), CAPACITY, "alert channel is full, message dropped");
            }
        }
    }
}

/// Sends one message after the other, so that a channel never hears of an end before the beginning.
async fn work(channel: Channel, mut queue: mpsc::Receiver<(Notice, Instant)>, alerter: Alerter) {
    let policy = Policy { first: Duration::from_secs(1), most: Duration::from_secs(60), jitter: 0.1, tries: None };
    let mut failures = 0;
    while let Some((notice, due)) = queue.recv().await {
        let (mut delays, mut attempts) = (policy.delays(), 0);
        let error = loop {
            attempts += 1;
            let (why, after) = match channel.send(&notice).await {
                Ok(_) => {
                    if failures >= BREAKER_AFTER {
                        tracing::info!(channel = channel.name(), failures, "alert channel works again");
                    }
                    failures = 0;
                    break None;
                }
                Err(SendError::Refused(why)) => break Some(why),
                Err(SendError::Again { why, after }) => (why, after),
            };
            failures += 1;
            if failures == 1 {
                tracing::warn!(channel = channel.name(), why, "alert not delivered, trying again");
            }
            if due.elapsed() > GIVE_UP_AFTER {
                break Some(why);
            }
            let rest = if failures % BREAKER_AFTER == 0 { BREAKER_REST } else { Duration::ZERO };
            let wait = delays.next_delay().max(after.unwrap_or_default()).max(rest);
            tokio::time::sleep(wait).await;
        };
        if let Some(why) = &error {
            tracing::error!(channel = channel.name(), notice = notice.id, why, "alert given up on this channel");
        }
        let latency = due.elapsed();
        let outcome = if error.is_none() { "delivered" } else { "given up" };
        let kind = channel.kind();
        ::metrics::counter!("arbees_alert_deliveries_total", "channel" => kind, "outcome" => outcome).increment(1);
        if error.is_none() {
            ::metrics::histogram!("arbees_alert_delivery_seconds", "channel" => kind).record(latency);
        }
        let told = Told { notice, channel: channel.name().to_owned(), attempts, latency, error };
        alerter.say(told.payload());
    }
}

impl Told {
    /// As an event of ALERTS.
    fn payload(self) -> Payload {
        let incidents: Vec<String> = self.notice.incidents.iter().map(|i| i.incident.clone()).collect();
        let (kind, notice, channel) = (self.notice.kind, self.notice.id, self.channel);
        let (attempts, what) = (self.attempts, self.notice.what.as_str().to_owned());
        match self.error {
            None => {
                let latency_us = micros(self.latency);
                Payload::AlertDelivered(v1::AlertDelivered {
                    kind,
                    notice,
                    channel,
                    incidents,
                    latency_us,
                    attempts,
                    what,
                })
            }
            Some(error) => Payload::AlertDeliveryFailed(v1::AlertDeliveryFailed {
                kind,
                notice,
                channel,
                incidents,
                error,
                attempts,
                what,
            }),
        }
    }
}
