//! `arbees-orchestrator`: finds games, gives each to one shard, and writes every decision into the log before anyone acts on it.

mod alerting;
mod beat;
mod config;
mod discovery;
mod inbox;
mod leader;
mod operator;
mod others;
mod outbox;
mod sentry;
mod tenure;

use std::process::ExitCode;

use arbees_core::exit::{Exit, report};
use arbees_core::{bus::Bus, espn::Espn, start};

use crate::config::Config;

const NAME: &str = "arbees-orchestrator";

#[tokio::main]
async fn main() -> ExitCode {
    report(NAME, run().await)
}

async fn run() -> Result<(), Exit> {
    let about =
        "Finds games, gives each to one shard, and writes every decision into the log before anyone acts on it.";
    let Some(config) = start::configured(NAME, about, Config::read)? else { return Ok(()) };
    let (stop, health) = start::begin(NAME, config.listen, &["log", "leader"]).await?;
    let Some(log) = start::log(NAME, &config.log, &health, &stop).await? else { return Ok(()) };
    let bus = Bus::open(&config.redis).map_err(|e| Exit::Failed(e.to_string()))?;
    let espn = Espn::new(&config.espn).map_err(|e| Exit::Failed(e.to_string()))?;
    leader::run(&config, &log, &bus, &espn, &health, &stop).await
}
