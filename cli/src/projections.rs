//! `arbees projections`: the tables built anew beside the live ones, and what was put aside.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use arbees_core::config::Env;
use arbees_core::db::DbConfig;
use arbees_projections::letters::{self, Retried};
use arbees_projections::rebuild::{self, Progress};
use clap::Subcommand;
use serde_json::json;

use crate::{Look, addresses, show, table};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(500);

#[derive(Subcommand, Debug)]
pub enum Projections {
    /// Build the tables anew from the log beside the live ones, and swap them in at once. Queries go on meanwhile; Ctrl-C leaves
    /// all as it was.
    ///
    /// Example: arbees projections rebuild --table assignment_history
    Rebuild {
        /// Only this one
        #[arg(long)]
        table: Option<String>,
        #[command(flatten)]
        look: Look,
    },
    /// Messages of the log that are no valid events, and why.
    ///
    /// Example: arbees projections dead-letters --stream CONTROL
    DeadLetters {
        /// Only of this stream: CONTROL, HEARTBEATS, GAME_STATES or ALERTS
        #[arg(long)]
        stream: Option<String>,
        /// Only this one, with headers and payload
        #[arg(long, requires = "stream")]
        sequence: Option<i64>,
        #[command(flatten)]
        look: Look,
    },
    /// Try them again: a newer program may read what an older one could not.
    ///
    /// Example: arbees projections retry --stream GAME_STATES
    Retry {
        /// Only of this stream
        #[arg(long)]
        stream: Option<String>,
        #[command(flatten)]
        look: Look,
    },
}

/// Does what is asked for.
pub async fn run(what: Projections) -> Result<()> {
    match what {
        Projections::Rebuild { table, look } => rebuild(table.as_deref(), &look).await,
        Projections::DeadLetters { stream, sequence, look } => dead_letters(stream.as_deref(), sequence, &look).await,
        Projections::Retry { stream, look } => retry(stream.as_deref(), &look).await,
    }
}

async fn rebuild(table: Option<&str>, look: &Look) -> Result<()> {
    let addresses = addresses::find(look)?;
    let log = addresses::log(&addresses).await?;
    let url = addresses.database_url.clone();
    let mut env = Env::new(move |name: &str| (name == "DATABASE_URL").then(|| url.clone()));
    let config = DbConfig::read(&mut env);
    let config = env.finish(config)?;
    let mut told = Instant::now();
    let is_watched = std::io::stderr().is_terminal();
    let building = rebuild::build(&log, &config, table, |progress| {
        if is_watched && told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            tell(progress);
        }
    });
    let built = tokio::select! {
        built = building => built?,
        _ = tokio::signal::ctrl_c() => bail!("canceled: the tables are as they were"),
    };
    // From here on it is done whole: whoever has waited for Ctrl-C once is not ended by it any more.
    let done = built.swap().await?;
    if look.json {
        return show::print_json(&done);
    }
    let what = table.unwrap_or("all tables");
    #[allow(clippy::cast_precision_loss)]
    let rate = done.messages as f64 / done.seconds;
    println!("{what} built anew from {} messages in {:.1} s, {rate:.0} a second", done.messages, done.seconds);
    println!("CONTROL up to {}; the live tables stood still for {:.0} ms", done.sequence, done.stopped_ms);
    Ok(())
}

#[allow(clippy::print_stderr, clippy::cast_precision_loss)]
fn tell(at: Progress) {
    let left = (at.of - at.done) as f64 / at.rate.max(1.0);
    eprintln!("{:<12} {:>10} of {:>10}  {:>7.0}/s  {left:>5.0} s left", at.stream, at.done, at.of, at.rate);
}

async fn dead_letters(stream: Option<&str>, sequence: Option<i64>, look: &Look) -> Result<()> {
    let letters = letters::all(&show::pool(look).await?, stream, sequence).await?;
    if look.json {
        return show::print_json(&letters);
    }
    if let Some(sequence) = sequence {
        let letter = letters.first().with_context(|| format!("no message {sequence} was put aside"))?;
        println!("{} {}  {}\n{}", letter.stream, letter.sequence, letter.subject, letter.error);
        println!("headers  {}\npayload  {}", letter.headers, letter.payload);
        return Ok(());
    }
    let row = |l: &letters::Letter| vec![l.stream.clone(), l.sequence.to_string(), l.subject.clone(), l.error.clone()];
    table::print(&["STREAM", "SEQUENCE", "SUBJECT", "ERROR"], &letters.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

async fn retry(stream: Option<&str>, look: &Look) -> Result<()> {
    let pool = show::pool(look).await?;
    let mut rows = Vec::new();
    for letter in letters::all(&pool, stream, None).await? {
        let became = letters::retry(&pool, &letter).await?;
        rows.push((letter, became));
    }
    if look.json {
        let line = |(l, became): &(letters::Letter, Retried)| json!({ "stream": l.stream, "sequence": l.sequence, "became": became });
        return show::print_json(&rows.iter().map(line).collect::<Vec<_>>());
    }
    let became = |retried: &Retried| match retried {
        Retried::Applied => "in the tables now".to_owned(),
        Retried::StillInvalid => "still no valid event".to_owned(),
        Retried::NeedsRebuild => "only `arbees projections rebuild` takes it in".to_owned(),
    };
    let row = |(l, r): &(letters::Letter, Retried)| vec![l.stream.clone(), l.sequence.to_string(), became(r)];
    table::print(&["STREAM", "SEQUENCE", ""], &rows.iter().map(row).collect::<Vec<_>>());
    Ok(())
}
