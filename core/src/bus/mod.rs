//! The bus: Redis pub/sub, beside the log, for all that already speaks it.
//!
//! Owns the connections. What is on the wire is `contract`'s affair. Nothing here is relied on for keeping anything.

pub mod contract;
pub mod notify;
mod place;
mod publisher;
mod subscription;

use std::sync::Arc;
use std::time::{Duration, Instant};

use place::Place;
use publisher::Publisher;
pub use subscription::{Heard, Sight, Subscription};

use crate::breaker::Limits;
use crate::config::Env;
use crate::retry::Policy;

/// A Redis that does not answer within this is away: what is published now is worth nothing later.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Why something did not get onto the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("REDIS_URL is refused: {0}")]
    Url(redis::RedisError),
    #[error("redis is away: {0}")]
    Away(#[from] redis::RedisError),
    #[error("redis is away: {0}")]
    StillAway(String),
    #[error("redis did not answer within {} ms", ANSWER_WITHIN.as_millis())]
    Late,
}

impl BusError {
    /// Whether Redis is there and will not take this: to say it again changes nothing, and the next message may be fine.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        use redis::{ErrorKind, ServerErrorKind};
        let Self::Away(error) = self else { return false };
        match error.kind() {
            ErrorKind::Extension => true,
            ErrorKind::Server(kind) => !matches!(
                kind,
                ServerErrorKind::BusyLoading
                    | ServerErrorKind::MasterDown
                    | ServerErrorKind::ReadOnly
                    | ServerErrorKind::TryAgain
                    | ServerErrorKind::ClusterDown
            ),
            _ => false,
        }
    }
}

/// Where Redis is, and how subscriptions come back.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// `REDIS_URL`.
    pub url: String,
    pub reconnect: Reconnect,
}

/// How subscriptions come back: `REDIS_RECONNECT_*`.
#[derive(Clone, Debug)]
pub struct Reconnect {
    pub policy: Policy,
    /// After so many failures in a row it rests for longer.
    pub breaker: Limits,
}

impl RedisConfig {
    /// The server at `url`, with the delays of the contract.
    #[must_use]
    pub fn at(url: &str) -> Self {
        let policy = Policy { first: Duration::from_secs(1), most: Duration::from_secs(60), jitter: 0.1, tries: None };
        let breaker = Limits { failures: 10, rest: Duration::from_secs(60) };
        Self { url: url.to_owned(), reconnect: Reconnect { policy, breaker } }
    }

    /// Reads it.
    pub fn read<F: Fn(&str) -> Option<String>>(env: &mut Env<F>) -> Self {
        let url = crate::config::redis_url(env);
        crate::install_tls();
        env.take("REDIS_URL", Place::parse(&url).map(drop));
        let (first, most): (u64, u64) = (
            env.number("REDIS_RECONNECT_BASE_DELAY_MS", 1_000, 1..=600_000),
            env.number("REDIS_RECONNECT_MAX_DELAY_MS", 60_000, 1..=3_600_000),
        );
        env.check(first <= most, "REDIS_RECONNECT_BASE_DELAY_MS must not be greater than REDIS_RECONNECT_MAX_DELAY_MS");
        let policy = Policy {
            first: Duration::from_millis(first),
            most: Duration::from_millis(most),
            jitter: env.number("REDIS_RECONNECT_JITTER_PCT", 0.1, 0.0..=0.9),
            tries: None,
        };
        let breaker = Limits {
            failures: env.number("REDIS_RECONNECT_MAX_FAILURES", 10, 1..=10_000),
            rest: env.seconds("REDIS_RECONNECT_COOLDOWN_SECS", 60.0, 0.1..=3_600.0),
        };
        Self { url, reconnect: Reconnect { policy, breaker } }
    }
}

/// A connection to Redis that comes back by itself. Cheap to clone.
#[derive(Clone)]
pub struct Bus(Arc<Inner>);

struct Inner {
    place: Place,
    reconnect: Reconnect,
    publisher: Publisher,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bus")
    }
}

impl Bus {
    /// A bus. Connects when it is first used.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn open(config: &RedisConfig) -> Result<Self, BusError> {
        crate::install_tls();
        let place = Place::parse(&config.url).map_err(BusError::Url)?;
        let publisher = Publisher::new(place.clone());
        Ok(Self(Arc::new(Inner { place, reconnect: config.reconnect.clone(), publisher })))
    }

    async fn command(&self, command: &redis::Cmd) -> Result<(), BusError> {
        self.0.publisher.command(command).await
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

    /// Asks whether Redis is there: how long it took to answer.
    ///
    /// # Errors
    /// When it is away.
    pub async fn health_check_result(&self) -> Result<Duration, BusError> {
        let begun = Instant::now();
        self.command(&redis::cmd("PING")).await.map(|()| begun.elapsed())
    }

    /// Subscribes to `channels` and `patterns`; comes back by itself for as long as the subscription lives.
    #[must_use]
    pub fn subscribe(&self, channels: &[&str], patterns: &[&str]) -> Subscription {
        Subscription::start(self.0.place.clone(), self.0.reconnect.clone(), channels, patterns)
    }
}
