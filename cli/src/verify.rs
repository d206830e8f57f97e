//! `arbees verify`

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use arbees_core::config::LogConfig;
use arbees_core::log;
use arbees_projections::verify::verify;
use arbees_proto::subject::Names;
use tokio_util::sync::CancellationToken;

use crate::{Look, addresses, show};

/// A person is waiting: a log that does not answer within this is said to be away.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Events by which a running projector may be behind at some moment: a few of its batches.
const MAX_BEHIND: u64 = 10_000;

/// Compares the tables with the fold of the log.
pub async fn run(look: &Look) -> Result<()> {
    let addresses = addresses::find(look)?;
    let pool = show::connect(&addresses.database_url).await?;
    let names = Names::new(&addresses.stream_prefix);
    let config = LogConfig { url: addresses.nats_url, creds: addresses.nats_creds, names, replicas: 1 };
    let never = CancellationToken::new();
    let connecting = tokio::time::timeout(ANSWER_WITHIN, log::connect("arbees-verify", &config, &never));
    let log = connecting.await.context("the log is away")??;
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
        println!("log folded up to     {:>10} of {}", report.sequence, report.log_end);
        println!("invalid messages     {:>10}", report.invalid_messages);
        for (table, rows) in &report.rows {
            println!("{table:<20} {rows:>10} rows compared");
        }
        println!("state hash           {}", &report.state_hash);
        report.first_differences.iter().for_each(|difference| println!("DIFFERS  {difference}"));
    }
    let behind = report.log_end.saturating_sub(report.sequence);
    if behind > MAX_BEHIND {
        bail!("the tables are {behind} events behind the log: is the projector running?");
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
