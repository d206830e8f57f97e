//! What happened that no decision made, as CONTROL and HEARTBEATS tell it: who beat, what leagues reported, what operators asked
//! for, whose connection closed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use arbees_core::log::Stored;
use arbees_fleet::decide::operator::{Ask, Verb};
use arbees_fleet::decide::{CLOSED, Medium, Probe};
use arbees_fleet::state::{Game, Phase, Service, ServiceKey, Status};
use arbees_fleet::{GameReport, ReportedPhase, SECOND, Settings, State};
use arbees_proto::{GameId, InstanceId, Payload, ServiceKind, ShardId, v1};
use serde_json::{Map, Value};

use super::measure::Beats;
use super::stored_us;

/// A silence that is judged so much later than it may be was spared before: a takeover takes less, and a service that answers is
/// spared for longer.
const LATE: i64 = 8 * SECOND;
/// The listener's clock and the server's tell of the same beat within this.
const SAME_BEAT: i64 = SECOND;
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
    /// Services that a decision says were just heard.
    pub heard: BTreeSet<ServiceKey>,
}

/// The recording, as far as it was played.
#[derive(Debug)]
pub(super) struct Recording {
    state: State,
    /// What is to come of CONTROL.
    to_come: VecDeque<Stored>,
    losses: BTreeMap<ServiceKey, Vec<Loss>>,
    /// When services were declared lost or retired.
    judged_us: BTreeMap<ServiceKey, Vec<i64>>,
    /// A silence on the log that lasts longer is judged, unless something speaks against it.
    judged_after_us: i64,
    lease_ttl: i64,
    until_us: i64,
    slate: BTreeMap<GameId, GameReport>,
    beats: Beats,
    /// The last beat of each service that was played, and those that were read and are yet to be played; each with the process.
    played: BTreeMap<ServiceKey, (i64, String)>,
    read: BTreeMap<ServiceKey, VecDeque<(i64, String)>>,
    /// Games that a shard does not watch though it has heard that they are its own.
    left_out: BTreeMap<ServiceKey, BTreeSet<GameId>>,
}

impl Recording {
    /// From `state` on to `until_us`, with what is to come of CONTROL, as it was under the settings `as_set`.
    pub fn new(state: State, control: Vec<Stored>, as_set: &Settings, until_us: i64) -> Self {
        let mut losses: BTreeMap<ServiceKey, Vec<Loss>> = BTreeMap::new();
        let mut judged_us: BTreeMap<ServiceKey, Vec<i64>> = BTreeMap::new();
        for stored in &control {
            let Ok(event) = stored.event() else { continue };
            let is_proven = event.reason.is_some_and(|r| r.cause == CLOSED);
            let until_us = stored_us(stored);
            match event.payload {
                Some(Payload::ServiceLost(lost)) => {
                    let Some(key) = key(&lost.kind, &lost.instance) else { continue };
                    judged_us.entry(key.clone()).or_default().push(until_us);
                    losses.entry(key).or_default().push(Loss {
                        from_us: until_us - lost.silent_us,
                        until_us,
                        is_proven,
                    });
                }
                Some(Payload::ServiceStatusChanged(changed)) if changed.to == Status::Retired.as_str() => {
                    let Some(key) = key(&changed.kind, &changed.instance) else { continue };
                    judged_us.entry(key).or_default().push(until_us);
                }
                _ => {}
            }
        }
        Self {
            slate: state.games.iter().map(|(id, game)| (id.clone(), report(id, game))).collect(),
            state,
            to_come: control.into(),
            losses,
            judged_us,
            judged_after_us: as_set.log_timeout(),
            lease_ttl: as_set.lease_ttl,
            until_us,
            beats: Beats::new(as_set),
            played: BTreeMap::new(),
            read: BTreeMap::new(),
            left_out: BTreeMap::new(),
        }
    }

    /// What was so by now.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// For how long a lease lasted in truth.
    pub const fn lease_ttl(&self) -> i64 {
        self.lease_ttl
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
            let heard = matches!(
                event.payload,
                Some(Payload::ServiceRegistered(_) | Payload::ServiceRestarted(_) | Payload::ServiceRecovered(_))
            );
            news.heard.extend(touched.service.filter(|_| heard));
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
        let (Some(key), Some(beat)) = (sender(event), beat_of(event)) else { return };
        if let Some(to_come) = self.read.get_mut(&key) {
            while to_come.front().is_some_and(|(at_us, _)| *at_us <= now_us) {
                to_come.pop_front();
            }
        }
        let process = process(beat).to_owned();
        if self.played.get(&key).is_some_and(|(_, before)| *before != process) {
            self.left_out.remove(&key);
        }
        if key.kind == ServiceKind::Shard && acts(beat) {
            self.beats.note(key.instance.clone(), now_us, true);
            self.note_left_out(&key, beat);
        }
        self.played.insert(key, (now_us, process));
    }

