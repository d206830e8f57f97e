//! A subscription that comes back by itself.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::retry::Policy;

/// Messages that may wait for the reader. Beyond it new ones are dropped: pub/sub promises nothing, and what is heard late is
/// repaired from the log or asked for again.
const CAPACITY: usize = 4_096;
/// A connection on which nothing is heard for this long is asked whether it lives.
const SILENCE: Duration = Duration::from_secs(5);

/// A connection that lasted this long was a good one: the next try is quick again.
const STEADY: Duration = Duration::from_secs(5);

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
    _stop: DropGuard,
}

impl Subscription {
    pub(super) fn start(client: redis::Client, channels: &[&str], patterns: &[&str]) -> Self {
        let (sender, messages) = mpsc::channel(CAPACITY);
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let (channels, patterns) = (owned(channels), owned(patterns));
        tokio::spawn(async move {
            stop.run_until_cancelled(follow(&client, &channels, &patterns, &sender)).await;
        });
        Self { messages, _stop: guard }
    }

    /// The next message. Safe to cancel. None only when the subscription was ended.
    pub async fn next(&mut self) -> Option<Heard> {
        self.messages.recv().await
    }
}

async fn follow(client: &redis::Client, channels: &[String], patterns: &[String], sender: &mpsc::Sender<Heard>) {
    let mut delays = Policy::patient().delays();
    let mut is_away = false;
    while !sender.is_closed() {
        let begun = Instant::now();
        let why = match listen(client, channels, patterns, sender, &mut is_away).await {
            Ok(()) => "connection closed".to_owned(),
            Err(error) => error.to_string(),
        };
        if begun.elapsed() > STEADY {
            delays.reset();
        }
        if !is_away {
            tracing::warn!(why, "redis subscription broke, subscribing again");
            is_away = true;
        }
        tokio::time::sleep(delays.next_delay()).await;
    }
}

async fn listen(
    client: &redis::Client,
    channels: &[String],
    patterns: &[String],
    sender: &mpsc::Sender<Heard>,
    is_away: &mut bool,
) -> redis::RedisResult<()> {
    let subscribing = async {
        let (mut sink, stream) = client.get_async_pubsub().await?.split();
        for channel in channels {
            sink.subscribe(channel).await?;
        }
        for pattern in patterns {
            sink.psubscribe(pattern).await?;
        }
        Ok::<_, redis::RedisError>((sink, stream))
    };
    let late = |_| redis::RedisError::from((redis::ErrorKind::Io, "no answer"));
    let (mut sink, mut stream) = tokio::time::timeout(SILENCE, subscribing).await.map_err(late)??;
    if std::mem::take(is_away) {
        tracing::info!("redis subscription is back");
    }
    loop {
        match tokio::time::timeout(SILENCE, stream.next()).await {
            Ok(Some(message)) => {
                let heard = Heard {
                    channel: message.get_channel_name().to_owned(),
                    payload: message.get_payload_bytes().to_vec(),
                };
                if let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send(heard) {
                    tracing::warn!(CAPACITY, "subscriber is too slow, message dropped");
                }
            }
            Ok(None) => return Ok(()),
            Err(_) => {
                let answer = tokio::time::timeout(SILENCE, sink.ping::<redis::Value>()).await;
                answer.map_err(late)??;
            }
        }
    }
}
