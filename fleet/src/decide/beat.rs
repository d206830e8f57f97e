//! What a heartbeat leads to.

use std::collections::BTreeSet;

use arbees_proto::{Epoch, EventId, GameId, InstanceId, League, Payload, ServiceKind, ShardId, v1};

use super::{Draft, Effect, Fleet, reason};
use crate::SECOND;
use crate::fold::service_key;
use crate::settings::{MAX_REPORTED, MAX_RESEND, short};
use crate::state::ServiceKey;

/// How a beat came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// The HEARTBEATS stream.
    Log,
    /// Redis, from a service that beats nowhere else.
    Redis,
}

/// What was last heard of a service.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub at_us: i64,
    pub healthy: bool,
    pub operational: bool,
    pub max_games: u32,
    /// How far apart its last two beats were.
    pub interval_us: i64,
}

/// A command that was sent to a Redis-only shard and is not yet seen to have worked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    add: bool,
    at_us: i64,
    attempts: u32,
}

impl Fleet {
    pub(super) fn on_beat(&mut self, now_us: i64, event: &v1::Event, medium: Medium) {
        let Some(Payload::Heartbeat(beat)) = &event.payload else { return };
        let Some(info) = beat.service.as_ref().map(bounded) else { return };
        let Ok(key) = service_key(&info) else { return };
        let info = v1::Service { kind: key.kind.to_string(), ..info };
        let cause = EventId::from_bytes(&event.id);
        self.register(now_us, &key, &info, cause);
        self.hear(now_us, &key, beat);
        if key.kind == ServiceKind::Shard && matches!(info.shard_type.as_str(), "sports" | "game") {
            let reported = self.resolve(beat, medium);
            self.confirm(now_us, &key.instance, &reported, medium, cause);
            if medium == Medium::Redis {
                self.repair(now_us, &key, &reported);
            }
        }
    }

    fn register(&mut self, now_us: i64, key: &ServiceKey, info: &v1::Service, cause: Option<EventId>) {
        let payload = match self.state.services.get(key) {
            None => Payload::ServiceRegistered(v1::ServiceRegistered { service: Some(info.clone()) }),
            Some(known) if known.info.process != info.process || known.info.started_at_us != info.started_at_us => {
                Payload::ServiceRestarted(v1::ServiceRestarted {
                    service: Some(info.clone()),
                    old_process: known.info.process.clone(),
                    old_started_at_us: known.info.started_at_us,
                })
            }
            Some(known) if known.info != *info => {
                Payload::ServiceRegistered(v1::ServiceRegistered { service: Some(info.clone()) })
            }
            Some(_) => return,
        };
        let why = reason("it beat", "a service is known by its beats");
        self.emit(now_us, Draft { payload, reason: why, cause, correlation: cause });
    }

    fn hear(&mut self, now_us: i64, key: &ServiceKey, beat: &v1::Heartbeat) {
        let default_interval = self.settings.redis_interval;
        let interval_us = self
            .seen
            .services
            .get(key)
            .map_or(default_interval, |h| (now_us - h.at_us).clamp(SECOND, 6 * default_interval));
        let info = beat.service.as_ref();
        let heard = Heard {
            at_us: now_us,
            healthy: beat.status == "healthy",
            operational: is_operational(key.kind, beat),
            max_games: info.map_or(0, |i| i.max_games),
            interval_us,
        };
        self.seen.services.insert(key.clone(), heard);
    }

    /// The known games among those that a beat reports, with the epochs it names (0: none).
    fn resolve(&self, beat: &v1::Heartbeat, medium: Medium) -> Vec<(GameId, u64)> {
        let known = |w: &v1::Watched| match medium {
            Medium::Log => w.game.parse().ok(),
            Medium::Redis => self.resolve_id(&w.game, None),
        };
        beat.games.iter().take(MAX_REPORTED).filter_map(|w| Some((known(w)?, w.epoch))).collect()
    }

    /// The game that `raw` names: a whole id, a bare one with its `sport`, or the bare id of the one known game that has it.
    #[must_use]
    pub fn resolve_id(&self, raw: &str, sport: Option<League>) -> Option<GameId> {
        if let Ok(id) = raw.parse() {
            return Some(id);
        }
        if let Some(league) = sport {
            return GameId::new(league, raw).ok();
        }
        match self.seen.by_event.get(raw).map(Vec::as_slice) {
            Some([only]) => Some(only.clone()),
            _ => None,
        }
    }

    fn confirm(
        &mut self,
        now_us: i64,
        shard: &ShardId,
        reported: &[(GameId, u64)],
        medium: Medium,
        cause: Option<EventId>,
    ) {
        for (id, epoch) in reported {
            let Some(game) = self.state.games.get(id) else { continue };
            let Some(owner) = game.owner.as_ref().filter(|o| o.shard == *shard && o.confirmed_at_us.is_none()) else {
                continue;
            };
            if medium == Medium::Log && *epoch != owner.epoch.0 {
                continue;
            }
            let confirmed = v1::AssignmentConfirmed {
                game: Some(game.info.clone()),
                shard: shard.to_string(),
                epoch: owner.epoch.0,
            };
            let why = reason("the shard reported it", "first report under this epoch");
            self.emit_game(now_us, id, Payload::AssignmentConfirmed(confirmed), why, cause);
        }
    }

