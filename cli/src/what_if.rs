//! `arbees what-if`: what other settings would have done, beside what happened.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use arbees_core::config::process_env;
use arbees_core::policy;
use arbees_projections::audit::Moment;
use arbees_projections::audit::what_if::{Compared, Move, Outcome, what_if};
use serde::Serialize;

use crate::audit::{clock, note, seconds, whole};
use crate::{Look, addresses, show, table};

/// What `--json` prints.
#[derive(Serialize)]
struct Told<'a> {
    /// The file's lines.
    policy: &'a BTreeMap<String, String>,
    #[serde(flatten)]
    compared: &'a Compared,
}

/// Replays from `from` to `to` under the settings of this shell and under those that the file makes of them.
pub async fn run(file: &Path, from: Moment, to: Moment, moves: bool, look: &Look) -> Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let around = |name: &str| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned());
    let (settings, lines) = policy::of_file(&text, around).with_context(|| file.display().to_string())?;
    if let Some(name) = ["LOG_HEARTBEAT_MS", "HEARTBEAT_INTERVAL_SECS"].into_iter().find(|n| lines.contains_key(*n)) {
        bail!("{}: {name} cannot be tried: heartbeats come as they were recorded", file.display());
    }
    let mut env = process_env();
    let as_set = policy::read(&mut env);
    let as_set = env.finish(as_set)?;
    let log = addresses::log(&addresses::find(look)?).await?;
    let is_watched = std::io::stderr().is_terminal();
    let compared = what_if(&log, &as_set, &settings, from, to, |done, of| {
        if is_watched {
            note(&format!("{done} of {of} heartbeats replayed"));
        }
    });
    let compared = compared.await?;
    if look.json {
        return show::print_json(&Told { policy: &lines, compared: &compared });
    }
    let columns: Vec<&Outcome> = std::iter::once(&compared.happened).chain(&compared.replayed).collect();
    if moves {
        return table::show(look, &["AT", "GAME", "FROM", "TO", "WHERE", "WHY"], &all_moves(&columns, look), &compared);
    }
    if !look.csv {
        println!("{} to {}, {} heartbeats", whole(compared.from_us), whole(compared.until_us), compared.heartbeats);
        println!("(heartbeats are kept since {})", whole(compared.kept_from_us));
        for (name, value) in &lines {
            println!("  {name}={value}");
        }
        println!();
    }
    let header = ["", "HAPPENED", "REPLAYED AS SET", "REPLAYED WITH THE POLICY"];
    table::show(look, &header, &rows(&columns), &compared)?;
    if !look.csv {
        columns.iter().flat_map(|c| &c.refused).collect::<BTreeSet<_>>().iter().for_each(|r| println!("refused: {r}"));
        println!(
            "\nThe second column tells how true the replay is: with the same settings it should be like the first."
        );
    }
    Ok(())
}

fn rows(columns: &[&Outcome]) -> Vec<Vec<String>> {
    let row = |what: &str, of: &dyn Fn(&Outcome) -> String| {
        std::iter::once(what.to_owned()).chain(columns.iter().map(|c| of(c))).collect::<Vec<_>>()
    };
    let mut rows = vec![
        row("moves", &|c| c.moves.len().to_string()),
        row("shards declared lost", &|c| c.lost.to_string()),
        row("  that beat again", &|c| c.came_back.to_string()),
        row("times the brake engaged", &|c| c.braked.to_string()),
        row("game-seconds unwatched", &|c| seconds(c.unwatched_us)),
        row("  longest at a stretch", &|c| seconds(c.longest_us)),
        row("  most of one game", &|c| {
            c.worst.as_ref().map_or_else(|| "-".to_owned(), |(game, us)| format!("{} {game}", seconds(*us)))
        }),
    ];
    let kinds: BTreeSet<&String> = columns.iter().flat_map(|c| c.alerts.keys()).collect();
    for kind in kinds {
        rows.push(row(&format!("alerts {kind}"), &|c| c.alerts.get(kind).copied().unwrap_or(0).to_string()));
    }
    rows
}

/// The moves of all columns in the order of time.
fn all_moves(columns: &[&Outcome], look: &Look) -> Vec<Vec<String>> {
    let mut all: Vec<(&Move, &str)> =
        columns.iter().flat_map(|c| c.moves.iter().map(|m| (m, c.name.as_str()))).collect();
    all.sort_by_key(|(m, _)| m.at_us);
    let row = |(m, name): &(&Move, &str)| {
        let at = if look.csv { whole(m.at_us) } else { clock(m.at_us) };
        let name = if name.is_empty() { "happened" } else { name };
        vec![at, m.game.clone(), m.from.clone(), m.to.clone(), name.to_owned(), m.why.clone()]
    };
    all.iter().map(row).collect()
}
