//! `arbees export`: events as CSV, for notebooks.

use std::fs::File;
use std::io::{BufWriter, IsTerminal as _, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use arbees_core::log::Stored;
use arbees_core::time::rfc3339;
use arbees_projections::audit::story;

use crate::{Past, Which, audit};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(500);
const COLUMNS: [&str; 11] = [
    "stream",
    "sequence",
    "stored_at",
    "occurred_at",
    "subject",
    "event_type",
    "cause",
    "rule",
    "event_id",
    "causation_id",
    "event",
];

/// Writes what `which` says into `out`, or to standard output. A file is there whole or not at all.
pub async fn run(which: &Which, out: Option<&Path>, past: &Past) -> Result<()> {
    let range = audit::range(which, past).await?;
    let part = out.map(|path| PathBuf::from(format!("{}.part", path.display())));
    let sink: Box<dyn Write + Send> = match &part {
        Some(path) => Box::new(File::create(path).with_context(|| format!("creating {}", path.display()))?),
        None => Box::new(std::io::stdout()),
    };
    let mut writer = csv::Writer::from_writer(BufWriter::new(sink));
    writer.write_record(COLUMNS)?;
    let is_watched = std::io::stderr().is_terminal();
    let (mut count, mut told, mut failed) = (0u64, Instant::now(), None);
    let keep = |stored: Stored| {
        let Some(row) = row(range.base, &stored, which) else { return ControlFlow::Continue(()) };
        if let Err(error) = writer.write_record(row) {
            failed = Some(error);
            return ControlFlow::Break(());
        }
        count += 1;
        if is_watched && told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            audit::note(&format!("{count} events, at {} of {}", stored.sequence, range.to));
        }
        ControlFlow::Continue(())
    };
    range.source.read(range.base, &range.filters, range.from, range.to, keep).await?;
    if let Some(error) = failed {
        return Err(error).context("writing");
    }
    writer.flush()?;
    drop(writer);
    if let (Some(part), Some(out)) = (part, out) {
        std::fs::rename(&part, out).with_context(|| format!("writing {}", out.display()))?;
        println!("{count} events of {} in {}", range.base, out.display());
    }
    Ok(())
}

/// One event; none when it is not asked for. What is no event has its columns empty.
fn row(stream: &str, stored: &Stored, which: &Which) -> Option<[String; 11]> {
    let event = stored.event().ok();
    let line = event.as_ref().map(|event| story::line_of(stored.sequence, event));
    let event_type = line.as_ref().map(|l| l.event_type.clone()).unwrap_or_default();
    if which.event_type.as_ref().is_some_and(|wanted| *wanted != event_type) {
        return None;
    }
    let payload = event.and_then(|e| serde_json::to_string(&e.payload).ok()).unwrap_or_default();
    let at = |us: i64| if us > 0 { rfc3339(us) } else { String::new() };
    let [cause, rule, id, causation] =
        line.as_ref().map(|l| [&l.cause, &l.rule, &l.event_id, &l.causation_id].map(Clone::clone)).unwrap_or_default();
    Some([
        stream.to_owned(),
        stored.sequence.to_string(),
        at(stored.stored_at_ns / 1_000),
        at(line.map_or(0, |l| l.at_us)),
        stored.subject.clone(),
        event_type,
        cause,
        rule,
        id,
        causation,
        payload,
    ])
}
