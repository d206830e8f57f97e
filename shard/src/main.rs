//! `arbees-shard`: watches the games that the log gives to it, and tells what it sees.

mod beat;
mod claim;
mod config;
mod publish;
mod shard;
mod watch;

use std::process::ExitCode;

use arbees_core::exit::{Exit, report};
use arbees_core::{bus::Bus, espn::Espn, start};

use crate::config::Config;

const NAME: &str = "arbees-shard";

#[tokio::main]
async fn main() -> ExitCode {
    report(NAME, run().await)
}

async fn run() -> Result<(), Exit> {
    let about = "Watches the games that the log gives to it, and tells what it sees.";
    let Some(config) = start::configured(NAME, about, Config::read)? else { return Ok(()) };
    let (stop, health) = start::begin(NAME, config.listen, &["log", "recovered"]).await?;
    let Some(log) = start::log(NAME, &config.log, &health, &stop).await? else { return Ok(()) };
    let bus = Bus::open(&config.redis).map_err(|e| Exit::Failed(e.to_string()))?;
    let espn = Espn::new(&config.espn).map_err(|e| Exit::Failed(e.to_string()))?;
    shard::run(config, log, bus, espn, &health, &stop).await
}
