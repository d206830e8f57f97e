//! What the orchestrator reads from its environment.

use std::net::SocketAddr;
use std::time::Duration;

use arbees_core::alerts::AlertConfig;
use arbees_core::bus::RedisConfig;
use arbees_core::config::{ConfigErrors, Env, LogConfig, http_listen};
use arbees_core::espn::EspnConfig;
use arbees_core::{monitor, policy, variables};
use arbees_fleet::Settings;

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
        let monitor_url = env.url_if_set("NATS_MONITOR_URL", &["http://", "https://"]);
        variables::read_unused(&mut env);
        let settings = policy::read(&mut env);
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
            settings,
        };
        env.finish(config)
    }
}
