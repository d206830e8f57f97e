//! What a heartbeat leads to.

use std::collections::BTreeMap;

use arbees_proto::{EventId, GameId, League, Payload, ServiceKind, ShardId, v1};

use super::alert::Severity;
use super::{Fleet, reason};
use crate::fold::service_key;
use crate::settings::{MAX_REPORTED, TWIN_WITHIN, short};
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
                self.note_own_sequence(medium);
            }
            return None;
        }
        let info = v1::Service { kind: key.kind.to_string(), ..info };
        self.hear(&key, beat, medium).then_some((key, info))
    }

    /// When the own beats begin to be counted anew, the stream has lost its tail: what was heard is no measure any more.
    fn note_own_sequence(&mut self, medium: Medium) {
        let Medium::Log { sequence } = medium else { return };
        if sequence < self.seen.echo_sequence {
            self.seen.services.values_mut().for_each(|h| h.silence.forget_sequence());
        }
        self.seen.echo_sequence = sequence;
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
        if self.is_twin(key, info) {
            return;
        }
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
        if matches!(payload, Payload::ServiceRestarted(_)) {
            self.settle("shard_lost", key.instance.as_str());
        }
        if matches!(payload, Payload::ServiceRestarted(_)) && key.kind == ServiceKind::Shard && !info.on_log {
            self.resync_later(&key.instance);
        }
        self.emit_service(payload, reason("it beat", "a service is known by its beats"), cause);
        self.unplaced = true;
    }

    /// Whether two processes beat under one name: the one that was there before is back within a minute. People are told; that
    /// each of them seems to restart the other is not worth an event at every beat.
    fn is_twin(&mut self, key: &ServiceKey, info: &v1::Service) -> bool {
        let now_us = self.now.steady_us;
        let Some(known) = self.state.services.get(key) else { return false };
        let same = |a: &v1::Service, b: &v1::Service| a.process == b.process && a.started_at_us == b.started_at_us;
        let Some(heard) = self.seen.services.get_mut(key).filter(|_| !same(&known.info, info)) else { return false };
        let is_back = heard.before.as_ref().is_some_and(|(b, at)| same(b, info) && now_us - at < TWIN_WITHIN);
        heard.before = Some((known.info.clone(), now_us));
        if is_back {
            heard.before = Some((info.clone(), now_us));
            let summary = format!("two processes beat as {key}: {} and {}", known.info.process, info.process);
            self.raise("duplicate_instance", key.instance.as_str(), Severity::Critical, summary);
        }
        is_back
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
            // A game that waited while its owner was away is confirmed anew: it waits no more.
            let is_news = |o: &crate::state::Owner| o.confirmed_at_us.is_none() || game.queued_since_us.is_some();
            let Some(owner) = game.owner.as_ref().filter(|o| o.shard == *shard && is_news(o)) else { continue };
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