    /// Compares what a Redis-only shard should watch with what it says it watches, and repeats the commands that are
    /// missing their effect. A beat may have left before the command came: it counts after two intervals only.
    fn repair(&mut self, now_us: i64, key: &ServiceKey, reported: &[(GameId, u64)]) {
        if now_us - self.seen.since_us < self.settings.settle {
            return;
        }
        let shard = &key.instance;
        let interval = self.seen.services.get(key).map_or(self.settings.redis_interval, |h| h.interval_us);
        let watched: BTreeSet<&GameId> = reported.iter().map(|(id, _)| id).collect();
        let has = |id: &GameId| watched.contains(id);
        let owned = |o: Option<&crate::state::Owner>| o.is_some_and(|o| o.shard == *shard);
        let missing: Vec<_> = self
            .state
            .games
            .iter()
            .filter(|(id, g)| owned(g.owner.as_ref()) && !has(id))
            .filter_map(|(id, g)| Some((id.clone(), g.owner.as_ref()?.epoch)))
            .collect();
        let zombies: Vec<_> = reported
            .iter()
            .filter_map(|(id, _)| Some((id, self.state.games.get(id)?)))
            .filter(|(_, g)| !owned(g.owner.as_ref()) && (g.owner.is_some() || g.phase.is_over()))
            .map(|(id, g)| (id.clone(), g.owner.as_ref().map_or(Epoch(g.last_sequence), |o| o.epoch)))
            .collect();
        self.seen.sent.retain(|(s, id), sent| s != shard || has(id) != sent.add);
        for (id, epoch) in missing {
            self.repeat(now_us, shard, &id, epoch, true, interval);
        }
        for (id, epoch) in zombies {
            self.repeat(now_us, shard, &id, epoch, false, interval);
        }
    }

    fn repeat(&mut self, now_us: i64, shard: &ShardId, id: &GameId, epoch: Epoch, add: bool, interval_us: i64) {
        let sent = self.seen.sent.get(&(shard.clone(), id.clone())).copied().filter(|s| s.add == add);
        let attempts = sent.map_or(0, |s| s.attempts);
        let wait = (2 * interval_us).saturating_mul(1 << attempts.min(6)).min(MAX_RESEND.max(2 * interval_us));
        if sent.is_none_or(|s| now_us - s.at_us >= wait) {
            let why = if add { "missing" } else { "zombie" };
            self.command(now_us, shard, id, epoch, add, why);
            if let Some(s) = self.seen.sent.get_mut(&(shard.clone(), id.clone())) {
                s.attempts = attempts + 1;
            }
        }
    }

    /// Sends a command after this turn's append. Log shards take it as a hint to look at the log.
    pub(super) fn command(
        &mut self,
        now_us: i64,
        shard: &ShardId,
        id: &GameId,
        epoch: Epoch,
        add: bool,
        why: &'static str,
    ) {
        let Some(game) = self.state.games.get(id) else { return };
        let shard = shard.clone();
        self.seen.sent.insert((shard.clone(), id.clone()), Sent { add, at_us: now_us, attempts: 0 });
        self.turn.effects.push(if add {
            Effect::AddGame { shard, game: game.info.clone(), epoch, reason: why }
        } else {
            Effect::RemoveGame { shard, game: id.clone(), epoch, reason: why }
        });
    }

    /// Forgets commands whose shard is on the log: nothing there needs repeating.
    pub(super) fn forget_log_commands(&mut self) {
        let services = &self.state.services;
        self.seen.sent.retain(|(shard, _), _| {
            let key = ServiceKey::shard(InstanceId::clone(shard));
            services.get(&key).is_some_and(|s| !s.info.on_log)
        });
    }
}

/// What a service says of itself, each text cut to a length that any event can hold.
fn bounded(info: &v1::Service) -> v1::Service {
    v1::Service {
        process: short(&info.process),
        version: short(&info.version),
        shard_type: short(&info.shard_type),
        ..info.clone()
    }
}

/// What a kind of service needs to do its work.
fn is_operational(kind: ServiceKind, beat: &v1::Heartbeat) -> bool {
    let ok = |name: &str| beat.checks.iter().any(|c| c.name == name && c.ok);
    match kind {
        ServiceKind::Shard => ok("redis_ok"),
        ServiceKind::Kalshi => ok("redis_ok") && ok("ws_ok"),
        ServiceKind::Polymarket => ok("redis_ok") && ok("vpn_ok") && ok("ws_ok"),
        _ => matches!(beat.status.as_str(), "healthy" | "starting"),
    }
}
