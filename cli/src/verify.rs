//! `arbees verify`

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result, bail};
use arbees_core::config::LogConfig;
use arbees_core::log;
use arbees_projections::verify::verify;
use arbees_proto::subject::Names;
use tokio_util::sync::CancellationToken;

use crate::{Look, addresses, show};

/// Compares the tables with the fold of the log.
pub async fn run(look: &Look) -> Result<()> {
    let addresses = addresses::find(look)?;
    let pool = show::connect(&addresses.database_url).await?;
    let names = Names::new(&std::env::var("STREAM_PREFIX").unwrap_or_default());
    let creds = std::env::var("NATS_CREDS").ok().filter(|v| !v.is_empty());
    let config = LogConfig { url: addresses.nats_url, creds, names, replicas: 1 };
    let log = log::connect("arbees-verify", &config, &CancellationToken::new()).await.context("the log is away")?;
    let is_watched = std::io::stderr().is_terminal();
    let report = verify(&log, &pool, |done, of| {
        if is_watched {
            progress(done, of);
        }
    });
    let report = report.await?;
    if look.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("log folded up to     {:>10}", report.sequence);
        println!("invalid messages     {:>10}", report.invalid_messages);
        for (table, rows) in &report.rows {
            println!("{table:<20} {rows:>10} rows compared");
        }
        println!("state hash           {}", &report.state_hash);
        report.first_differences.iter().for_each(|difference| println!("DIFFERS  {difference}"));
    }
    match report.differences {
        0 => {
            if !look.json {
                println!("the tables equal the fold of the log");
            }
            Ok(())
        }
        n => bail!("{n} difference(s) between the tables and the log"),
    }
}

#[allow(clippy::print_stderr)]
fn progress(done: u64, of: u64) {
    eprintln!("{done} of {of} events folded");
}
