//! Finding games: all leagues' scoreboards at once, every so often. One league's trouble is its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arbees_core::alerts::{Alerter, Severity};
use arbees_core::espn::{Espn, EspnError, Slate};
use arbees_core::metrics::{figure, gauge};
use arbees_fleet::Input;
use arbees_proto::{GameId, League};
use chrono::Utc;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::inbox::Mail;

/// Failed cycles in a row that are still taken for a hiccup.
const HICCUP_CYCLES: u32 = 3;

/// Looks for games until canceled.
pub async fn run(espn: Espn, every: Duration, schedule_every: Duration, inbox: mpsc::Sender<Mail>, alerter: Alerter) {
    let mut cycle = tokio::time::interval(every);
    cycle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut scheduled: Option<Instant> = None;
    let mut failures: BTreeMap<League, u32> = BTreeMap::new();
    loop {
        cycle.tick().await;
        let is_schedule_due = scheduled.is_none_or(|at| at.elapsed() >= schedule_every);
        if is_schedule_due {
            scheduled = Some(Instant::now());
        }
        let now = Utc::now();
        let asked = League::ALL.map(|league| {
            let espn = espn.clone();
            async move { (league, espn.scoreboard(league, now).await) }
        });
        let failing = |failures: &BTreeMap<League, u32>| failures.values().filter(|n| **n > 0).count();
        for (league, answer) in futures::future::join_all(asked).await {
            note(&mut failures, league, &answer);
            tell(&alerter, &failures, league, &answer);
            gauge!("arbees_discovery_failing_leagues").set(figure(failing(&failures)));
            let Ok(slate) = answer else { continue };
            let games = slate.games.iter().map(|g| g.report.clone()).collect();
            let mail = Mail::Input(Input::Slate { games, schedule: is_schedule_due });
            if inbox.send(mail).await.is_err() {
                return;
            }
        }
    }
}

fn note(failures: &mut BTreeMap<League, u32>, league: League, answer: &Result<Arc<Slate>, EspnError>) {
    let count = failures.entry(league).or_default();
    match answer {
        Ok(slate) => {
            if *count > HICCUP_CYCLES {
                tracing::info!(%league, failed_cycles = *count, "scoreboard is back");
            }
            *count = 0;
            for unreadable in &slate.unreadable {
                tracing::debug!(%league, %unreadable, "event of a scoreboard skipped");
            }
        }
        Err(error) => {
            *count += 1;
            if *count == 1 {
                tracing::warn!(%error, "no scoreboard");
            } else if *count == HICCUP_CYCLES + 1 {
                tracing::error!(%error, failed_cycles = *count, "discovery is failing");
            }
        }
    }
}

/// People are told when a league's slates fail for longer than a hiccup, and when they are back.
fn tell(alerter: &Alerter, failures: &BTreeMap<League, u32>, league: League, answer: &Result<Arc<Slate>, EspnError>) {
    let count = failures.get(&league).copied().unwrap_or(0);
    match answer {
        Ok(_) => alerter.settle("discovery_failing", league.as_str()),
        Err(error) if count > HICCUP_CYCLES => {
            let summary = format!("no scoreboard of {league} in {count} tries: {error}");
            alerter.raise("discovery_failing", league.as_str(), Severity::Warning, summary);
        }
        Err(_) => {}
    }
}

/// Asks for one game that is on no slate.
pub async fn ask(espn: Espn, game: GameId, inbox: mpsc::Sender<Mail>) {
    match espn.game(&game).await {
        Ok(slate) => {
            let games = slate.games.into_iter().map(|g| g.report).collect();
            // A closed inbox means that we are stopping.
            let _ = inbox.send(Mail::Input(Input::Slate { games, schedule: false })).await;
        }
        Err(error) => tracing::info!(%game, %error, "game is on no slate and not to be had by id, kept"),
    }
}
