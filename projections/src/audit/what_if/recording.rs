//! What happened that no decision made, as CONTROL and HEARTBEATS tell it: who beat, what leagues reported, what operators asked
//! for, whose connection closed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arbees_core::log::Stored;
use arbees_fleet::decide::operator::{Ask, Verb};
use arbees_fleet::decide::{CLOSED, Medium, Probe};
use arbees_fleet::state::{Game, Phase, Service, ServiceKey, Status};
use arbees_fleet::{GameReport, ReportedPhase, State};
use arbees_proto::{GameId, InstanceId, Payload, ServiceKind, ShardId, v1};
use serde_json::{Map, Value};

use super::measure::Beats;
use super::stored_us;

/// All checks that any kind of service needs.
const CHECKS: [&str; 3] = ["redis_ok", "ws_ok", "vpn_ok"];

/// A silence that somebody was declared lost for.
#[derive(Clone, Copy, Debug)]
struct Loss {
    from_us: i64,
    until_us: i64,
    /// Its connection was seen to close.
    is_proven: bool,
}

/// What came with the time that has passed.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Valid events and when they were stored, in their order.
    pub decided: Vec<(i64, v1::Event)>,
    pub reports: Vec<GameReport>,
    pub asked: Vec<Ask>,
}

/// The recording, as far as it was played.
#[derive(Debug)]
pub(super) struct Recording {
    state: State,
    /// What is to come of CONTROL.
    to_come: VecDeque<Stored>,
    losses: BTreeMap<ServiceKey, Vec<Loss>>,
    slate: BTreeMap<GameId, GameReport>,
    beats: Beats,
}

impl Recording {
    /// From `state` on, with what is to come of CONTROL.
    pub fn new(state: State, control: Vec<Stored>) -> Self {
        let mut losses: BTreeMap<ServiceKey, Vec<Loss>> = BTreeMap::new();
        for stored in &control {
            let Ok(event) = stored.event() else { continue };
            let is_proven = event.reason.is_some_and(|r| r.cause == CLOSED);
            let Some(Payload::ServiceLost(lost)) = event.payload else { continue };
            let Ok(instance) = InstanceId::lenient(&lost.instance) else { continue };
            let key = ServiceKey { kind: ServiceKind::of_name(&lost.kind), instance };
            let until_us = stored_us(stored);
            losses.entry(key).or_default().push(Loss { from_us: until_us - lost.silent_us, until_us, is_proven });
        }
        let slate = state.games.iter().map(|(id, game)| (id.clone(), report(id, game))).collect();
        Self { state, to_come: control.into(), losses, slate, beats: Beats::default() }
    }

    /// What was so by now.
    pub const fn state(&self) -> &State {
        &self.state
    }

    pub const fn beats(&self) -> &Beats {
        &self.beats
    }

    /// What leagues report now, of games that are not over.
    pub fn slate(&self) -> Vec<GameReport> {
        let games = self.state.games.iter().filter(|(_, g)| !g.phase.is_over());
        games.map(|(id, game)| report(id, game)).collect()
    }

    /// Plays CONTROL up to `to_us`.
    pub fn run_to(&mut self, to_us: i64) -> News {
        let mut news = News::default();
        while self.to_come.front().is_some_and(|next| stored_us(next) <= to_us) {
            let Some(stored) = self.to_come.pop_front() else { break };
            // What is no valid event decided nothing.
            let Ok((touched, event)) = self.state.fold(&stored.entry()) else { continue };
            if let Some(Payload::OperatorVerb(asked)) = &event.payload {
                news.asked.extend(ask(asked));
            }
            news.decided.push((stored_us(&stored), event));
            let Some(id) = touched.game else { continue };
            let Some(now) = self.state.games.get(&id).map(|game| report(&id, game)) else { continue };
            if self.slate.get(&id) != Some(&now) {
                self.slate.insert(id, now.clone());
                news.reports.push(now);
            }
        }
        let on_redis = self.state.services.iter().filter(|(key, s)| {
            key.kind == ServiceKind::Shard && !s.info.on_log && !s.status.is_gone() && !self.is_silent(key, to_us)
        });
        let beating: Vec<ShardId> = on_redis.map(|(key, _)| key.instance.clone()).collect();
        beating.into_iter().for_each(|shard| self.beats.note(shard, to_us, false));
        news
    }

    /// Notes who beat on the log.
    pub fn beat(&mut self, now_us: i64, event: &v1::Event) {
        let Some(Payload::Heartbeat(beat)) = &event.payload else { return };
        let Some(service) = beat.service.as_ref().filter(|s| s.kind == ServiceKind::Shard.as_str()) else { return };
        if let Ok(shard) = service.instance.parse() {
            self.beats.note(shard, now_us, true);
        }
    }

