//! `arbees up`: every program its own process, stopped in order.

mod children;
mod ground;
mod screen;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::Up;
use crate::addresses::{Addresses, DEFAULT_FOLDER};
use children::Children;
use ground::Ground;
use screen::Screen;

/// How often the figures are shown.
const SHOW_EVERY: Duration = Duration::from_secs(5);

/// Starts everything, shows how it goes, and stops everything.
pub async fn run(args: Up) -> Result<()> {
    if !(args.speed.is_finite() && args.speed > 0.0) {
        bail!("--speed {} is refused: allowed are numbers above 0", args.speed);
    }
    let (home, run) = folders(args.data.as_deref())?;
    let screen = Screen::new(args.plain);
    let mut asked = Asked::new()?;
    let begun = Instant::now();
    let mut ground = None;
    let mut children = Children::new(&args, &run)?;
    let started = async {
        let ground = ground.insert(Ground::start(&args, &run, &screen).await?);
        children.start(&args, ground, &screen).await?;
        let addresses = children.addresses(ground);
        addresses.write(&home)?;
        anyhow::Ok(addresses)
    };
    let started = tokio::select! {
        started = started => Some(started),
        () = asked.next() => None,
    };
    let result = match started {
        None => Ok(()),
        Some(Err(error)) => Err(error),
        Some(Ok(addresses)) => {
            screen.line(&format!(
                "ready in {:.1} s; look around with `arbees status`, `games`, `shards`, `explain`{}",
                begun.elapsed().as_secs_f64(),
                addresses.dashboard().map(|url| format!(", or at {url}")).unwrap_or_default()
            ));
            tokio::select! {
                result = watch(&mut children, &addresses, &screen, args.limit) => result,
                () = asked.next() => Ok(()),
            }
        }
    };
    screen.line("stopping");
    let stopping = async {
        let stopped = children.programs.stop_all(|line| screen.line(&format!("  {line}"))).await;
        if let Some(ground) = ground {
            ground.stop(&screen).await?;
        }
        stopped
    };
    // A second signal kills what is left: the children go when they are dropped.
    let stopped = tokio::select! {
        stopped = stopping => stopped,
        () = asked.next() => Err(anyhow::anyhow!("asked a second time: what still ran was killed")),
    };
    Addresses::remove(&home);
    result.and(stopped)
}

/// The signals that ask to stop; a terminal that closes asks, too.
struct Asked([Signal; 3]);

impl Asked {
    fn new() -> Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [a, b, c] = kinds.map(signal);
        Ok(Self([a?, b?, c?]))
    }

    async fn next(&mut self) {
        let [a, b, c] = &mut self.0;
        tokio::select! {
            _ = a.recv() => {}
            _ = b.recv() => {}
            _ = c.recv() => {}
        }
    }
}

/// Shows figures until the time is over; an error when a program ended that should not have.
async fn watch(children: &mut Children, addresses: &Addresses, screen: &Screen, limit: Option<Duration>) -> Result<()> {
    let begun = Instant::now();
    let pool = crate::show::connect(&addresses.database_url).await?;
    let mut last_shown = Instant::now();
    let mut died = Vec::new();
    while limit.is_none_or(|limit| begun.elapsed() < limit) {
        tokio::time::sleep(Duration::from_millis(200)).await;
        for dead in children.programs.new_dead() {
            screen.line(&format!("  {dead}"));
            died.push(dead);
        }
        if last_shown.elapsed() >= SHOW_EVERY {
            last_shown = Instant::now();
            match arbees_projections::queries::summary(&pool).await {
                Ok(s) => screen.status(&format!(
                    "games: {} live, {} scheduled, {} suspended, {} over | {} assigned, {} not yet confirmed, {} waiting | {} states | log at {}",
                    s.live, s.scheduled, s.suspended, s.over, s.assigned, s.unconfirmed, s.queued, s.game_states, s.sequence
                )),
                Err(error) => screen.status(&format!("tables: {error}")),
            }
        }
    }
    if died.is_empty() { Ok(()) } else { bail!("{} program(s) ended by themselves", died.len()) }
}

/// The folder where other commands look, and the one for this run's data and logs.
fn folders(data: Option<&Path>) -> Result<(PathBuf, PathBuf)> {
    let home = data.map_or_else(|| PathBuf::from(DEFAULT_FOLDER), Path::to_owned);
    std::fs::create_dir_all(&home).with_context(|| format!("creating {}", home.display()))?;
    let home = home.canonicalize()?;
    if let Some(other) = Addresses::read(&home).filter(Addresses::is_running) {
        bail!("already up in {} (process {}); stop it first, or give another --data", home.display(), other.up);
    }
    let left = Addresses::read(&home).map(|a| a.left_over()).unwrap_or_default();
    if !left.is_empty() {
        bail!("programs of an `up` that was killed still run: {}; end them first", left.join(", "));
    }
    if data.is_some() {
        return Ok((home.clone(), home));
    }
    let run = home.join("run");
    if run.exists() {
        std::fs::remove_dir_all(&run).with_context(|| format!("removing the last run in {}", run.display()))?;
    }
    std::fs::create_dir_all(&run)?;
    Ok((home, run))
}
