//! Evening out, gently: when a shard has joined or come back, a few games a minute move from the fullest to the emptiest.

use arbees_proto::GameId;

use super::Fleet;
use super::place::Grounds;
use crate::placement::{Choice, Place};
use crate::settings::{REBALANCE_EVERY, REBALANCE_GAMES, REBALANCE_REST};
use crate::state::Status;

impl Fleet {
    /// Moves one game if that evens out the fleet by enough, and none was moved lately.
    pub(super) fn rebalance(&mut self) {
        let now_us = self.now.steady_us;
        let lately = self.seen.rebalanced_us.is_some_and(|at| now_us - at < REBALANCE_EVERY);
        if lately || self.state.paused || self.state.brake_since_us.is_some() || !self.is_all_well() {
            return;
        }
        let places: Vec<Place> = self.places().into_iter().filter(|p| p.refusal.is_none() && p.max_games > 0).collect();
        let share = |p: &Place| u64::from(p.load) * 1_000 / u64::from(p.max_games);
        let by_share = |p: &&Place| (share(p), p.shard.clone());
        let (Some(fullest), Some(emptiest)) = (places.iter().max_by_key(by_share), places.iter().min_by_key(by_share))
        else {
            return;
        };
        let is_uneven = share(fullest) > share(emptiest) + 10 * u64::from(self.settings.rebalance_share)
            && fullest.load > emptiest.load + REBALANCE_GAMES;
        if !is_uneven || !emptiest.has_room() {
            return;
        }
        let Some(game) = self.movable(fullest) else { return };
        let to = emptiest.shard.clone();
        self.seen.rebalanced_us = Some(now_us);
        let rule = "fullest to emptiest, a few games a minute";
        let why = Grounds { cause: "the fleet is uneven", rule, event: None };
        self.give(&game, &to, why, Choice::default());
    }

    /// Whether there is nothing else to do: moves for evenness wait for all others.
    fn is_all_well(&self) -> bool {
        let waits = self.state.games.values().any(|g| g.queued_since_us.is_some());
        let is_recovering = |s: &crate::state::Service| matches!(s.status, Status::Recovered | Status::Degraded);
        !waits && !self.state.services.values().any(is_recovering)
    }

    /// The game of `place` that was given to it last, of those that have rested for long enough.
    fn movable(&self, place: &Place) -> Option<GameId> {
        let now_us = self.now.wall_us;
        let its = self.owned().filter_map(|(id, g)| Some((id, g, g.owner.as_ref()?)));
        let rested = its.filter(|(_, g, o)| {
            o.shard == place.shard && g.pin.is_none() && now_us - o.since_us >= REBALANCE_REST && !g.phase.is_over()
        });
        rested.max_by_key(|(_, _, o)| o.epoch).map(|(id, _, _)| id.clone())
    }
}
