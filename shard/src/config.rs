//! What a shard reads from its environment.

use std::net::SocketAddr;
use std::time::Duration;

use arbees_core::bus::RedisConfig;
use arbees_core::config::{ConfigErrors, Env, LogConfig, http_listen};
use arbees_core::espn::EspnConfig;
use arbees_core::{monitor, variables};
use arbees_proto::{InstanceId, ShardId};

/// Everything it is told.
#[derive(Clone, Debug)]
pub struct Config {
    pub log: LogConfig,
    pub redis: RedisConfig,
    pub espn: EspnConfig,
    pub listen: SocketAddr,
    /// `SHARD_ID`.
    pub shard: ShardId,
    /// `SHARD_TYPE`.
    pub shard_type: &'static str,
    /// This run of it.
    pub process: String,
    /// `MAX_GAMES`.
    pub max_games: u32,
    /// `POLL_INTERVAL`.
    pub poll_every: Duration,
    /// `LOG_HEARTBEAT_MS`.
    pub log_beat_every: Duration,
    /// `LEASE_TTL_MS`.
    pub lease_ttl: Duration,
    /// `HEARTBEAT_INTERVAL_SECS`.
    pub redis_beat_every: Duration,
    /// `SYSTEM_MONITOR_INTERVAL_SECS`.
    pub monitor_every: Duration,
}

impl Config {
    /// Reads it, and says everything that is wrong at once.
    pub fn read<F: Fn(&str) -> Option<String>>(mut env: Env<F>) -> Result<Self, ConfigErrors> {
        let log = LogConfig::read(&mut env);
        let id = env.required("SHARD_ID", "the name of this shard, as in shard_01");
        let shard = if id.is_empty() { None } else { env.take("SHARD_ID", InstanceId::strict(&id)) };
        let beat_ms: u64 = env.number("LOG_HEARTBEAT_MS", 1_000, 50..=60_000);
        let ttl_ms: u64 = env.number("LEASE_TTL_MS", 2_000, 100..=600_000);
        env.check(ttl_ms >= 2 * beat_ms, "LEASE_TTL_MS must be at least twice LOG_HEARTBEAT_MS");
        let redis = RedisConfig::read(&mut env);
        let espn = EspnConfig::read(&mut env);
        let listen = http_listen(&mut env);
        let shard_type = env.one_of("SHARD_TYPE", "sports", &["sports", "game", "crypto"]);
        let max_games = env.number("MAX_GAMES", 20, 0..=100_000);
        let poll_every = env.seconds("POLL_INTERVAL", 0.5, 0.1..=5.0);
        let redis_beat_every = env.seconds("HEARTBEAT_INTERVAL_SECS", 10.0, 0.1..=600.0);
        let monitor_every = monitor::interval(&mut env);
        variables::read_unused(&mut env);
        let Some(shard) = shard else { return Err(env.finish(()).err().unwrap_or(ConfigErrors(Vec::new()))) };
        env.finish(Self {
            log,
            redis,
            espn,
            listen,
            shard,
            shard_type,
            process: uuid::Uuid::new_v4().simple().to_string(),
            max_games,
            poll_every,
            log_beat_every: Duration::from_millis(beat_ms),
            lease_ttl: Duration::from_millis(ttl_ms),
            redis_beat_every,
            monitor_every,
        })
    }
}
