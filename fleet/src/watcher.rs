//! A shard's mind: its games by the log, its lease, and what its heartbeat says of both. The shell polls, publishes and waits.

use std::collections::BTreeMap;

use arbees_proto::{Epoch, GameId, v1};

use crate::game_set::{Change, GameSet};
use crate::lease::Lease;

/// What a shard holds and may do.
#[derive(Clone, Debug)]
pub struct Watcher {
    set: GameSet,
    max_games: usize,
    /// The claim on its heartbeat subject.
    pub lease: Lease,
    has_acted: bool,
    stopping: bool,
}

impl Watcher {
    /// A shard that watches at most `max_games` of `set`.
    #[must_use]
    pub const fn new(set: GameSet, max_games: usize, lease: Lease) -> Self {
        Self { set, max_games, lease, has_acted: false, stopping: false }
    }

    /// The games the log gives to it.
    #[must_use]
    pub const fn set(&self) -> &GameSet {
        &self.set
    }

    /// Applies an event of one of its own filters.
    pub fn follow(&mut self, sequence: u64, event: &v1::Event) -> Option<Change> {
        let change = self.set.apply(sequence, event);
        match change {
            Some(Change::Readmitted { heartbeat_sequence }) => self.lease.readmitted(heartbeat_sequence),
            Some(_) => self.lease.beat_soon(),
            None => {}
        }
        change
    }

    /// The own part of CONTROL was read anew; it was asked for at `asked_us`.
    pub fn rejoined(&mut self, set: GameSet, asked_us: i64) {
        self.set = set;
        self.lease.rejoined(asked_us);
    }

    /// It was asked to stop: it watches on until its games are handed over.
    pub fn stop(&mut self) {
        self.stopping = true;
        self.lease.beat_soon();
    }

    /// The games to watch, each with its epoch: the oldest assignments, up to its capacity.
    #[must_use]
    pub fn watched(&self) -> BTreeMap<GameId, Epoch> {
        let mut by_age: Vec<_> = self.set.held().iter().map(|(id, held)| (held.epoch, id)).collect();
        by_age.sort();
        by_age.into_iter().take(self.max_games).map(|(epoch, id)| (id.clone(), epoch)).collect()
    }

    /// Whether it may tell anything of `game`, which it watches under `epoch`.
    #[must_use]
    pub fn may_tell(&self, now_us: i64, game: &GameId, epoch: Epoch) -> bool {
        self.lease.may_act(now_us) && self.set.held().get(game).is_some_and(|held| held.epoch == epoch)
    }

    /// What its next heartbeat says. `about` is what only the shell knows: who it is, its checks and metrics, and its own
    /// view of its health.
    #[must_use]
    pub fn beat(&mut self, now_us: i64, about: v1::Heartbeat) -> v1::Heartbeat {
        self.has_acted |= self.lease.may_act(now_us) || now_us >= self.lease.quiet_until_us();
        let entry = |(id, epoch): (&GameId, &Epoch)| v1::Watched { game: id.to_string(), epoch: epoch.0 };
        let watched = self.watched();
        let rejected = self.set.held().iter().filter(|(id, _)| !watched.contains_key(id));
        let is_deaf = self.lease.is_tail_dead(now_us);
        let mut checks = about.checks;
        checks.push(v1::Check { name: "log_tail_ok".to_owned(), ok: !is_deaf });
        let status = match about.status {
            _ if self.stopping => "stopping".to_owned(),
            _ if !self.has_acted => "starting".to_owned(),
            // It beats and hears nothing: who should have its games is somebody else.
            _ if is_deaf => "degraded".to_owned(),
            status => status,
        };
        v1::Heartbeat {
            status,
            checks,
            rejected: rejected.map(|(id, held)| entry((id, &held.epoch))).collect(),
            games: watched.iter().map(entry).collect(),
            last_applied: self.set.last_applied(),
            fence_sequence: self.lease.fence_sequence(),
            ..about
        }
    }
}
