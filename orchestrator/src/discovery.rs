//! Finding games: each league's scoreboard, every so often. One league's trouble is its own.

use std::time::{Duration, Instant};

use arbees_core::alerts::{Alerter, Severity};
use arbees_core::espn::{Espn, EspnError, Slate};
use arbees_core::metrics::gauge;
use arbees_fleet::Input;
use arbees_proto::{GameId, League};
use chrono::Utc;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::inbox::Mail;

/// Failed cycles in a row that are still taken for a hiccup.
const HICCUP_CYCLES: u32 = 3;

/// Looks for games until canceled, in each league for itself: a slow one keeps no other waiting.
pub async fn run(espn: Espn, every: Duration, schedule_every: Duration, inbox: mpsc::Sender<Mail>, alerter: Alerter) {
    let look = |league| {
        let (espn, inbox, alerter) = (espn.clone(), inbox.clone(), alerter.clone());
        Looking { espn, league, inbox, alerter, failures: Failures::default() }.run(every, schedule_every)
    };
    futures::future::join_all(League::ALL.map(look)).await;
}

/// Cycles of a league that failed in a row; counted as a failing league while there are any.
#[derive(Debug, Default)]
struct Failures(u32);

impl Failures {
    fn set(&mut self, count: u32) {
        let change = f64::from(u8::from(count > 0)) - f64::from(u8::from(self.0 > 0));
        gauge!("arbees_discovery_failing_leagues").increment(change);
        self.0 = count;
    }
}

impl Drop for Failures {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// The looks at one league.
struct Looking {
    espn: Espn,
    league: League,
    inbox: mpsc::Sender<Mail>,
    alerter: Alerter,
    failures: Failures,
}

impl Looking {
    async fn run(mut self, every: Duration, schedule_every: Duration) {
        let mut cycle = tokio::time::interval(every);
        cycle.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut scheduled: Option<Instant> = None;
        loop {
            cycle.tick().await;
            let is_schedule_due = scheduled.is_none_or(|at| at.elapsed() >= schedule_every);
            match self.espn.scoreboard(self.league, Utc::now()).await {
                Ok(slate) => {
                    if is_schedule_due {
                        scheduled = Some(Instant::now());
                    }
                    self.found(&slate);
                    let games = slate.games.iter().map(|g| g.report.clone()).collect();
                    let mail = Mail::Input(Input::Slate { games, schedule: is_schedule_due });
                    if self.inbox.send(mail).await.is_err() {
                        return;
                    }
                }
                // It was not asked: nothing new is known.
                Err(EspnError::Resting { .. }) => {}
                Err(error) => self.failed(&error),
            }
        }
    }

    fn found(&mut self, slate: &Slate) {
        let league = self.league;
        if self.failures.0 > HICCUP_CYCLES {
            tracing::info!(%league, failed_cycles = self.failures.0, "scoreboard is back");
        }
        self.failures.set(0);
        for unreadable in &slate.unreadable {
            tracing::debug!(%league, %unreadable, "event of a scoreboard skipped");
        }
        self.alerter.settle("discovery_failing", league.as_str());
    }

    /// People are told when a league's slates fail for longer than a hiccup.
    fn failed(&mut self, error: &EspnError) {
        let (league, count) = (self.league, self.failures.0 + 1);
        self.failures.set(count);
        if count == 1 {
            tracing::warn!(%error, "no scoreboard");
        } else if count == HICCUP_CYCLES + 1 {
            tracing::error!(%error, failed_cycles = count, "discovery is failing");
        }
        if count > HICCUP_CYCLES {
            let summary = format!("no scoreboard of {league} in {count} tries: {error}");
            self.alerter.raise("discovery_failing", league.as_str(), Severity::Warning, summary);
        }
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
