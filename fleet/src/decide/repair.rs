//! What a shard should watch, compared with what it says it watches: missing games are told again and counted, foreign ones
//! taken away, ownerless ones adopted.

use arbees_proto::{Epoch, EventId, GameId, Payload, ShardId, v1};

use super::beat::Reported;
use super::{Effect, Fleet, Medium, reason};
use crate::settings::{FAILED_FOR, MAX_RESEND};
use crate::state::{Circuit, Game, Owner, ServiceKey, Status};

/// A command that was sent and is not yet seen to have worked. Times are steady.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    add: bool,
    at_us: i64,
    /// How often it was missing its effect.
    pub attempts: u32,
}

/// A restarted shard that hears of its games on Redis only, and is told all of them again. Times are steady.
#[derive(Debug, Clone)]
pub(super) struct Resync {
    due_us: i64,
    /// What is still to be told; none before it began.
    left: Option<Vec<GameId>>,
    told: u32,
}

impl Fleet {
    pub(super) fn repair(
        &mut self,
        key: &ServiceKey,
        beat: &v1::Heartbeat,
        reported: &Reported,
        medium: Medium,
        cause: Option<EventId>,
    ) {
        let shard = &key.instance;
        self.seen.sent.retain(|(s, id), sent| s != shard || reported.contains_key(id) != sent.add);
        let Some(status) = self.state.services.get(key).map(|s| s.status) else { return };
        self.adopt(shard, status, reported, cause);
        if !self.is_settled() {
            return;
        }
        // A report that may be older than what it is held against proves nothing.
        let covers = |sequence: u64| match medium {
            Medium::Log { .. } => beat.last_applied >= sequence,
            Medium::Redis => true,
        };
        // One that is about to be told all its games is not told twice.
        let is_told = matches!(status, Status::Starting | Status::Stopping) || self.seen.resyncs.contains_key(shard);
        if !is_told {
            self.repeat_missing(shard, reported, medium, covers, cause);
        }
        self.repeat_zombies(shard, reported, covers);
    }

    fn repeat_missing(
        &mut self,
        shard: &ShardId,
        reported: &Reported,
        medium: Medium,
        covers: impl Fn(u64) -> bool,
        cause: Option<EventId>,
    ) {
        let owned = self.state.games.iter().filter_map(|(id, g)| Some((id, g.owner.as_ref()?)));
        let missing: Vec<(GameId, Epoch)> = owned
            .filter(|(id, o)| o.shard == *shard && !reported.contains_key(*id) && covers(o.epoch.sequence()))
            .map(|(id, o)| (id.clone(), o.epoch))
            .collect();
        for (id, epoch) in missing {
            if self.repeat(shard, &id, epoch, true, medium) {
                self.note_failure(shard, &id, "not taken up", cause);
            }
        }
    }

    fn repeat_zombies(&mut self, shard: &ShardId, reported: &Reported, covers: impl Fn(u64) -> bool) {
        if !self.has_heard_all() {
            return;
        }
        let zombies: Vec<(GameId, Epoch)> = reported
            .keys()
            .filter_map(|id| Some((id, self.state.games.get(id)?)))
            .filter_map(|(id, g)| Some((id.clone(), taken_away(g, shard)?)))
            .filter(|(_, epoch)| covers(epoch.sequence()))
            .collect();
        for (id, epoch) in zombies {
            self.repeat(shard, &id, epoch, false, Medium::Redis);
        }
    }

