//! What must hold after every step, and what must have come right at the end.

use std::collections::BTreeMap;

use arbees_fleet::state::Circuit;
use arbees_fleet::{EpochGate, Phase, State, Status};
use arbees_proto::{Epoch, GameId, Payload, Sealed};

use super::{ReportedPhase, SECOND, World};

/// A shard that had no trouble for so long must not be taken for dead.
const CALM: i64 = 9 * SECOND;
/// A shard gone for so long has missed a beat for every leader that looks.
const LATE: i64 = 1_700_000;
/// A shard that is alive and hears of a move late may watch on for its lease.
const OVERLAP: i64 = 3 * SECOND;
/// Who lost a game is watched for so long: longer than any pause.
const REMEMBERED: i64 = 60 * SECOND;

/// An observer that sees all, and trusts nobody.
#[derive(Debug, Default)]
pub struct Rules {
    state: State,
    gate: EpochGate,
    pub moves: u64,
    pub lost: u64,
    /// When each shard that lost a game while alive lost it.
    left: BTreeMap<(String, GameId), i64>,
}

impl Rules {
    /// What the log says.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// An output reaches a sink that knows epochs.
    pub fn told(&mut self, game: &GameId, epoch: Epoch) {
        self.gate.admit(game, epoch);
    }

    /// Outputs that it dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.gate.dropped()
    }
}

impl World {
    /// `events` have just been stored.
    pub(super) fn stored(&mut self, events: &[Sealed]) -> Result<(), String> {
        for event in events {
            let index = usize::try_from(self.rules.state.head.sequence).unwrap_or(usize::MAX);
            let entry = self.server.control[index].0.clone();
            self.note(&format!("{} {} {}", entry.sequence, event.event_type, event.subject));
            self.check_before(event)?;
            self.rules.state.fold(&entry).map_err(|skip| format!("rule 2: {} is skipped: {skip}", entry.sequence))?;
            self.check_capacity()?;
        }
        self.pump_control();
        Ok(())
    }

