//! For how long games in play were watched by nobody: by the decisions of one history, and the heartbeats that are the same for
//! all. Looked at five times a second, and counted from when it began.

use std::collections::BTreeMap;

use arbees_fleet::state::{Game, Phase};
use arbees_fleet::{Settings, State};
use arbees_proto::{GameId, ShardId};

/// When each shard beat last, and for how long it may be silent: when two of its beats are missing it does not watch.
#[derive(Debug)]
pub(super) struct Beats {
    last_us: BTreeMap<ShardId, (i64, bool)>,
    /// Of those that beat on the log, and over Redis.
    limit_us: i64,
    redis_limit_us: i64,
}

impl Beats {
    /// Nobody was heard yet of shards that beat so often.
    pub const fn new(settings: &Settings) -> Self {
        Self {
            last_us: BTreeMap::new(),
            limit_us: 2 * settings.log_interval,
            redis_limit_us: 5 * settings.redis_interval / 2,
        }
    }

    /// Whoever beats on the log is not there when its beats are further apart.
    pub const fn limit_us(&self) -> i64 {
        self.limit_us
    }

    pub fn note(&mut self, shard: ShardId, now_us: i64, on_log: bool) {
        self.last_us.insert(shard, (now_us, on_log));
    }

    /// Since when it has been silent, if it has been for too long; since ever, if it was never heard.
    fn silent_since(&self, shard: &ShardId, now_us: i64) -> Option<i64> {
        let Some((at_us, on_log)) = self.last_us.get(shard) else { return Some(0) };
        let limit_us = if *on_log { self.limit_us } else { self.redis_limit_us };
        (now_us - at_us > limit_us).then_some(*at_us)
    }
}

/// Counts as time goes. Microseconds.
#[derive(Debug)]
pub(super) struct Measure {
    from_us: i64,
    since_us: BTreeMap<GameId, i64>,
    totals: BTreeMap<GameId, i64>,
    longest_us: i64,
}

impl Measure {
    pub const fn new(from_us: i64) -> Self {
        Self { from_us, since_us: BTreeMap::new(), totals: BTreeMap::new(), longest_us: 0 }
    }

    /// Looks at who watches what.
    pub fn look(&mut self, now_us: i64, state: &State, beats: &Beats) {
        for (id, game) in &state.games {
            match unwatched_since(game, now_us, beats) {
                Some(since_us) => {
                    self.since_us.entry(id.clone()).or_insert(since_us.max(self.from_us));
                }
                None => self.close(id, now_us),
            }
        }
    }

    fn close(&mut self, id: &GameId, now_us: i64) {
        if let Some(since_us) = self.since_us.remove(id) {
            let took_us = (now_us - since_us).max(0);
            *self.totals.entry(id.clone()).or_default() += took_us;
            self.longest_us = self.longest_us.max(took_us);
        }
    }

    /// What lasts has lasted until now.
    pub fn end(&mut self, now_us: i64) {
        let lasting: Vec<GameId> = self.since_us.keys().cloned().collect();
        lasting.iter().for_each(|id| self.close(id, now_us));
    }

    pub const fn totals(&self) -> &BTreeMap<GameId, i64> {
        &self.totals
    }

    pub const fn longest_us(&self) -> i64 {
        self.longest_us
    }
}

/// Since when nobody watches it, if it is in play and nobody does.
fn unwatched_since(game: &Game, now_us: i64, beats: &Beats) -> Option<i64> {
    if game.phase != Phase::Live {
        return None;
    }
    let since_us = match &game.owner {
        None => Some(game.phase_since_us),
        Some(owner) => match owner.confirmed_at_us {
            None => Some(owner.since_us),
            Some(confirmed_us) => beats.silent_since(&owner.shard, now_us).map(|at_us| at_us.max(confirmed_us)),
        },
    };
    since_us.map(|at_us| at_us.max(game.phase_since_us).min(now_us))
}

#[cfg(test)]
mod tests {
    use arbees_fleet::state::Owner;

    use super::super::samples::{S, live};
    use super::*;

    fn with(owner: Option<Owner>) -> State {
        let mut state = State::default();
        state.games.insert("nfl-1".parse().unwrap(), live(100 * S, owner));
        state
    }

    fn owner(confirmed_at_us: Option<i64>) -> Option<Owner> {
        super::super::samples::owner(1, 110 * S, confirmed_at_us)
    }

    fn beats(at_us: i64) -> Beats {
        let mut beats = Beats::new(&Settings::default());
        beats.note("a".parse().unwrap(), at_us, true);
        beats
    }

    #[test]
    fn a_game_is_unwatched_until_its_owner_says_otherwise_and_from_its_owners_last_beat() {
        let mut measure = Measure::new(0);
        measure.look(105 * S, &with(None), &beats(105 * S));
        measure.look(112 * S, &with(owner(None)), &beats(112 * S));
        measure.look(113 * S, &with(owner(Some(113 * S))), &beats(113 * S));
        assert_eq!(measure.totals().values().copied().collect::<Vec<_>>(), [13 * S], "since it is in play");
        measure.look(115 * S, &with(owner(Some(113 * S))), &beats(113 * S));
        assert!(measure.since_us.is_empty(), "two seconds are no silence");
        measure.look(116 * S, &with(owner(Some(113 * S))), &beats(113 * S));
        measure.look(120 * S, &with(owner(Some(113 * S))), &beats(120 * S));
        measure.end(130 * S);
        assert_eq!((measure.totals().values().sum::<i64>(), measure.longest_us()), (20 * S, 13 * S));
        // Whoever was not heard since the beginning does not watch.
        let mut measure = Measure::new(200 * S);
        measure.look(200 * S, &with(owner(Some(113 * S))), &Beats::new(&Settings::default()));
        measure.end(203 * S);
        assert_eq!(measure.longest_us(), 3 * S);
    }
}
