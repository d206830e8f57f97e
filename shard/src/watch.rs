//! Watching: one poll of a league's scoreboard serves all its games.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arbees_core::espn::{Espn, EspnError, Sighting, Slate};
use arbees_core::retry::Policy;
use arbees_fleet::game_set::Held;
use arbees_proto::{GameId, League, ShardId, v1};
use chrono::Utc;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// What a poll brought.
pub type Polled = (League, Result<Arc<Slate>, EspnError>);

/// The polls that run: one for each league with games. Dropping it ends them.
#[derive(Debug)]
pub struct Polls {
    espn: Espn,
    every: Duration,
    to: mpsc::Sender<Polled>,
    running: BTreeMap<League, JoinHandle<()>>,
}

impl Polls {
    /// No polls yet.
    pub const fn new(espn: Espn, every: Duration, to: mpsc::Sender<Polled>) -> Self {
        Self { espn, every, to, running: BTreeMap::new() }
    }

    /// Polls exactly the leagues of `games`.
    pub fn follow<'a>(&mut self, games: impl Iterator<Item = &'a GameId>) {
        let wanted: std::collections::BTreeSet<League> = games.map(GameId::league).collect();
        self.running.retain(|league, poll| {
            let keep = wanted.contains(league);
            if !keep {
                poll.abort();
            }
            keep
        });
        for league in wanted {
            let (espn, every, to) = (&self.espn, self.every, &self.to);
            self.running.entry(league).or_insert_with(|| tokio::spawn(poll(espn.clone(), league, every, to.clone())));
        }
    }
}

impl Drop for Polls {
    fn drop(&mut self) {
        self.running.values().for_each(JoinHandle::abort);
    }
}

/// Polls one league for ever; slower while it fails.
async fn poll(espn: Espn, league: League, every: Duration, to: mpsc::Sender<Polled>) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut delays = Policy::patient().delays();
    loop {
        ticks.tick().await;
        let answer = espn.scoreboard(league, Utc::now()).await;
        let is_failure = answer.is_err();
        if to.send((league, answer)).await.is_err() {
            return;
        }
        if is_failure {
            tokio::time::sleep(delays.next_delay()).await;
        } else {
            delays.reset();
        }
    }
}

/// What a shard tells of a game it sees.
#[must_use]
pub fn state_of(me: &ShardId, held: &Held, seen: &Sighting) -> v1::GameStateChanged {
    let name = |team: &Option<v1::Team>| team.as_ref().map(|t| t.name.clone()).unwrap_or_default();
    let view = seen.view.clone();
    v1::GameStateChanged {
        game: held.game.id.clone(),
        shard: me.to_string(),
        epoch: held.epoch.0,
        status: seen.report.status.clone(),
        state: view.state,
        home_score: view.home_score,
        away_score: view.away_score,
        period: view.period,
        clock: view.clock,
        possession: view.possession,
        home_win_prob: view.home_win_prob,
        home_team: name(&seen.report.info.home),
        away_team: name(&seen.report.info.away),
    }
}