    /// Rules about what an event takes away, checked on what was so before it.
    fn check_before(&mut self, event: &Sealed) -> Result<(), String> {
        match &event.event.payload {
            Some(Payload::ServiceLost(lost)) => {
                self.rules.lost += 1;
                self.check_death(&lost.instance)
            }
            Some(Payload::GameAssigned(assigned)) => self.check_target(&assigned.shard),
            // A beat that an outage held up tells what was so before it.
            Some(Payload::AssignmentFailed(failed))
                if self.is_well(&failed.shard) && self.now - self.server_trouble_us > CALM =>
            {
                let is_deaf = |(_, s): &(super::Host, super::Shard)| s.id.as_str() == failed.shard && s.is_deaf;
                if self.shards.iter().any(is_deaf) {
                    return Ok(());
                }
                Err(format!("rule 6: {} has {} and is blamed for not taking it up", failed.shard, failed.game))
            }
            Some(Payload::GameReassigned(moved)) => {
                self.rules.moves += 1;
                self.check_target(&moved.shard)?;
                let Some(Ok(id)) = moved.game.as_ref().map(|g| g.id.parse::<GameId>()) else { return Ok(()) };
                let key = self.rules.state.services.iter().find(|(key, _)| key.instance.as_str() == moved.from);
                let is_dead = key.is_some_and(|(_, s)| s.status.is_gone());
                let cause = event.event.reason.as_ref().map(|r| r.cause.as_str());
                if cause == Some("its shard is lost") && !is_dead {
                    return Err(format!("rule 3: {id} moves off {} as if that were lost", moved.from));
                }
                for (host, shard) in &self.shards {
                    let acts = host.alive
                        && shard.id.as_str() == moved.from
                        && shard.watcher.as_ref().is_some_and(|w| w.lease.may_act(host.now(self.now).steady_us));
                    if acts && is_dead {
                        return Err(format!("rule 3: {id} moves off {} whose lease is not over", moved.from));
                    }
                }
                self.rules.left.insert((moved.from.clone(), id.clone()), self.now);
                self.rules.left.remove(&(moved.shard.clone(), id));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Rule 6: nobody who is reachable and was never stopped is taken for dead, whatever befell the log or the leader.
    fn check_death(&self, instance: &str) -> Result<(), String> {
        if self.is_well(instance) { Err(format!("rule 6: {instance} is well and taken for dead")) } else { Ok(()) }
    }

    /// Whether a process of this shard is there and has had no trouble for a while.
    fn is_well(&self, instance: &str) -> bool {
        self.shards.iter().any(|(host, shard)| {
            shard.id.as_str() == instance
                && host.alive
                && host.to_log
                && host.paused_until_us <= self.now
                && self.now - host.trouble_us > CALM
                && shard.stopping_since_us.is_none()
        })
    }

    /// Nobody is given a game who must be known to be silent. A leader that was away itself has yet to notice.
    fn check_target(&self, instance: &str) -> Result<(), String> {
        if self.orchestrators.iter().any(|(host, _)| self.now - host.trouble_us < CALM || !host.to_log) {
            return Ok(());
        }
        let is_gone = |host: &super::Host| !host.alive || !host.to_log || host.paused_until_us > self.now;
        let mut its = self.shards.iter().filter(|(_, s)| s.id.as_str() == instance);
        let is_there = its.any(|(host, _)| !is_gone(host) || self.now - host.trouble_us < LATE);
        if is_there { Ok(()) } else { Err(format!("rule 6: {instance} is given a game and has been gone for long")) }
    }

    /// Rule 7, at every position of the log.
    fn check_capacity(&self) -> Result<(), String> {
        for (shard, load) in self.rules.state.loads() {
            let max = self.shards.iter().find(|(_, s)| s.id == *shard).map_or(0, |(_, s)| s.max_games);
            if load > max {
                return Err(format!("rule 7: {shard} owns {load} games and may hold {max}"));
            }
        }
        Ok(())
    }

    /// Rule 3, asked now and then: who lost a game while alive watches on for its lease at most.
    pub(super) fn check_watchers(&mut self) -> Result<(), String> {
        let now = self.now;
        self.rules.left.retain(|_, since_us| now - *since_us < REMEMBERED);
        for ((name, id), since_us) in &self.rules.left {
            if self.now - since_us <= OVERLAP {
                continue;
            }
            for (host, shard) in self.shards.iter().filter(|(h, s)| h.alive && s.id.as_str() == name) {
                let Some(watcher) = shard.watcher.as_ref().filter(|_| host.paused_until_us <= self.now) else {
                    continue;
                };
                let Some(epoch) = watcher.watched().get(id).copied() else { continue };
                let newest = self.rules.state.games.get(id).and_then(|g| g.owner.as_ref());
                let is_old = newest.is_some_and(|o| o.epoch > epoch);
                if is_old && watcher.may_tell(host.now(self.now).steady_us, id, epoch) {
                    return Err(format!("rule 3: {} acts on {id} long after it moved", shard.process));
                }
            }
        }
        Ok(())
    }

    /// After a quiet time everything is as it should be.
    pub(super) fn check_end(&mut self) -> Result<(), String> {
        let state = &self.rules.state;
        let room: u32 = self.shards.iter().filter(|(h, s)| h.alive && !s.is_deaf).map(|(_, s)| s.max_games).sum();
        let due = self.games.values().filter(|p| **p == ReportedPhase::Live).count();
        for (id, phase) in &self.games {
            // What was over when it was first seen is not worth knowing.
            let Some(game) = state.games.get(id) else {
                if *phase == ReportedPhase::Final {
                    continue;
                }
                return Err(format!("rule 4: {id} was never made known"));
            };
            let Some(owner) = &game.owner else {
                if *phase == ReportedPhase::Live && due <= usize::try_from(room).unwrap_or(0) {
                    return Err(format!("rule 5: {id} is live, there is room, and nobody owns it"));
                }
                continue;
            };
            if *phase == ReportedPhase::Final && game.phase == Phase::Finished {
                return Err(format!("rule 5: {id} is over and {} owns it", owner.shard));
            }
            let mut watchers = self.shards.iter().filter(|(host, shard)| {
                let watched = shard.watcher.as_ref().map(arbees_fleet::Watcher::watched).unwrap_or_default();
                let steady_us = host.now(self.now).steady_us;
                let may = shard.watcher.as_ref().is_some_and(|w| w.lease.may_act(steady_us));
                host.alive && !shard.is_deaf && watched.get(id) == Some(&owner.epoch) && may
            });
            if *phase == ReportedPhase::Live && watchers.next().is_none() && due <= usize::try_from(room).unwrap_or(0) {
                let its = self.shards.iter().filter(|(_, s)| s.id == owner.shard);
                let seen: Vec<String> =
                    its.map(|(h, s)| format!("{} alive {} {:?}", s.process, h.alive, s.watcher)).collect();
                return Err(format!("rule 5: {id} is {}'s, which does not watch it: {seen:?}", owner.shard));
            }
        }
        for (host, shard) in self.shards.iter().filter(|(h, _)| h.alive) {
            let Some(watcher) = &shard.watcher else { continue };
            let owned = state.games.iter().filter(|(_, g)| g.owner.as_ref().is_some_and(|o| o.shard == shard.id));
            let owned: BTreeMap<&GameId, Epoch> =
                owned.filter_map(|(id, g)| Some((id, g.owner.as_ref()?.epoch))).collect();
            let held: BTreeMap<&GameId, Epoch> = watcher.set().held().iter().map(|(id, h)| (id, h.epoch)).collect();
            if owned != held {
                return Err(format!("rule 4: {} holds {held:?} and owns {owned:?}", shard.process));
            }
            let key = state.services.iter().find(|(key, _)| key.instance == shard.id);
            let status = key.map(|(_, s)| s.status);
            let circuit = key.map(|(_, s)| s.breaker.circuit);
            if !shard.is_deaf && circuit == Some(Circuit::Open) {
                return Err(format!("rule 5: {} takes games up and its breaker is open", shard.process));
            }
            if !shard.is_deaf && status != Some(Status::Healthy) && host.to_log {
                return Err(format!("rule 5: {} is well and taken for {status:?}", shard.process));
            }
        }
        Ok(())
    }
}
