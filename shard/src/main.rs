//! `arbees-shard`: watches the games that the log gives to it, and tells what it sees.

mod beat;
mod claim;
mod config;
mod publish;
mod shard;
mod watch;

use std::process::ExitCode;

use arbees_core::exit::{Exit, report};
use arbees_core::{bus::Bus, config::process_env, espn::Espn, start};

use crate::config::Config;

#[tokio::main]
async fn main() -> ExitCode {
    report("arbees-shard", run().await)
}

async fn run() -> Result<(), Exit> {
    let config = Config::read(process_env()).map_err(Exit::Config)?;
    let (stop, health) = start::begin(config.listen, &["log", "recovered"]).await?;
    let Some(log) = start::log("arbees-shard", &config.log, &health, &stop).await? else { return Ok(()) };
    let bus = Bus::open(&config.redis).map_err(|e| Exit::Failed(e.to_string()))?;
    let espn = Espn::new(&config.espn).map_err(|e| Exit::Failed(e.to_string()))?;
    shard::run(config, log, bus, espn, &health, &stop).await
}