    /// What a service that is asked at `now_us` whether it is there answers.
    pub fn probe(&self, key: &ServiceKey, now_us: i64) -> Probe {
        match self.loss(key, now_us) {
            Some(loss) if loss.is_proven => Probe::Nobody,
            _ => Probe::Silent,
        }
    }

    fn loss(&self, key: &ServiceKey, now_us: i64) -> Option<&Loss> {
        let losses = self.losses.get(key)?;
        losses.iter().find(|l| (l.from_us..=l.until_us).contains(&now_us))
    }

    fn is_silent(&self, key: &ServiceKey, now_us: i64) -> bool {
        self.loss(key, now_us).is_some_and(|l| now_us > l.from_us)
    }

    /// Whether the shard left the game out of `beat` though it had heard in truth that it is its own.
    pub fn left_out(&self, shard: &ShardId, id: &GameId, beat: &v1::Heartbeat) -> bool {
        let owner = self.state.games.get(id).and_then(|g| g.owner.as_ref()).filter(|o| o.shard == *shard);
        let had_heard = owner.is_some_and(|o| o.epoch.sequence() <= beat.last_applied);
        had_heard && !beat.games.iter().any(|w| w.game == id.as_str())
    }

    /// Beats of services that beat over Redis, which nothing keeps: as CONTROL knew them, with the games that `owned` gives.
    pub fn redis_beats(
        &self,
        now_us: i64,
        owned: impl Fn(&ShardId) -> Vec<v1::Watched>,
    ) -> Vec<(Arc<v1::Event>, Medium)> {
        let beating = self.state.services.iter().filter(|(key, s)| !s.info.on_log && !self.is_silent(key, now_us));
        let beat = |(key, s): (&ServiceKey, &Service)| {
            let beat = v1::Heartbeat {
                service: Some(s.info.clone()),
                status: said(s.status)?.to_owned(),
                checks: CHECKS.map(|name| check(name, s)).to_vec(),
                games: if key.kind == ServiceKind::Shard { owned(&key.instance) } else { Vec::new() },
                ..v1::Heartbeat::default()
            };
            let event = v1::Event { payload: Some(Payload::Heartbeat(beat)), ..v1::Event::default() };
            Some((Arc::new(event), Medium::Redis))
        };
        beating.filter_map(beat).collect()
    }
}

/// What a service that has this status says of itself; none: it does not beat.
const fn said(status: Status) -> Option<&'static str> {
    Some(match status {
        Status::Starting => "starting",
        Status::Healthy | Status::Recovered => "healthy",
        Status::Degraded => "degraded",
        Status::Unhealthy => "unhealthy",
        Status::Stopping => "stopping",
        Status::Dead | Status::Retired => return None,
    })
}

fn check(name: &str, service: &Service) -> v1::Check {
    v1::Check { name: name.to_owned(), ok: !service.failed_checks.iter().any(|failed| failed == name) }
}

fn report(id: &GameId, game: &Game) -> GameReport {
    let phase = match game.phase {
        Phase::Scheduled => ReportedPhase::Pre,
        Phase::Live => ReportedPhase::Live,
        Phase::Suspended => ReportedPhase::Suspended,
        Phase::Postponed => ReportedPhase::Postponed,
        Phase::Canceled => ReportedPhase::Canceled,
        Phase::Finished => ReportedPhase::Final,
    };
    let info = v1::Game { markets: None, ..game.info.clone() };
    GameReport { id: id.clone(), info, phase, status: game.status.clone() }
}

/// The request behind an operator's recorded word.
fn ask(asked: &v1::OperatorVerb) -> Option<Ask> {
    let named = [("verb", &asked.verb), ("game", &asked.game), ("shard", &asked.shard)];
    let fields = named.into_iter().filter(|(_, value)| !value.is_empty());
    let fields: Map<String, Value> = fields.map(|(name, value)| (name.to_owned(), value.as_str().into())).collect();
    let verb: Verb = serde_json::from_value(Value::Object(fields)).ok()?;
    Some(Ask { verb, operator: asked.operator.clone(), dry_run: false, basis: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_word_is_the_request_again() {
        let asked =
            v1::OperatorVerb { verb: "pin".into(), operator: "ann".into(), game: "nfl-1".into(), ..Default::default() };
        let ask = ask(&asked).unwrap();
        assert_eq!(ask.verb, Verb::Pin { game: "nfl-1".parse().unwrap(), shard: None });
        assert_eq!(ask.operator, "ann");
    }
}
