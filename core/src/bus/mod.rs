//! The bus: Redis pub/sub, beside the log, for all that already speaks it.
//!
//! Owns the connections. What is on the wire is `contract`'s affair. Nothing here is relied on for keeping anything.

pub mod contract;
pub mod notify;
mod subscription;

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};

pub use subscription::{Heard, Subscription};

/// A Redis that does not answer within this is away: what is published now is worth nothing later.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Why something did not get onto the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("REDIS_URL is refused: {0}")]
    Url(redis::RedisError),
    #[error("redis is away: {0}")]
    Away(#[from] redis::RedisError),
    #[error("redis did not answer within {} ms", ANSWER_WITHIN.as_millis())]
    Late,
}

/// A connection to Redis that comes back by itself. Cheap to clone.
#[derive(Clone)]
pub struct Bus {
    client: redis::Client,
    publisher: ConnectionManager,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bus")
    }
}

impl Bus {
    /// A bus at `url`. Connects when it is first used. Must be called within a runtime.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn open(url: &str) -> Result<Self, BusError> {
        let client = redis::Client::open(url).map_err(BusError::Url)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(ANSWER_WITHIN))
            .set_response_timeout(Some(ANSWER_WITHIN))
            .set_number_of_retries(1)
            .set_max_delay(ANSWER_WITHIN);
        let publisher = client.get_connection_manager_lazy(config).map_err(BusError::Url)?;
        Ok(Self { client, publisher })
    }

    async fn command(&self, command: &redis::Cmd) -> Result<(), BusError> {
        let mut connection = self.publisher.clone();
        let answer = tokio::time::timeout(2 * ANSWER_WITHIN, command.query_async::<redis::Value>(&mut connection));
        answer.await.map_err(|_| BusError::Late)?.map(drop).map_err(BusError::Away)
    }

    /// Publishes `payload` on `channel`.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn publish(&self, channel: &str, payload: &str) -> Result<(), BusError> {
        self.command(redis::cmd("PUBLISH").arg(channel).arg(payload)).await
    }

    /// Keeps `value` under `key` for so long.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn keep(&self, key: &str, value: &str, expiry: Duration) -> Result<(), BusError> {
        self.command(redis::cmd("SET").arg(key).arg(value).arg("EX").arg(expiry.as_secs())).await
    }

    /// Asks whether Redis is there.
    ///
    /// # Errors
    /// When it is away.
    pub async fn ping(&self) -> Result<(), BusError> {
        self.command(&redis::cmd("PING")).await
    }

    /// Subscribes to `channels` and `patterns`; comes back by itself for as long as the subscription lives.
    #[must_use]
    pub fn subscribe(&self, channels: &[&str], patterns: &[&str]) -> Subscription {
        Subscription::start(self.client.clone(), channels, patterns)
    }
}
