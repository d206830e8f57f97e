//! What a heartbeat leads to.

use std::collections::BTreeMap;

use arbees_proto::{EventId, GameId, League, Payload, ServiceKind, ShardId, v1};

use super::{Fleet, reason};
use crate::fold::service_key;
use crate::settings::{MAX_REPORTED, short};
use crate::state::ServiceKey;

/// How a beat came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// The HEARTBEATS stream, at this sequence.
    Log { sequence: u64 },
    /// Redis, from a service that beats nowhere else.
    Redis,
}

/// What a shard says it watches: each game with the epoch it names (0: none).
pub(super) type Reported = BTreeMap<GameId, u64>;

impl Fleet {
    /// Takes in a beat: whose it is and what it says of itself; none when it says nothing new, or of nobody.
    pub(super) fn hear_beat(&mut self, event: &v1::Event, medium: Medium) -> Option<(ServiceKey, v1::Service)> {
        let Some(Payload::Heartbeat(beat)) = &event.payload else { return None };
        let info = bounded(beat.service.as_ref()?);
        let key = service_key(&info).ok()?;
        if key.kind == ServiceKind::Orchestrator {
            // Orchestrators beat for others to see. The own beat tells that the log carries what is sent.
            let late_us = self.now.wall_us - event.occurred_at_us;
            if info.process == self.me.process && late_us.abs() < crate::settings::ECHO_LIMIT {
                self.seen.log.heard(self.now.steady_us);
            }
            return None;
        }
        let info = v1::Service { kind: key.kind.to_string(), ..info };
        self.hear(&key, beat, medium).then_some((key, info))
    }

    pub(super) fn on_beat(&mut self, event: &v1::Event, medium: Medium) {
        let Some((key, info)) = self.hear_beat(event, medium) else { return };
        let Some(Payload::Heartbeat(beat)) = &event.payload else { return };
        let cause = EventId::from_bytes(&event.id);
        self.register(&key, &info, cause);
        self.follow_status(&key, beat, cause);
        if key.kind == ServiceKind::Shard && matches!(info.shard_type.as_str(), "sports" | "game") {
            let reported = self.resolve(beat, medium);
            self.confirm(&key.instance, &reported, medium, cause);
            self.repair(&key, beat, &reported, medium, cause);
        }
    }

    fn register(&mut self, key: &ServiceKey, info: &v1::Service, cause: Option<EventId>) {
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
        if matches!(payload, Payload::ServiceRestarted(_)) && key.kind == ServiceKind::Shard && !info.on_log {
            self.resync_later(&key.instance);
        }
        self.emit_service(payload, reason("it beat", "a service is known by its beats"), cause);
        self.unplaced = true;
    }

    /// The known games among those that a beat reports.
    fn resolve(&self, beat: &v1::Heartbeat, medium: Medium) -> Reported {
        let known = |w: &v1::Watched| match medium {
            Medium::Log { .. } => w.game.parse().ok(),
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

    fn confirm(&mut self, shard: &ShardId, reported: &Reported, medium: Medium, cause: Option<EventId>) {
        for (id, epoch) in reported {
            let Some(game) = self.state.games.get(id) else { continue };
            let Some(owner) = game.owner.as_ref().filter(|o| o.shard == *shard && o.confirmed_at_us.is_none()) else {
                continue;
            };
            if medium != Medium::Redis && *epoch != owner.epoch.0 {
                continue;
            }
            let confirmed = v1::AssignmentConfirmed {
                game: Some(game.info.clone()),
                shard: shard.to_string(),
                epoch: owner.epoch.0,
            };
            let why = reason("the shard reported it", "first report under this epoch");
            self.emit_game(id, Payload::AssignmentConfirmed(confirmed), why, cause);
            self.close_if_proven(shard, cause);
        }
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
