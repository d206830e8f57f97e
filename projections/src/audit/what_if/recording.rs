//! What happened that no decision made, as CONTROL and HEARTBEATS tell it: who beat, what leagues reported, what operators asked
//! for, whose connection closed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arbees_core::log::Stored;
use arbees_fleet::decide::operator::{Ask, Verb};
use arbees_fleet::decide::{CLOSED, Medium, Probe};
use arbees_fleet::state::{Game, Phase, Service, ServiceKey, Status};
use arbees_fleet::{GameReport, ReportedPhase, Settings, State};
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
    /// The last beat of each service that was played, and those that were read and are yet to be played.
    played_us: BTreeMap<ServiceKey, i64>,
    read_us: BTreeMap<ServiceKey, VecDeque<i64>>,
}

impl Recording {
    /// From `state` on, with what is to come of CONTROL; services beat as often as `as_set` says.
    pub fn new(state: State, control: Vec<Stored>, as_set: &Settings) -> Self {
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
        let (played_us, read_us) = (BTreeMap::new(), BTreeMap::new());
        Self { state, to_come: control.into(), losses, slate, beats: Beats::new(as_set), played_us, read_us }
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

    /// Notes who beats on the log, which is played now.
    pub fn beat(&mut self, now_us: i64, event: &v1::Event) {
        let Some(key) = sender(event) else { return };
        if key.kind == ServiceKind::Shard {
            self.beats.note(key.instance.clone(), now_us, true);
        }
        if let Some(to_come) = self.read_us.get_mut(&key) {
            while to_come.front().is_some_and(|at_us| *at_us <= now_us) {
                to_come.pop_front();
            }
        }
        self.played_us.insert(key, now_us);
    }

    /// Notes who will beat at `at_us`.
    pub fn will_beat(&mut self, at_us: i64, event: &v1::Event) {
        if let Some(key) = sender(event) {
            self.read_us.entry(key).or_default().push_back(at_us);
        }
    }

    /// Whether the service is there: no beat is missing between its last one and its next. One that is frozen now does beat
    /// again, and says nothing until then.
    pub fn is_there(&self, key: &ServiceKey) -> bool {
        let (last, next) = (self.played_us.get(key), self.read_us.get(key).and_then(VecDeque::front));
        matches!((last, next), (Some(last), Some(next)) if next - last <= self.beats.limit_us())
    }

    /// What a service that is asked at `now_us` whether it is there answers.
    pub fn probe(&self, key: &ServiceKey, now_us: i64) -> Probe {
        let heard_us = self.played_us.get(key).copied().unwrap_or(0);
        // Whose connection has closed is gone until it beats again, however long others wait for it.
        let is_gone = |l: &Loss| l.is_proven && l.from_us <= now_us && heard_us <= l.until_us;
        let losses = self.losses.get(key);
        if losses.is_some_and(|all| all.iter().any(is_gone)) { Probe::Nobody } else { Probe::Silent }
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

/// Whose heartbeat it is.
pub(super) fn sender(event: &v1::Event) -> Option<ServiceKey> {
    let Some(Payload::Heartbeat(beat)) = &event.payload else { return None };
    let service = beat.service.as_ref()?;
    let instance = InstanceId::lenient(&service.instance).ok()?;
    Some(ServiceKey { kind: ServiceKind::of_name(&service.kind), instance })
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
    use prost::Message as _;

    use super::*;

    #[test]
    fn who_was_seen_to_go_is_gone_until_it_beats_again_however_long_others_wait() {
        const S: i64 = arbees_fleet::SECOND;
        let lost =
            v1::ServiceLost { kind: "shard".into(), instance: "a".into(), silent_us: 2 * S, ..Default::default() };
        let reason = v1::Reason { cause: CLOSED.to_owned(), ..Default::default() };
        let event = v1::Event { reason: Some(reason), payload: Some(Payload::ServiceLost(lost)), ..Default::default() };
        let nothing = BTreeMap::new();
        let stored = Stored::archived(1, 100 * S * 1_000, "s".into(), &nothing, event.encode_to_vec());
        let mut recording = Recording::new(State::default(), vec![stored], &Settings::default());
        let key = ServiceKey::shard("a".parse().unwrap());
        let probes = |r: &Recording| [97, 99, 100, 105].map(|at| r.probe(&key, at * S));
        let (silent, nobody) = (Probe::Silent, Probe::Nobody);
        assert_eq!(probes(&recording), [silent, nobody, nobody, nobody]);
        let service = v1::Service { kind: "shard".into(), instance: "a".into(), ..Default::default() };
        let beat = v1::Heartbeat { service: Some(service), ..Default::default() };
        let beat = v1::Event { payload: Some(Payload::Heartbeat(beat)), ..Default::default() };
        recording.beat(103 * S, &beat);
        assert_eq!(recording.probe(&key, 105 * S), silent, "another process may be asked anew");
    }

    #[test]
    fn who_is_frozen_is_not_there_though_it_beats_again() {
        const S: i64 = arbees_fleet::SECOND;
        let service = v1::Service { kind: "shard".into(), instance: "a".into(), ..Default::default() };
        let beat = v1::Heartbeat { service: Some(service), ..Default::default() };
        let beat = v1::Event { payload: Some(Payload::Heartbeat(beat)), ..Default::default() };
        let mut recording = Recording::new(State::default(), Vec::new(), &Settings::default());
        let key = ServiceKey::shard("a".parse().unwrap());
        // It freezes at 102 s, thaws at 106 s with two beats at once, and is gone after 107 s.
        let beats = [101 * S, 102 * S, 106 * S, 106 * S + 32_000, 107 * S];
        beats.iter().for_each(|at_us| recording.will_beat(*at_us, &beat));
        assert!(!recording.is_there(&key), "it was not heard yet");
        let there = beats.map(|at_us| {
            recording.beat(at_us, &beat);
            recording.is_there(&key)
        });
        assert_eq!(there, [true, false, true, true, false]);
    }

    #[test]
    fn a_recorded_word_is_the_request_again() {
        let asked =
            v1::OperatorVerb { verb: "pin".into(), operator: "ann".into(), game: "nfl-1".into(), ..Default::default() };
        let ask = ask(&asked).unwrap();
        assert_eq!(ask.verb, Verb::Pin { game: "nfl-1".parse().unwrap(), shard: None });
        assert_eq!(ask.operator, "ann");
    }
}
