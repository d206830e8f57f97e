//! A subscription that comes back by itself.

use std::time::{Duration, Instant};

use ::metrics::{counter, gauge};
use futures::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Reconnect;
use super::place::Place;
use crate::breaker::Breaker;

/// Messages that may wait for the reader. Beyond it new ones are dropped: pub/sub promises nothing, and what is heard late is
/// repaired from the log or asked for again.
const CAPACITY: usize = 4_096;
/// A connection on which nothing is heard for this long is asked whether it lives.
const SILENCE: Duration = Duration::from_secs(5);

/// A connection that lasted this long was a good one: the next try is quick again.
const STEADY: Duration = Duration::from_secs(5);

/// What a subscription has seen of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Since when it hears nothing; none while it is subscribed.
    pub blind_since: Option<Instant>,
    /// How often it was subscribed again.
    pub reconnects: u64,
    /// How long it was blind before, in all.
    pub blind_for: Duration,
}

/// A message from the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub channel: String,
    pub payload: Vec<u8>,
}

/// A running subscription. Dropping it ends it.
#[derive(Debug)]
pub struct Subscription {
    messages: mpsc::Receiver<Heard>,
    sight: watch::Receiver<Sight>,
    _stop: DropGuard,
}

impl Subscription {
    pub(super) fn start(place: Place, reconnect: Reconnect, channels: &[&str], patterns: &[&str]) -> Self {
        let (sender, messages) = mpsc::channel(CAPACITY);
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let (channels, patterns) = (owned(channels), owned(patterns));
        let blind = Sight { blind_since: Some(Instant::now()), reconnects: 0, blind_for: Duration::ZERO };
        let (seen, sight) = watch::channel(blind);
        tokio::spawn(async move {
            let mut following = Following { place, reconnect, channels, patterns, sender, seen, is_away: false };
            stop.run_until_cancelled(following.follow()).await;
        });
        Self { messages, sight, _stop: guard }
    }

    /// Since when it is blind, and how often and how long it was.
    #[must_use]
    pub fn sight(&self) -> Sight {
        *self.sight.borrow()
    }

    /// The next message. Safe to cancel. None only when the subscription was ended.
    pub async fn next(&mut self) -> Option<Heard> {
        self.messages.recv().await
    }
}

/// Counts a subscription that stands, for as long as it does.
struct Standing(());

impl Standing {
    fn new() -> Self {
        gauge!("arbees_redis_subscriptions").increment(1.0);
        Self(())
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        gauge!("arbees_redis_subscriptions").decrement(1.0);
    }
}

struct Following {
    place: Place,
    reconnect: Reconnect,
    channels: Vec<String>,
    patterns: Vec<String>,
    sender: mpsc::Sender<Heard>,
    seen: watch::Sender<Sight>,
    is_away: bool,
}

impl Following {
    async fn follow(&mut self) {
        let mut delays = self.reconnect.policy.delays();
        let mut breaker = Breaker::new(self.reconnect.breaker);
        while !self.sender.is_closed() {
            let subscribed = self.listen().await;
            let why = match &subscribed {
                Ok((why, _)) => (*why).to_owned(),
                Err(error) => error.to_string(),
            };
            self.seen.send_modify(|s| s.blind_since = s.blind_since.or_else(|| Some(Instant::now())));
            // One that breaks at once is a failure, too: only a connection that lasted makes the next try quick again.
            if subscribed.is_ok_and(|(_, lasted)| lasted > STEADY) {
                delays.reset();
                breaker.ok();
            }
            if !self.is_away {
                tracing::warn!(why, "redis subscription broke, subscribing again");
                self.is_away = true;
            }
            if breaker.failed(Instant::now()) {
                let rest_s = self.reconnect.breaker.rest.as_secs_f64();
                tracing::warn!(rest_s, "redis cannot be subscribed to, resting");
            }
            let rest = if breaker.is_open() { self.reconnect.breaker.rest } else { Duration::ZERO };
            tokio::time::sleep(delays.next_delay().max(rest)).await;
        }
    }

    /// Listens for as long as the connection lasts; why it ended, and how long it lasted.
    async fn listen(&mut self) -> redis::RedisResult<(&'static str, Duration)> {
        let subscribing = async {
            let client = self.place.client(SILENCE).await?;
            let (mut sink, stream) = client.get_async_pubsub().await?.split();
            for channel in &self.channels {
                sink.subscribe(channel).await?;
            }
            for pattern in &self.patterns {
                sink.psubscribe(pattern).await?;
            }
            Ok::<_, redis::RedisError>((sink, stream))
        };
        let late = |_| redis::RedisError::from((redis::ErrorKind::Io, "no answer"));
        let (mut sink, mut stream) = tokio::time::timeout(SILENCE, subscribing).await.map_err(late)??;
        let begun = Instant::now();
        let _standing = Standing::new();
        counter!("arbees_redis_reconnects_total").increment(u64::from(self.is_away));
        self.seen.send_modify(|s| {
            let blind_s = s.blind_since.map_or(0, |since| since.elapsed().as_secs());
            counter!("arbees_redis_blind_seconds_total").increment(blind_s);
            s.blind_for += s.blind_since.take().map_or(Duration::ZERO, |since| since.elapsed());
            s.reconnects += u64::from(self.is_away);
        });
        if std::mem::take(&mut self.is_away) {
            tracing::info!("redis subscription is back");
        }
        loop {
            match tokio::time::timeout(SILENCE, stream.next()).await {
                Ok(Some(message)) => {
                    let heard = Heard {
                        channel: message.get_channel_name().to_owned(),
                        payload: message.get_payload_bytes().to_vec(),
                    };
                    if let Err(mpsc::error::TrySendError::Full(_)) = self.sender.try_send(heard) {
                        counter!("arbees_redis_dropped_total").increment(1);
                        tracing::warn!(CAPACITY, "subscriber is too slow, message dropped");
                    }
                }
                Ok(None) => return Ok(("connection closed", begun.elapsed())),
                Err(_) => {
                    let answer = tokio::time::timeout(SILENCE, sink.ping::<redis::Value>()).await;
                    if !matches!(answer, Ok(Ok(_))) {
                        return Ok(("no answer", begun.elapsed()));
                    }
                }
            }
        }
    }
}
