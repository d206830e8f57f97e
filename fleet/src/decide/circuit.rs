//! A shard's circuit breaker: who does not take up what it is given is given nothing for a while, then tried with one game.

use arbees_proto::{EventId, GameId, Payload, ShardId, v1};

use super::alert::Severity;
use super::{Fleet, reason};
use crate::state::{Circuit, ServiceKey};

impl Fleet {
    /// `shard` did not take up `game` though it must have heard of it.
    pub(super) fn note_failure(&mut self, shard: &ShardId, game: &GameId, why: &'static str, cause: Option<EventId>) {
        let key = ServiceKey::shard(shard.clone());
        let Some(breaker) = self.state.services.get(&key).map(|s| s.breaker) else { return };
        if breaker.circuit == Circuit::Open {
            // It is given nothing, and loses what it has: more of the same says nothing new.
            self.unplaced = true;
            return;
        }
        let epoch = self.state.games.get(game).and_then(|g| g.owner.as_ref()).map_or(0, |o| o.epoch.0);
        let failures = breaker.failures.saturating_add(1);
        let failed = v1::AssignmentFailed { shard: shard.to_string(), game: game.to_string(), epoch, failures };
        let rule = "a report that covers the assignment does not name it";
        self.emit_service(Payload::AssignmentFailed(failed), reason(why, rule), cause);
        let opens = match breaker.circuit {
            Circuit::Closed => failures >= self.settings.circuit_failures,
            Circuit::HalfOpen | Circuit::Open => true,
        };
        if opens {
            let opened = v1::CircuitOpened { shard: shard.to_string(), reason: why.to_owned(), failures };
            let rule = if breaker.circuit == Circuit::HalfOpen { "failed its trial" } else { "failures in a row" };
            self.emit_service(Payload::CircuitOpened(opened), reason(why, rule), cause);
            let summary = format!("shard {shard} is given no more games: {failures} in a row {why}");
            self.raise("breaker_opened", shard.as_str(), Severity::Warning, summary);
        }
        self.unplaced = true;
    }

    /// Closes the breaker of a shard that took up enough games in its trial.
    pub(super) fn close_if_proven(&mut self, shard: &ShardId, cause: Option<EventId>) {
        let key = ServiceKey::shard(shard.clone());
        let Some(breaker) = self.state.services.get(&key).map(|s| s.breaker) else { return };
        if breaker.circuit != Circuit::HalfOpen || breaker.successes < self.settings.circuit_successes {
            return;
        }
        let was_open_us = (self.now.wall_us - breaker.opened_at_us).max(0);
        let closed = v1::CircuitClosed { shard: shard.to_string(), was_open_us };
        self.emit_service(Payload::CircuitClosed(closed), reason("it takes up games again", "passed its trial"), cause);
        self.settle("breaker_opened", shard.as_str());
        self.unplaced = true;
    }

    /// Tries shards whose breaker has been open for long enough.
    pub(super) fn try_circuits(&mut self) {
        let open = self.state.services.iter().filter(|(_, s)| s.breaker.circuit == Circuit::Open);
        let open: Vec<_> = open.map(|(key, _)| key.clone()).collect();
        self.seen.circuits.retain(|key, _| open.contains(key));
        for key in open {
            let since_us = *self.seen.circuits.entry(key.clone()).or_insert(self.now.steady_us);
            if self.now.steady_us - since_us >= self.settings.circuit_half_open {
                self.seen.circuits.remove(&key);
                let half = Payload::CircuitHalfOpened(v1::CircuitHalfOpened { shard: key.instance.to_string() });
                self.emit_service(half, reason("it has been open for long enough", "one game as a trial"), None);
            }
        }
    }
}