    /// Repeats a command that has no effect yet. True when one that was sent before has failed.
    fn repeat(&mut self, shard: &ShardId, id: &GameId, epoch: Epoch, add: bool, medium: Medium) -> bool {
        let now_us = self.now.steady_us;
        let key = ServiceKey::shard(shard.clone());
        let on_log = self.state.services.get(&key).is_some_and(|s| s.info.on_log);
        let interval_us = match self.seen.services.get(&key) {
            _ if on_log => self.settings.log_interval,
            heard => heard.map_or(self.settings.redis_interval, |h| h.interval_us),
        };
        let sent = self.seen.sent.get(&(shard.clone(), id.clone())).copied().filter(|s| s.add == add);
        let attempts = sent.map_or(0, |s| s.attempts);
        let wait_us = (2 * interval_us).saturating_mul(1 << attempts.min(6)).min(MAX_RESEND.max(2 * interval_us));
        let is_due = match sent {
            // On the log the report itself covers the assignment: the first one that lacks it is a failure.
            None => true,
            Some(s) if attempts == 0 && add && medium != Medium::Redis => now_us - s.at_us >= interval_us,
            Some(s) => now_us - s.at_us >= wait_us,
        };
        if !is_due {
            return false;
        }
        self.command(shard, id, epoch, add, if add { "missing" } else { "zombie" });
        if let Some(s) = self.seen.sent.get_mut(&(shard.clone(), id.clone())) {
            s.attempts = attempts + 1;
        }
        sent.is_some() || medium != Medium::Redis
    }

    /// A live game that a healthy shard watches and nobody owns is its own: on the first day the fleet is already watching.
    fn adopt(&mut self, shard: &ShardId, status: Status, reported: &Reported, cause: Option<EventId>) {
        let key = ServiceKey::shard(shard.clone());
        let is_fit = matches!(status, Status::Healthy | Status::Recovered);
        if !is_fit || self.state.services.get(&key).is_none_or(|s| s.breaker.circuit != Circuit::Closed) {
            return;
        }
        let orphans: Vec<GameId> = reported.keys().filter(|id| self.is_adoptable(id, shard)).cloned().collect();
        for id in orphans {
            let Some(game) = self.state.games.get(&id) else { continue };
            let why = reason("adopted", "a healthy shard watches it and nobody owns it");
            let (info, to) = (Some(game.info.clone()), shard.to_string());
            let payload = match &game.owner {
                None => Payload::GameAssigned(v1::GameAssigned { game: info, shard: to }),
                Some(owner) => Payload::GameReassigned(v1::GameReassigned {
                    game: info,
                    from: owner.shard.to_string(),
                    from_epoch: owner.epoch.0,
                    shard: to,
                }),
            };
            self.emit_game(&id, payload, why, cause);
            self.seen.on_slate.insert(id.clone(), self.now.steady_us);
        }
    }

    fn is_adoptable(&self, id: &GameId, shard: &ShardId) -> bool {
        let Some(game) = self.state.games.get(id).filter(|g| self.is_due(g)) else { return false };
        match &game.owner {
            None => true,
            // What another orchestrator moves while this one only watches is followed.
            Some(owner) => self.state.shadow && owner.shard != *shard && !self.is_watched_by(&owner.shard, id),
        }
    }

    fn is_watched_by(&self, shard: &ShardId, id: &GameId) -> bool {
        !self.seen.sent.contains_key(&(shard.clone(), id.clone()))
    }

    /// Whether every shard that the log knows and does not take for gone has beaten since this process listens.
    fn has_heard_all(&self) -> bool {
        let shards = self
            .state
            .services
            .iter()
            .filter(|(key, s)| key.kind == arbees_proto::ServiceKind::Shard && !s.status.is_gone());
        shards.into_iter().all(|(key, _)| self.seen.services.get(key).is_some_and(super::health::Heard::is_real))
    }

    /// Whether the owner has failed to take up the game so often that another should have it.
    pub(super) fn has_failed(&self, owner: &Owner, id: &GameId) -> bool {
        let attempts =
            self.seen.sent.get(&(owner.shard.clone(), id.clone())).filter(|s| s.add).map_or(0, |s| s.attempts);
        let key = ServiceKey::shard(owner.shard.clone());
        let is_open = self.state.services.get(&key).is_some_and(|s| s.breaker.circuit == Circuit::Open);
        attempts >= self.settings.circuit_failures || (attempts > 0 && is_open)
    }

