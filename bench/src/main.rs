//! `make bench`: append, replay, shard recovery and projector, each beside the raw limit measured in the same run on the
//! same servers.

mod append;
mod projector;
mod raw;
mod replay;

use std::time::Duration;

use anyhow::Result;
use arbees_core::config::LogConfig;
use arbees_core::log::{self, Log};
use arbees_proto::subject::Names;
use arbees_testkit::history::History;
use arbees_testkit::servers::{Binaries, Nats, Postgres, Scratch};
use clap::Parser;
use tokio_util::sync::CancellationToken;

/// Measures what the log and the tables cost us, beside what they cost anyone.
///
/// Example: make bench ARGS='--events 200000'
#[derive(Parser, Debug)]
struct Args {
    /// Events in the log for replay and recovery
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// Batches of 100 for append
    #[arg(long, default_value_t = 300)]
    batches: u64,
    /// Events for the projector
    #[arg(long, default_value_t = 100_000)]
    projected: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let scratch = Scratch::new("bench")?;
    let binaries = Binaries::find(&|line| println!("{line}"))?;
    let mut nats = Nats::start(&binaries, &scratch.path().join("nats")).await?;
    let log = connect(&nats.url()).await?;
    log.ensure_streams().await?;
    let raw = async_nats::ConnectOptions::new().subscription_capacity(1 << 20).connect(nats.url()).await?;
    println!("{:<44} {:>14} {:>14} {:>7}", "", "ours", "raw", "ratio");
    append::run(&raw, &args).await?;
    let mut history = History::new(10, 1_000);
    fill(&log, &mut history, args.events).await?;
    replay::run(&log, &raw, &history).await?;
    nats.stop().await?;
    projector::run(&binaries, scratch.path(), &args).await
}

pub async fn connect(url: &str) -> Result<Log> {
    let config = LogConfig { url: url.to_owned(), creds: None, names: Names::new(""), replicas: 1 };
    Ok(log::connect("bench", &config, &CancellationToken::new()).await?)
}

/// Appends a long history whose end leaves 1,000 games with each of 10 shards.
async fn fill(log: &Log, history: &mut History, events: u64) -> Result<()> {
    let never = CancellationToken::new();
    let begun = std::time::Instant::now();
    while history.state().head.sequence < events.saturating_sub(30_000) {
        let (expected, events) = history.turn();
        log.append(expected, &events, &never).await?;
    }
    for (expected, events) in history.place(10_000) {
        log.append(expected, &events, &never).await?;
    }
    println!("({} events appended in {:.0?})", history.state().head.sequence, begun.elapsed());
    Ok(())
}

/// A line: a rate of ours beside the raw one, in things per second.
pub fn rates(what: &str, count: u64, ours: Duration, raw_count: u64, raw: Duration) {
    #[allow(clippy::cast_precision_loss)]
    let rate = |n: u64, d: Duration| n as f64 / d.as_secs_f64();
    let (ours, raw) = (rate(count, ours), rate(raw_count, raw));
    println!("{what:<44} {ours:>12.0}/s {raw:>12.0}/s {:>7.2}", ours / raw);
}

/// A line: a time of ours beside the raw one.
pub fn times(what: &str, ours: Duration, raw: Duration) {
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    println!("{what:<44} {:>11.1} ms {:>11.1} ms {:>7.2}", ms(ours), ms(raw), ms(ours) / ms(raw));
}

pub async fn postgres(binaries: &Binaries, folder: &std::path::Path) -> Result<Postgres> {
    Postgres::start(binaries, folder).await
}
