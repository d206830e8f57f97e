//! `arbees verify`: the tables against the fold of the log, and the log and its archive against what the leaders published.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;

use anyhow::{Result, bail};
use arbees_core::log::Log;
use arbees_projections::audit::Source;
use arbees_projections::audit::chain::{self, Heads, Proof};
use arbees_projections::verify::{Report, verify};
use serde::Serialize;
use sqlx::PgPool;

use crate::{Look, addresses, show};

/// Events by which a running projector may be behind at some moment: a few of its batches.
const MAX_BEHIND: u64 = 10_000;

/// Compares the tables with the fold of the log.
pub async fn run(full: bool, look: &Look) -> Result<()> {
    let addresses = addresses::find(look)?;
    let pool = show::connect(&addresses.database_url).await?;
    let log = addresses::log(&addresses).await?;
    let is_watched = std::io::stderr().is_terminal();
    let report = verify(&log, &pool, |done, of| {
        if is_watched {
            progress(done, of);
        }
    });
    let report = report.await?;
    let proofs = if full { prove_all(&log, pool, is_watched).await? } else { Vec::new() };
    if look.json {
        let chains = proofs.iter().cloned().collect();
        println!("{}", serde_json::to_string_pretty(&Whole { report: &report, chains })?);
    } else {
        println!("log folded up to     {:>10} of {}", report.sequence, report.log_end);
        println!("invalid messages     {:>10}", report.invalid_messages);
        for (table, rows) in &report.rows {
            println!("{table:<20} {rows:>10} rows compared");
        }
        println!("state hash           {}", &report.state_hash);
        report.first_differences.iter().for_each(|difference| println!("DIFFERS  {difference}"));
        for (name, proof) in &proofs {
            let (messages, heads) = (proof.messages, proof.heads);
            match &proof.first_bad {
                None => println!(
                    "{name}: {messages} messages, each chained to the one before; {heads} published heads agree"
                ),
                Some((sequence, what)) => println!("{name}: WRONG AT {sequence}: {what}"),
            }
        }
    }
    if let Some((name, proof)) = proofs.iter().find(|(_, proof)| proof.first_bad.is_some())
        && let Some((sequence, what)) = &proof.first_bad
    {
        bail!("{name} is not whole: at {sequence}, {what}");
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

/// What `--json` prints.
#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    report: &'a Report,
    /// With `--full`: of the log and of its archive.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    chains: BTreeMap<&'static str, Proof>,
}

/// The log and its archive, looked at message by message.
async fn prove_all(log: &Log, pool: PgPool, is_watched: bool) -> Result<Vec<(&'static str, Proof)>> {
    let heads = chain::published_heads(log).await?;
    let archive = Source::Archive { pool, names: log.names().clone() };
    let end = archive.end().await?;
    let mut proofs = Vec::new();
    for source in [Source::Log(log.clone()), archive] {
        // The projector may be a moment behind: what it has not archived yet is not missing.
        let its_end = if matches!(source, Source::Log(_)) { u64::MAX } else { end };
        let heads: Heads = heads.range(..=its_end).map(|(sequence, hash)| (*sequence, hash.clone())).collect();
        let proving = chain::prove(&source, &heads, |done| {
            if is_watched {
                progress(done, done);
            }
        });
        proofs.push((source.name(), proving.await?));
    }
    Ok(proofs)
}

#[allow(clippy::print_stderr)]
fn progress(done: u64, of: u64) {
    eprintln!("{done} of {of} events folded");
}
