//! `arbees-projector`: keeps the tables equal to the fold of the log.

use std::net::SocketAddr;
use std::process::ExitCode;

use arbees_core::config::{ConfigErrors, Env, LogConfig, http_listen, process_env};
use arbees_core::db::{self, DbConfig, DbHealth};
use arbees_core::exit::{Exit, report, whole};
use arbees_core::log::{ALERTS, CONTROL, GAME_STATES, HEARTBEATS};
use arbees_core::retry::{GaveUp, Policy, retry};
use arbees_core::start;
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
    query_token: Option<String>,
}

impl Config {
    fn read<F: Fn(&str) -> Option<String>>(mut env: Env<F>) -> Result<Self, ConfigErrors> {
        let config = Self {
            log: LogConfig::read(&mut env),
            db: DbConfig::read(&mut env),
            db_health: DbHealth::read(&mut env),
            listen: http_listen(&mut env),
            instance: env.text("INSTANCE_ID").unwrap_or_else(|| "projector-1".to_owned()),
            query_token: env.text("QUERY_TOKEN"),
        };
        env.finish(config)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    report("arbees-projector", run().await)
}

async fn run() -> Result<(), Exit> {
    let config = Config::read(process_env()).map_err(Exit::Config)?;
    let api = Api::new(config.query_token.as_deref());
    let parts = ["log", "database", CONTROL, HEARTBEATS, GAME_STATES, ALERTS];
    let (stop, health) = start::begin_with(config.listen, &parts, api.router()).await?;
    let Some(log) = start::log("arbees-projector", &config.log, &health, &stop).await? else { return Ok(()) };
    let pool = config.db.pool("arbees-projector").map_err(|e| Exit::Failed(e.to_string()))?;
    let policy = Policy::patient();
    let is_away = |e: &sqlx::migrate::MigrateError| match e {
        sqlx::migrate::MigrateError::Execute(e) => db::is_away(e),
        _ => false,
    };
    match retry("database", &policy, &stop, is_away, || db::migrate(&pool)).await {
        Ok(()) => health.ok("database"),
        Err(GaveUp::Canceled) => return Ok(()),
        Err(GaveUp::Permanent(error)) => {
            return Err(Exit::Ground(format!("schema arbees: {}", whole(&error))));
        }
    }
    api.stand_on(log.clone(), pool.clone());
    let process = uuid::Uuid::new_v4().simple().to_string();
    let producer = v1::Producer { service: "projector".to_owned(), instance: config.instance, process };
    let watching = monitor::run(log.clone(), pool.clone(), health.clone(), config.db_health, producer);
    let ending = stop.clone();
    // Its queries change nothing: it may be dropped in the middle of one.
    let watcher = tokio::spawn(async move { ending.run_until_cancelled(watching).await });
    projector::run(&log, &pool, &health, &stop).await;
    watcher.abort();
    pool.close().await;
    Ok(())
}