    /// Notes the games that the shard leaves out of `beat` though it has heard that they are its own, until it names them.
    fn note_left_out(&mut self, key: &ServiceKey, beat: &v1::Heartbeat) {
        let its = self.state.games.iter().filter_map(|(id, g)| Some((id, g.owner.as_ref()?)));
        let its = its.filter(|(_, o)| o.shard == key.instance && o.epoch.sequence() <= beat.last_applied);
        let left_out = self.left_out.entry(key.clone()).or_default();
        left_out.extend(its.map(|(id, _)| id.clone()));
        left_out.retain(|id| !beat.games.iter().any(|w| w.game == id.as_str()));
    }

    /// Notes who will beat at `at_us`.
    pub fn will_beat(&mut self, at_us: i64, event: &v1::Event) {
        if let Some(key) = sender(event) {
            let process = beat_of(event).map(process).unwrap_or_default().to_owned();
            self.read.entry(key).or_default().push_back((at_us, process));
        }
    }

    /// Whether the service is there: no beat is missing between its last one and its next. One that is frozen now does beat
    /// again, and says nothing until then; of one that was killed another process does.
    pub fn is_there(&self, key: &ServiceKey) -> bool {
        let (Some((last_us, process)), Some((next_us, next))) = (self.played.get(key), self.next(key)) else {
            return false;
        };
        next_us - last_us <= self.beats.limit_us() && process == next
    }

    fn next(&self, key: &ServiceKey) -> Option<&(i64, String)> {
        self.read.get(key)?.front()
    }

    /// What a service that is asked at `now_us` whether it is there answers.
    pub fn probe(&self, key: &ServiceKey, now_us: i64) -> Probe {
        let heard_us = self.played.get(key).map_or(0, |(at_us, _)| *at_us);
        // Whose connection has closed is gone until it beats again, however long others wait for it.
        let is_gone = |l: &Loss| l.is_proven && l.from_us <= now_us && heard_us <= l.until_us;
        let losses = self.losses.get(key);
        if losses.is_some_and(|all| all.iter().any(is_gone)) {
            Probe::Nobody
        } else if self.is_spared(key, heard_us) {
            Probe::Answered
        } else {
            Probe::Silent
        }
    }

    /// Whether its silence since `heard_us` was judged by nobody though it lasted for long enough: it answered, or the leader
    /// knew that the log was away.
    fn is_spared(&self, key: &ServiceKey, heard_us: i64) -> bool {
        let next_us = self.next(key).map_or(i64::MAX, |(at_us, _)| *at_us);
        let judged_us = heard_us + self.judged_after_us;
        let late_us = judged_us + LATE;
        // A short silence says nothing, nor does one of whose beginning or end nothing is known.
        if heard_us == 0 || next_us <= judged_us || late_us.min(next_us) > self.until_us {
            return false;
        }
        let silence = heard_us..=late_us.min(next_us);
        let is_judged = self.judged_us.get(key).is_some_and(|all| all.iter().any(|at_us| silence.contains(at_us)));
        // Who thaws after the fence may beat before it is told that it is lost.
        let is_lost = |l: &Loss| (l.from_us - heard_us).abs() < SAME_BEAT && l.until_us <= late_us;
        !is_judged && !self.losses.get(key).is_some_and(|all| all.iter().any(is_lost))
    }

    /// A silence that began before `now_us` and that the service was declared lost for.
    pub fn is_silent(&self, key: &ServiceKey, now_us: i64) -> bool {
        let losses = self.losses.get(key);
        losses.is_some_and(|all| all.iter().any(|l| l.from_us < now_us && now_us <= l.until_us))
    }

    /// Whether the shard does not take up the game though it has heard in truth that it is its own.
    pub fn left_out(&self, key: &ServiceKey, id: &GameId) -> bool {
        self.left_out.get(key).is_some_and(|games| games.contains(id))
    }

    /// Who beat over Redis for the last time between these moments, before a silence that it was declared lost for.
    pub fn fell_silent(&self, after_us: i64, until_us: i64) -> BTreeSet<&ServiceKey> {
        let fell = |l: &Loss| after_us < l.from_us && l.from_us <= until_us;
        self.losses.iter().filter(|(_, all)| all.iter().any(fell)).map(|(key, _)| key).collect()
    }

