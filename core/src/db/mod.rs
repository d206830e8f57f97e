//! The database: Postgres, for what is derived from the log. Nothing that decides ever reads it.

mod migrate;

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

pub use migrate::migrate;

use crate::config::Env;

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
            enabled: matches!(
                env.one_of("DB_HEALTH_CHECK_ENABLED", "true", &["true", "false", "1", "0"]),
                "true" | "1"
            ),
            every: env.seconds("DB_HEALTH_CHECK_INTERVAL_SECS", 30.0, 0.1..=3_600.0),
            alert_threshold: env.number("DB_HEALTH_ALERT_THRESHOLD", 3, 1..=1_000),
        }
    }
}

impl DbConfig {
    /// Reads `DATABASE_URL` and `DB_POOL_*`.
    pub fn read<F: Fn(&str) -> Option<String>>(env: &mut Env<F>) -> Self {
        let url = crate::config::database_url(env);
        let parsed = url.parse::<PgConnectOptions>().map(drop).map_err(|_| "it cannot be read as a URL");
        env.take("DATABASE_URL", parsed);
        let max_connections = env.number("DB_POOL_MAX_CONNECTIONS", 20, 1..=1_000);
        let min_connections = env.number("DB_POOL_MIN_CONNECTIONS", 5, 0..=1_000);
        env.check(
            min_connections <= max_connections,
            "DB_POOL_MIN_CONNECTIONS must not be greater than DB_POOL_MAX_CONNECTIONS",
        );
        Self {
            url,
            max_connections,
            min_connections,
            max_lifetime: env.seconds("DB_POOL_MAX_LIFETIME_SECS", 1_800.0, 1.0..=86_400.0),
            idle_timeout: env.seconds("DB_POOL_IDLE_TIMEOUT_SECS", 600.0, 1.0..=86_400.0),
            acquire_timeout: env.seconds("DB_POOL_ACQUIRE_TIMEOUT_SECS", 30.0, 0.1..=600.0),
        }
    }

    /// A pool that connects when it is first used.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn pool(&self, program: &str) -> Result<PgPool, sqlx::Error> {
        crate::install_tls();
        let options = self.url.parse::<PgConnectOptions>()?.application_name(program);
        Ok(PgPoolOptions::new()
            .max_connections(self.max_connections)
            .min_connections(self.min_connections)
            .max_lifetime(self.max_lifetime)
            .idle_timeout(self.idle_timeout)
            .acquire_timeout(self.acquire_timeout)
            .connect_lazy_with(options))
    }
}

/// Whether the database is merely away, or the trouble lies with what was asked.
#[must_use]
pub fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_) => true,
        // Class 08: connection; 53: resources; 57: operator intervention, which includes starting up.
        sqlx::Error::Database(e) => e.code().is_some_and(|c| ["08", "53", "57"].contains(&&c[..2])),
        _ => false,
    }
}
