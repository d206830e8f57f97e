//! What the orchestrator reads from its environment.

use std::net::SocketAddr;
use std::time::Duration;

use arbees_core::alerts::AlertConfig;
use arbees_core::bus::RedisConfig;
use arbees_core::config::{ConfigErrors, Env, LogConfig, http_listen};
use arbees_core::espn::EspnConfig;
use arbees_core::time::micros;
use arbees_core::{monitor, variables};
use arbees_fleet::{SECOND, Settings};

/// Everything it is told.
#[derive(Clone, Debug)]
pub struct Config {
    pub log: LogConfig,
    pub redis: RedisConfig,
    pub espn: EspnConfig,
    pub listen: SocketAddr,
    /// `INSTANCE_ID`.
    pub instance: String,
    /// This run of it.
    pub process: String,
    pub discovery_every: Duration,
    pub schedule_every: Duration,
    /// `OPERATOR_TOKEN`; without it operator verbs are off.
    pub operator_token: Option<String>,
    pub settings: Settings,
    pub alerts: AlertConfig,
    /// `NATS_MONITOR_URL`: where the log's server tells of itself.
    pub monitor_url: Option<String>,
    /// `SYSTEM_MONITOR_INTERVAL_SECS`.
    pub monitor_every: Duration,
}

impl Config {
    /// Reads it, and says everything that is wrong at once.
    pub fn read<F: Fn(&str) -> Option<String>>(mut env: Env<F>) -> Result<Self, ConfigErrors> {
        let log = LogConfig::read(&mut env);
        let redis = RedisConfig::read(&mut env);
        let alerts = AlertConfig::read(&mut env);
        let espn = EspnConfig::read(&mut env);
        let listen = http_listen(&mut env);
        let instance = env.text_or("INSTANCE_ID", "orchestrator-1");
        env.take("INSTANCE_ID", arbees_proto::InstanceId::strict(&instance));
        let beat_ms: u64 = env.number("LOG_HEARTBEAT_MS", 1_000, 50..=60_000);
        let ttl_ms: u64 = env.number("LEASE_TTL_MS", 2_000, 100..=600_000);
        let margin_ms: u64 = env.number("LEASE_MARGIN_MS", 250, 0..=60_000);
        env.check(ttl_ms >= 2 * beat_ms, "LEASE_TTL_MS must be at least twice LOG_HEARTBEAT_MS");
        let pregame_minutes: i64 = env.number("PREGAME_ASSIGN_MINUTES", 15, 0..=1_440);
        let window_hours: i64 = env.number("PREGAME_DISCOVERY_WINDOW_HOURS", 6, 0..=48);
        let timeout = env.seconds("SHARD_TIMEOUT_SECS", 60.0, 1.0..=3_600.0);
        let interval = env.seconds("HEARTBEAT_INTERVAL_SECS", 10.0, 0.1..=600.0);
        let debounce = env.seconds("RESYNC_DEBOUNCE_SECS", 5.0, 0.0..=600.0);
        let resync_rate: i64 = env.number("RESYNC_RATE_LIMIT_GAMES_PER_SEC", 10, 1..=10_000);
        let circuit_failures: u32 = env.number("ASSIGNMENT_CIRCUIT_FAILURE_THRESHOLD", 3, 1..=1_000);
        let circuit_successes: u32 = env.number("ASSIGNMENT_CIRCUIT_SUCCESS_THRESHOLD", 2, 1..=1_000);
        let half_open = env.seconds("ASSIGNMENT_CIRCUIT_HALF_OPEN_TIMEOUT_SECS", 30.0, 0.1..=3_600.0);
        let monitor_url = env.url_if_set("NATS_MONITOR_URL", &["http://", "https://"]);
        variables::read_unused(&mut env);
        let mode = env.one_of("ORCHESTRATOR_MODE", "live", &["live", "shadow"]);
        let config = Self {
            log,
            redis,
            espn,
            listen,
            instance,
            process: uuid::Uuid::new_v4().simple().to_string(),
            discovery_every: env.seconds("DISCOVERY_INTERVAL_SECS", 30.0, 0.1..=3_600.0),
            schedule_every: env.seconds("SCHEDULED_SYNC_INTERVAL_SECS", 3_600.0, 1.0..=86_400.0),
            operator_token: env.text("OPERATOR_TOKEN").filter(|t| !t.is_empty()),
            alerts,
            monitor_url,
            monitor_every: monitor::interval(&mut env),
            settings: Settings {
                pregame_assign: pregame_minutes * 60 * SECOND,
                discovery_window: window_hours * 3_600 * SECOND,
                redis_timeout: micros(timeout),
                redis_interval: micros(interval),
                lease_ttl: micros(Duration::from_millis(ttl_ms)),
                lease_margin: micros(Duration::from_millis(margin_ms)),
                log_interval: micros(Duration::from_millis(beat_ms)),
                resync_debounce: micros(debounce),
                resync_rate,
                circuit_failures,
                circuit_successes,
                circuit_half_open: micros(half_open),
                shadow: mode == "shadow",
                ..Settings::default()
            },
        };
        env.finish(config)
    }
}
