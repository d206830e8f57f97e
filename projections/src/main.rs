//! `arbees-projector`: keeps the tables equal to the fold of the log.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use arbees_core::config::{ConfigErrors, Env, LogConfig, http_listen};
use arbees_core::db::{self, DbConfig, DbHealth};
use arbees_core::exit::{Exit, report, whole};
use arbees_core::log::{ALERTS, CONTROL, GAME_STATES, HEARTBEATS};
use arbees_core::retry::{GaveUp, Policy, retry};
use arbees_core::{monitor as core_monitor, start};
use arbees_projections::api::Api;
use arbees_projections::{monitor, projector};
use arbees_proto::v1;

struct Config {
    log: LogConfig,
    db: DbConfig,
    db_health: DbHealth,
    listen: SocketAddr,
    instance: String,
    /// Who asks the query API must know it; none: nobody needs one.
    read_token: Option<String>,
    monitor_every: Duration,
}

impl Config {
    fn read<F: Fn(&str) -> Option<String>>(mut env: Env<F>) -> Result<Self, ConfigErrors> {
        let config = Self {
            log: LogConfig::read(&mut env),
            db: DbConfig::read(&mut env),
            db_health: DbHealth::read(&mut env),
            listen: http_listen(&mut env),
            instance: env.text_or("INSTANCE_ID", "projector-1"),
            read_token: env.text("API_READ_TOKEN"),
            monitor_every: core_monitor::interval(&mut env),
        };
        env.finish(config)
    }
}

const NAME: &str = "arbees-projector";
/// How long the database may take to say goodbye.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> ExitCode {
    report(NAME, run().await)
}

async fn run() -> Result<(), Exit> {
    let about = "Keeps the tables equal to the fold of the log, and serves the query API and the dashboard.";
    let Some(config) = start::configured(NAME, about, Config::read)? else { return Ok(()) };
    let api = Api::new(config.read_token.as_deref());
    let parts = ["log", "database", CONTROL, HEARTBEATS, GAME_STATES, ALERTS];
    let (stop, health) = start::begin_with(NAME, config.listen, &parts, api.router()).await?;
    let Some(log) = start::log(NAME, &config.log, &health, &stop).await? else { return Ok(()) };
    let pool = config.db.pool(NAME).map_err(|e| Exit::Failed(e.to_string()))?;
    let policy = Policy::patient();
    let is_away = |e: &sqlx::migrate::MigrateError| match e {
        sqlx::migrate::MigrateError::Execute(e) => db::is_retryable(e),
        _ => false,
    };
    match retry("database", &policy, &stop, is_away, || db::migrate(&pool)).await {
        Ok(()) => health.ok("database"),
        Err(GaveUp::Canceled) => return Ok(()),
        Err(GaveUp::Permanent(error) | GaveUp::Exhausted { last: error, .. }) => {
            return Err(Exit::Ground(format!("schema arbees: {}", whole(&error))));
        }
    }
    let answers = config.db.for_answers().pool("arbees-api").map_err(|e| Exit::Failed(e.to_string()))?;
    api.stand_on(log.clone(), answers);
    let process = uuid::Uuid::new_v4().simple().to_string();
    let producer = v1::Producer { service: "projector".to_owned(), instance: config.instance, process };
    let looking = core_monitor::run(config.monitor_every, health.clone(), log.clone(), None);
    let watching = monitor::run(log.clone(), pool.clone(), health.clone(), config.db_health, producer);
    let ending = stop.clone();
    // Its queries change nothing: it may be dropped in the middle of one.
    let watcher =
        tokio::spawn(async move { ending.run_until_cancelled(futures::future::join(watching, looking)).await });
    projector::run(&log, &pool, &health, &stop).await;
    watcher.abort();
    // A database that is away keeps a pool that connects from closing.
    let _ = tokio::time::timeout(CLOSE_WITHIN, pool.close()).await;
    Ok(())
}
