//! The database: Postgres, for what is derived from the log. Nothing that decides ever reads it.

mod migrate;
mod retry;

use std::time::Duration;

use sqlx::pool::MaybePoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgPool, Postgres, Transaction};

pub use migrate::{migrate, migrate_in};
pub use retry::{DatabaseFailure, is_retryable, policy as retry_policy, retrying};

use crate::config::Env;

/// Where the tables are.
pub const SCHEMA: &str = "arbees";

/// How to connect to `url`, with unqualified names being those of `schema`.
///
/// # Errors
/// When the URL is none.
pub fn options(url: &str, schema: &str) -> Result<PgConnectOptions, sqlx::Error> {
    crate::install_tls();
    Ok(url.parse::<PgConnectOptions>()?.options([("search_path", schema)]))
}

/// Begins a transaction that is rolled back whenever whoever asked for it is dropped, also while it begins: `Pool::begin` then
/// gives back a connection that has begun and does not know it (sqlx 0.9.0), and the statements of the next one to take it are
/// never committed. Here it begins in a task of its own, which nobody drops.
///
/// # Errors
/// When the database does not answer, or the pool has no connection in time.
pub async fn begin(pool: &PgPool) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    // To wait for a connection may be given up at any moment.
    let connection = pool.acquire().await?;
    let beginning = tokio::spawn(Transaction::begin(MaybePoolConnection::PoolConnection(connection), None));
    beginning.await.unwrap_or_else(|_| Err(sqlx::Error::WorkerCrashed))
}

/// How to reach the database, and how many connections to keep.
#[derive(Clone, Debug)]
pub struct DbConfig {
    pub url: String,
    pub max_connections: u32,
    pub min_connections: u32,
    pub max_lifetime: Duration,
    pub idle_timeout: Duration,
    pub acquire_timeout: Duration,
}

/// Nobody who asks waits longer for a connection.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// How often the database is looked after, and when people are told.
#[derive(Clone, Copy, Debug)]
pub struct DbHealth {
    pub enabled: bool,
    pub every: Duration,
    /// Checks that fail in a row before people are told.
    pub alert_threshold: u32,
}

impl DbHealth {
    /// Reads `DB_HEALTH_*`.
    pub fn read<F: Fn(&str) -> Option<String>>(env: &mut Env<F>) -> Self {
        Self {
            enabled: env.flag("DB_HEALTH_CHECK_ENABLED", true),
            every: env.seconds("DB_HEALTH_CHECK_INTERVAL_SECS", 30.0, 0.1..=3_600.0),
            alert_threshold: env.number("DB_HEALTH_ALERT_THRESHOLD", 3, 1..=1_000),
        }
    }
}

/// The defaults of a pool; each can be set by itself.
#[derive(Clone, Copy, Debug)]
struct Preset {
    max_connections: u32,
    min_connections: u32,
    max_lifetime_s: f64,
    idle_timeout_s: f64,
    acquire_timeout_s: f64,
}

impl Preset {
    /// What `DB_POOL_PRESET` stands for.
    fn of(name: &str) -> Self {
        let balanced = Self {
            max_connections: 20,
            min_connections: 5,
            max_lifetime_s: 1_800.0,
            idle_timeout_s: 600.0,
            acquire_timeout_s: 30.0,
        };
        match name {
            // Much at once, and nobody in a hurry: many connections, kept for long, and patience for one to be free.
            "high_throughput" => Self {
                max_connections: 50,
                min_connections: 10,
                max_lifetime_s: 3_600.0,
                acquire_timeout_s: 60.0,
                ..balanced
            },
            // Somebody waits: connections are warm, and whoever gets none is told so soon.
            "low_latency" => Self { min_connections: 20, idle_timeout_s: 1_800.0, acquire_timeout_s: 2.0, ..balanced },
            _ => balanced,
        }
    }
}

impl DbConfig {
    /// Reads `DATABASE_URL` and `DB_POOL_*`.
    pub fn read<F: Fn(&str) -> Option<String>>(env: &mut Env<F>) -> Self {
        let url = crate::config::database_url(env);
        let parsed = url.parse::<PgConnectOptions>().map(drop).map_err(|_| "it cannot be read as a URL");
        env.take("DATABASE_URL", parsed);
        let preset =
            Preset::of(env.one_of("DB_POOL_PRESET", "balanced", &["balanced", "high_throughput", "low_latency"]));
        let max_connections = env.number("DB_POOL_MAX_CONNECTIONS", preset.max_connections, 1..=1_000);
        let min_connections = env.number("DB_POOL_MIN_CONNECTIONS", preset.min_connections, 0..=1_000);
        env.check(
            min_connections <= max_connections,
            "DB_POOL_MIN_CONNECTIONS must not be greater than DB_POOL_MAX_CONNECTIONS",
        );
        Self {
            url,
            max_connections,
            min_connections,
            max_lifetime: env.seconds("DB_POOL_MAX_LIFETIME_SECS", preset.max_lifetime_s, 1.0..=86_400.0),
            idle_timeout: env.seconds("DB_POOL_IDLE_TIMEOUT_SECS", preset.idle_timeout_s, 1.0..=86_400.0),
            acquire_timeout: env.seconds("DB_POOL_ACQUIRE_TIMEOUT_SECS", preset.acquire_timeout_s, 0.1..=600.0),
        }
    }

    /// The same for those who answer people: a few connections of their own, and no long wait for one, however busy the writers
    /// are.
    #[must_use]
    pub fn for_answers(&self) -> Self {
        Self {
            max_connections: (self.max_connections / 2).max(2),
            min_connections: self.min_connections.min(1),
            acquire_timeout: self.acquire_timeout.min(ANSWER_WITHIN),
            ..self.clone()
        }
    }

    /// A pool that connects when it is first used.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn pool(&self, program: &str) -> Result<PgPool, sqlx::Error> {
        self.pool_in(program, SCHEMA)
    }

    /// The same, whose unqualified names are those of `schema`.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn pool_in(&self, program: &str, schema: &str) -> Result<PgPool, sqlx::Error> {
        let options = options(&self.url, schema)?.application_name(program);
        Ok(PgPoolOptions::new()
            .max_connections(self.max_connections)
            .min_connections(self.min_connections)
            .max_lifetime(self.max_lifetime)
            .idle_timeout(self.idle_timeout)
            .acquire_timeout(self.acquire_timeout)
            .connect_lazy_with(options))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preset_gives_defaults_that_single_settings_override() {
        let read = |pairs: &'static [(&str, &str)]| {
            let mut env = Env::new(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()));
            let config = DbConfig::read(&mut env);
            env.finish(config).map(|c| (c.max_connections, c.min_connections, c.acquire_timeout.as_secs()))
        };
        assert_eq!(read(&[]), Ok((20, 5, 30)));
        assert_eq!(read(&[("DB_POOL_PRESET", "high_throughput")]), Ok((50, 10, 60)));
        assert_eq!(read(&[("DB_POOL_PRESET", "low_latency"), ("DB_POOL_MIN_CONNECTIONS", "3")]), Ok((20, 3, 2)));
        let error = read(&[("DB_POOL_PRESET", "fast")]).unwrap_err().to_string();
        assert!(error.contains("balanced high_throughput low_latency"), "{error}");
    }
}