    /// Beats of services that beat over Redis, which nothing keeps, if they are `wanted`: as CONTROL knew them, with the games that
    /// `owned` gives.
    pub fn redis_beats(
        &self,
        wanted: impl Fn(&ServiceKey) -> bool,
        owned: impl Fn(&ShardId) -> Vec<v1::Watched>,
    ) -> Vec<(Arc<v1::Event>, Medium)> {
        let beating = self.state.services.iter().filter(|(key, s)| !s.info.on_log && wanted(key));
        let beat = |(key, s): (&ServiceKey, &Service)| {
            let beat = v1::Heartbeat {
                service: Some(s.info.clone()),
                status: said(s.status)?.to_owned(),
                checks: checks(&s.failed_checks),
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
    let service = beat_of(event)?.service.as_ref()?;
    key(&service.kind, &service.instance)
}

fn key(kind: &str, instance: &str) -> Option<ServiceKey> {
    let instance = InstanceId::lenient(instance).ok()?;
    Some(ServiceKey { kind: ServiceKind::of_name(kind), instance })
}

/// The heartbeat that the event is.
pub(super) const fn beat_of(event: &v1::Event) -> Option<&v1::Heartbeat> {
    match &event.payload {
        Some(Payload::Heartbeat(beat)) => Some(beat),
        _ => None,
    }
}

/// The process that says it.
pub(super) fn process(beat: &v1::Heartbeat) -> &str {
    beat.service.as_ref().map(|s| s.process.as_str()).unwrap_or_default()
}

/// Whether whoever says this does its work: it is not fenced, and waits for nobody's lease to end.
pub(super) fn acts(beat: &v1::Heartbeat) -> bool {
    beat.fence_sequence == 0 && beat.status != "starting"
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

/// All checks that any kind of service needs, and all that this one is known to fail.
fn checks(failed: &[String]) -> Vec<v1::Check> {
    let ok = CHECKS.into_iter().filter(|name| !failed.iter().any(|f| f == name));
    let check = |name: &str, ok| v1::Check { name: name.to_owned(), ok };
    failed.iter().map(|name| check(name, false)).chain(ok.map(|name| check(name, true))).collect()
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

    use super::super::samples::{S, live, owner, shard};
    use super::*;

    fn beat(process: &str, last_applied: u64, games: &[&str]) -> v1::Event {
        let mut event = super::super::samples::beat(process, "healthy", games, &[]);
        if let Some(Payload::Heartbeat(beat)) = event.payload.as_mut() {
            beat.last_applied = last_applied;
        }
        event
    }

    /// A recording in which the shard is declared lost at 100 s after two seconds of silence.
    fn with_loss() -> Recording {
        let lost =
            v1::ServiceLost { kind: "shard".into(), instance: "a".into(), silent_us: 2 * S, ..Default::default() };
        let reason = v1::Reason { cause: CLOSED.to_owned(), ..Default::default() };
        let event = v1::Event { reason: Some(reason), payload: Some(Payload::ServiceLost(lost)), ..Default::default() };
        let stored = Stored::archived(1, 100 * S * 1_000, "s".into(), &BTreeMap::new(), event.encode_to_vec());
        Recording::new(State::default(), vec![stored], &Settings::default(), 200 * S)
    }

    #[test]
    fn who_was_seen_to_go_is_gone_until_it_beats_again_however_long_others_wait() {
        let mut recording = with_loss();
        let probes = |r: &Recording| [97, 99, 100, 105].map(|at| r.probe(&shard(), at * S));
        let (silent, nobody) = (Probe::Silent, Probe::Nobody);
        assert_eq!(probes(&recording), [silent, nobody, nobody, nobody]);
        [103, 104].into_iter().for_each(|at| recording.will_beat(at * S, &beat("p", 0, &[])));
        recording.beat(103 * S, &beat("p", 0, &[]));
        assert_eq!(recording.probe(&shard(), 105 * S), silent, "another process may be asked anew");
    }

    #[test]
    fn a_silence_that_nobody_judged_was_none_to_be_judged() {
        let mut recording = with_loss();
        let beats = [90, 91, 96, 98, 104, 105].map(|s| s * S);
        beats.iter().for_each(|at_us| recording.will_beat(*at_us, &beat("p", 0, &[])));
        let answers = beats.map(|at_us| {
            recording.beat(at_us, &beat("p", 0, &[]));
            recording.probe(&shard(), at_us)
        });
        let (silent, answered) = (Probe::Silent, Probe::Answered);
        // From 91 to 96 s it beat for nobody and was spared; from 98 to 104 s it was lost; two seconds are no silence.
        assert_eq!(answers[..3], [silent, answered, silent]);
        assert_eq!(answers[4], silent);
        // What comes of a silence that lasts into the end is known to nobody; what was judged very late was spared before.
        let (mut ends, mut late) = (with_loss(), with_loss());
        ends.until_us = 111 * S;
        for (recording, at_us) in [(&mut ends, 101 * S), (&mut late, 85 * S)] {
            recording.will_beat(at_us, &beat("p", 0, &[]));
            recording.beat(at_us, &beat("p", 0, &[]));
        }
        assert_eq!((ends.probe(&shard(), 102 * S), late.probe(&shard(), 86 * S)), (silent, answered));
        ends.until_us = 112 * S;
        assert_eq!(ends.probe(&shard(), 102 * S), answered);
        // Lost for a silence that began with the beat at 98 s, it beats at 99.9 s, before that is told.
        let mut thaws = with_loss();
        thaws.judged_after_us = S;
        [98 * S, 99 * S + 900_000].iter().for_each(|at_us| thaws.will_beat(*at_us, &beat("p", 0, &[])));
        thaws.beat(98 * S, &beat("p", 0, &[]));
        assert_eq!(thaws.probe(&shard(), 99 * S + 500_000), Probe::Nobody);
        thaws.losses.values_mut().flatten().for_each(|l| l.is_proven = false);
        assert_eq!(thaws.probe(&shard(), 99 * S + 500_000), silent);
        assert!(recording.is_silent(&shard(), 99 * S) && !recording.is_silent(&shard(), 98 * S));
        assert_eq!(recording.fell_silent(97 * S, 98 * S), BTreeSet::from([&shard()]));
        assert_eq!(recording.fell_silent(98 * S, 99 * S), BTreeSet::new());
    }

    #[test]
    fn who_is_frozen_is_not_there_though_it_beats_again_and_who_was_killed_is_not_though_another_does() {
        let mut recording = Recording::new(State::default(), Vec::new(), &Settings::default(), 200 * S);
        // It freezes at 102 s, thaws at 106 s with two beats at once, is killed, and started again; then it is gone.
        let beats = [(101 * S, "p"), (102 * S, "p"), (106 * S, "p"), (106 * S + 32_000, "p"), (107 * S, "q")];
        beats.iter().for_each(|(at_us, process)| recording.will_beat(*at_us, &beat(process, 0, &[])));
        assert!(!recording.is_there(&shard()), "it was not heard yet");
        let there = beats.map(|(at_us, process)| {
            recording.beat(at_us, &beat(process, 0, &[]));
            recording.is_there(&shard())
        });
        assert_eq!(there, [true, false, true, false, false]);
    }

    #[test]
    fn a_game_that_was_left_out_is_left_out_until_it_is_named_or_another_process_comes() {
        let id: GameId = "nfl-1".parse().unwrap();
        let mut recording = Recording::new(State::default(), Vec::new(), &Settings::default(), 200 * S);
        recording.state.games.insert(id.clone(), live(0, owner(5, 0, None)));
        recording.beat(101 * S, &beat("p", 4, &[]));
        assert!(!recording.left_out(&shard(), &id), "it had not heard yet that it is its own");
        recording.beat(102 * S, &beat("p", 5, &[]));
        assert!(recording.left_out(&shard(), &id));
        recording.state.games.get_mut(&id).unwrap().owner = None;
        recording.beat(103 * S, &beat("p", 6, &[]));
        assert!(recording.left_out(&shard(), &id), "that it was taken away does not tell that it would watch it");
        recording.beat(104 * S, &beat("p", 7, &["nfl-1"]));
        assert!(!recording.left_out(&shard(), &id));
        recording.left_out.entry(shard()).or_default().insert(id.clone());
        recording.beat(105 * S, &beat("q", 7, &[]));
        assert!(!recording.left_out(&shard(), &id));
    }

    #[test]
    fn a_beat_over_redis_fails_what_its_service_is_known_to_fail() {
        let failed = ["espn_api_ok".to_owned(), "redis_ok".to_owned()];
        let told: Vec<(String, bool)> = checks(&failed).into_iter().map(|c| (c.name, c.ok)).collect();
        let wanted = [("espn_api_ok", false), ("redis_ok", false), ("ws_ok", true), ("vpn_ok", true)];
        assert_eq!(told, wanted.map(|(name, ok)| (name.to_owned(), ok)));
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