    /// Sends a command after this turn's append. Log shards take it as a hint at most.
    pub(super) fn command(&mut self, shard: &ShardId, id: &GameId, epoch: Epoch, add: bool, why: &'static str) {
        let Some(game) = self.state.games.get(id) else { return };
        let shard = shard.clone();
        let sent = Sent { add, at_us: self.now.steady_us, attempts: 0 };
        self.seen.sent.insert((shard.clone(), id.clone()), sent);
        self.turn.effects.push(if add {
            Effect::AddGame { shard, game: game.info.clone(), epoch, reason: why }
        } else {
            Effect::RemoveGame { shard, game: id.clone(), epoch, reason: why }
        });
    }

    /// Forgets commands that no longer say what is so.
    pub(super) fn forget_commands(&mut self) {
        let (games, services, now_us) = (&self.state.games, &self.state.services, self.now.steady_us);
        self.seen.sent.retain(|(shard, id), sent| {
            let owns = games.get(id).and_then(|g| g.owner.as_ref()).is_some_and(|o| o.shard == *shard);
            games.contains_key(id) && services.contains_key(&ServiceKey::shard(shard.clone())) && owns == sent.add
        });
        self.seen.failed.retain(|_, at| now_us - *at < FAILED_FOR);
    }

    /// `shard` has restarted and knows nothing.
    pub(super) fn resync_later(&mut self, shard: &ShardId) {
        let due_us = self.now.steady_us + self.settings.resync_debounce;
        self.seen.resyncs.insert(shard.clone(), Resync { due_us, left: None, told: 0 });
    }

    /// An operator asks that `shard` be told its games again.
    pub(super) fn resync_now(&mut self, shard: &ShardId) {
        self.seen.resyncs.insert(shard.clone(), Resync { due_us: self.now.steady_us, left: None, told: 0 });
    }

    /// Tells restarted shards their games, at the rate they are known to bear.
    pub(super) fn resync(&mut self) {
        let now_us = self.now.steady_us;
        let due: Vec<ShardId> =
            self.seen.resyncs.iter().filter(|(_, r)| now_us >= r.due_us).map(|(shard, _)| shard.clone()).collect();
        for shard in due {
            let Some(mut resync) = self.seen.resyncs.remove(&shard) else { continue };
            let is_its = |g: &Game| g.owner.as_ref().is_some_and(|o| o.shard == shard);
            let all = || self.state.games.iter().filter(|(_, g)| is_its(g)).map(|(id, _)| id.clone()).rev().collect();
            let mut left: Vec<GameId> = resync.left.take().unwrap_or_else(all);
            let elapsed_us = now_us - resync.due_us;
            while i64::from(resync.told) <= elapsed_us * self.settings.resync_rate / crate::SECOND {
                let Some(id) = left.pop() else { break };
                let epoch = self.state.games.get(&id).and_then(|g| g.owner.as_ref()).filter(|o| o.shard == shard);
                if let Some(epoch) = epoch.map(|o| o.epoch) {
                    self.command(&shard, &id, epoch, true, "resync");
                }
                resync.told += 1;
            }
            if left.is_empty() {
                let done = v1::ResyncCompleted {
                    kind: arbees_proto::ServiceKind::Shard.to_string(),
                    instance: shard.to_string(),
                    games: resync.told,
                    duration_us: elapsed_us,
                };
                let why = reason("it restarted and hears of games on Redis only", "all its games were told again");
                self.emit_service(Payload::ResyncCompleted(done), why, None);
            } else {
                resync.left = Some(left);
                self.seen.resyncs.insert(shard, resync);
            }
        }
    }
}

/// When `game` is not the shard's to watch: the epoch of what took it away.
fn taken_away(game: &Game, shard: &ShardId) -> Option<Epoch> {
    match &game.owner {
        Some(owner) if owner.shard == *shard => None,
        Some(owner) => Some(owner.epoch),
        None => game.phase.is_over().then_some(Epoch(game.last_sequence)),
    }
}
