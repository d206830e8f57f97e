//! A leader's mind under some settings, fed by the recording. What its decisions change about the heartbeats that follow is
//! changed in them: who watches what under which epoch, and who was fenced.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use arbees_fleet::decide::operator::Ask;
use arbees_fleet::decide::{Medium, Now};
use arbees_fleet::state::ServiceKey;
use arbees_fleet::{Effect, Fleet, GameReport, Input, SECOND, Settings, State};
use arbees_proto::subject::Names;
use arbees_proto::{Payload, ServiceKind, ShardId, v1};

use super::measure::Measure;
use super::recording::{Recording, sender};
use super::{Outcome, at};

/// The name of the leader that never was.
const ME: &str = "what-if";
/// From a decision until the shard it concerns has heard of it.
const HEARS_AFTER: i64 = SECOND / 10;

/// Between two recorded heartbeats there is room for so many more.
const BETWEEN: u64 = 1_000;

/// What a shard said last.
#[derive(Debug)]
struct Said {
    event: v1::Event,
    /// Recorded, with room behind it.
    sequence: u64,
    /// When it beats out of turn: what it watches has changed.
    again_us: Option<i64>,
}

/// A fenced process that was not heard again since.
#[derive(Debug)]
struct Fenced {
    process: String,
    fence: u64,
}

/// One replay.
#[derive(Debug)]
pub(super) struct Replayed {
    fleet: Fleet,
    redis_interval: i64,
    /// The next beats of those who beat over Redis.
    redis_us: i64,
    fenced: BTreeMap<ServiceKey, Fenced>,
    /// What each shard said last, as it was recorded.
    said: BTreeMap<ServiceKey, Said>,
    fences: u64,
    /// Ends of the log and when it ended there, the newest last.
    heads: VecDeque<(i64, u64)>,
    outcome: Outcome,
    measure: Measure,
}

impl Replayed {
    /// A leader that listens from `now` on.
    pub fn new(name: &str, state: State, settings: &Settings, names: Names, now: Now) -> Self {
        let me = v1::Producer { service: "orchestrator".to_owned(), instance: ME.to_owned(), process: ME.to_owned() };
        let redis_interval = settings.redis_interval;
        // What was recorded as over was confirmed then.
        let settings = Settings { final_confirm: 0, ..settings.clone() };
        let heads = VecDeque::from([(now.wall_us, state.head.sequence)]);
        Self {
            fleet: Fleet::new(state, settings, names, me, now),
            redis_interval,
            redis_us: 0,
            fenced: BTreeMap::new(),
            said: BTreeMap::new(),
            fences: 0,
            heads,
            outcome: Outcome { name: name.to_owned(), ..Outcome::default() },
            measure: Measure::new(now.wall_us),
        }
    }

    /// Hears a beat of before the beginning.
    pub fn listen(&mut self, now: Now, event: &v1::Event, sequence: u64) {
        self.note(event, sequence);
        let event = own(event, now).unwrap_or_else(|| event.clone());
        self.fleet.observe(now, &Input::Beat(Arc::new(event), Medium::Log { sequence: sequence * BETWEEN }));
    }

    /// Leads from now on.
    pub fn begin(&mut self, now: Now, open: &BTreeSet<String>, recording: &Recording) {
        self.measure = Measure::new(now.wall_us);
        self.redis_us = now.wall_us;
        for (event, medium) in recording.redis_beats(now.wall_us, |_| Vec::new()) {
            self.fleet.observe(now, &Input::Beat(event, medium));
        }
        self.fleet.take_office(now, 0);
        self.fleet.trust_media(now);
        self.fleet.know_open(now, open);
        self.conclude(now, recording);
    }

    /// Does what is due before `to_us`: a leader looks at a silence when it must, and shards say at once what they watch.
    pub fn run_to(&mut self, to_us: i64, recording: &Recording) {
        loop {
            let again = self.said.iter().filter_map(|(key, said)| Some((said.again_us?, key))).min();
            let wake_us = self.fleet.wake_at_us().filter(|at| *at < to_us);
            match (wake_us, again.filter(|(at, _)| *at < to_us)) {
                (Some(wake_us), again) if again.is_none_or(|(at, _)| wake_us <= at) => {
                    let now = at(wake_us);
                    self.fleet.decide(now, Input::Tick);
                    self.conclude(now, recording);
                }
                (_, Some((again_us, key))) => {
                    let key = key.clone();
                    self.beat_again(at(again_us), &key, recording);
                }
                _ => return,
            }
        }
    }

    /// Takes in what time and the recording bring.
    pub fn tick(&mut self, now: Now, slate: &[GameReport], asked: &[Ask], recording: &Recording) {
        if !slate.is_empty() {
            self.fleet.decide(now, Input::Slate { games: slate.to_vec(), schedule: true });
            self.conclude(now, recording);
        }
        for ask in asked {
            if let Err(why) = self.fleet.operate(now, ask) {
                self.outcome.refused.push(format!("{}: {why}", ask.verb.name()));
            }
            self.conclude(now, recording);
        }
        if now.wall_us >= self.redis_us {
            self.redis_us += self.redis_interval;
            for (event, medium) in recording.redis_beats(now.wall_us, |shard| self.watched(shard, now)) {
                self.fleet.decide(now, Input::Beat(event, medium));
            }
        }
        self.fleet.decide(now, Input::RedisEcho);
        self.fleet.decide(now, Input::Tick);
        self.conclude(now, recording);
        self.measure.look(now.wall_us, self.fleet.state(), recording.beats());
    }

    /// Takes in a recorded heartbeat, as it would have been.
    pub fn beat(&mut self, now: Now, event: &v1::Event, sequence: u64, recording: &Recording) {
        self.note(event, sequence);
        let Some(event) = own(event, now).or_else(|| self.rewritten(event, now, recording)) else { return };
        self.fleet.decide(now, Input::Beat(Arc::new(event), Medium::Log { sequence: sequence * BETWEEN }));
        self.conclude(now, recording);
    }

    /// A shard whose games have changed beats out of turn, if it is there.
    fn beat_again(&mut self, now: Now, key: &ServiceKey, recording: &Recording) {
        let Some(said) = self.said.get_mut(key) else { return };
        said.again_us = None;
        if !recording.is_there(key) {
            return;
        }
        said.sequence += 1;
        let (event, sequence) = (said.event.clone(), said.sequence);
        let Some(event) = self.rewritten(&event, now, recording) else { return };
        self.fleet.decide(now, Input::Beat(Arc::new(event), Medium::Log { sequence }));
        self.conclude(now, recording);
    }

    /// Notes who said what.
    fn note(&mut self, event: &v1::Event, sequence: u64) {
        let (Some(key), Some(service)) = (sender(event), service_of(event)) else { return };
        if self.fenced.get(&key).is_some_and(|f| f.process != service.process) {
            self.fenced.remove(&key);
        }
        if key.kind == ServiceKind::Shard {
            let again_us = self.said.get(&key).and_then(|s| s.again_us);
            let (event, sequence) = (event.clone(), sequence * BETWEEN);
            self.said.insert(key, Said { event, sequence, again_us });
        }
    }

    /// The shard hears of a change of its games, and says so.
    fn will_say(&mut self, shard: &str, now: Now) {
        let Ok(shard) = shard.parse() else { return };
        if let Some(said) = self.said.get_mut(&ServiceKey::shard(shard)) {
            said.again_us.get_or_insert(now.wall_us + HEARS_AFTER);
        }
    }

    /// A shard's beat with the games that are its own here. None: it is no heartbeat.
    fn rewritten(&self, event: &v1::Event, now: Now, recording: &Recording) -> Option<v1::Event> {
        let Some(Payload::Heartbeat(beat)) = &event.payload else { return None };
        let key = sender(event)?;
        if key.kind != ServiceKind::Shard {
            return Some(event.clone());
        }
        let fence_sequence = self.fenced.get(&key).map_or(0, |f| f.fence);
        let works = matches!(beat.status.as_str(), "healthy" | "degraded" | "unhealthy") || !beat.games.is_empty();
        let mut games = if works && fence_sequence == 0 { self.watched(&key.instance, now) } else { Vec::new() };
        games.retain(|w| w.game.parse().is_ok_and(|id| !recording.left_out(&key.instance, &id, beat)));
        let last_applied = self.heard_through(now);
        let beat = v1::Heartbeat { games, last_applied, fence_sequence, rejected: Vec::new(), ..beat.clone() };
        Some(v1::Event { payload: Some(Payload::Heartbeat(beat)), ..event.clone() })
    }

    /// What a shard that has heard all but the newest watches.
    fn watched(&self, shard: &ShardId, now: Now) -> Vec<v1::Watched> {
        let heard = self.heard_through(now);
        let owned = self.fleet.owned().filter_map(|(id, g)| Some((id, g.owner.as_ref()?)));
        let its = owned.filter(|(_, o)| o.shard == *shard && o.epoch.sequence() <= heard);
        its.map(|(id, o)| v1::Watched { game: id.to_string(), epoch: o.epoch.0 }).collect()
    }

    /// The end of the log as shards have heard it.
    fn heard_through(&self, now: Now) -> u64 {
        let heard = self.heads.iter().rev().find(|(at_us, _)| *at_us <= now.wall_us - HEARS_AFTER);
        heard.or_else(|| self.heads.front()).map_or(0, |(_, sequence)| *sequence)
    }

    /// Ends the turn, and answers what it asks, until it asks no more.
    fn conclude(&mut self, now: Now, recording: &Recording) {
        loop {
            let turn = self.fleet.end_turn();
            for sealed in &turn.events {
                self.outcome.count(now.wall_us, &sealed.event);
                match &sealed.event.payload {
                    Some(Payload::ServiceRecovered(e)) => {
                        self.fenced.retain(|key, _| key.kind.as_str() != e.kind || key.instance.as_str() != e.instance);
                        self.will_say(&e.instance, now);
                    }
                    Some(Payload::GameAssigned(e)) => self.will_say(&e.shard, now),
                    Some(Payload::GameReassigned(e)) => {
                        self.will_say(&e.shard, now);
                        self.will_say(&e.from, now);
                    }
                    _ => {}
                }
            }
            let mut asks = false;
            for effect in turn.effects {
                let input = match effect {
                    Effect::Probe { key } => Input::Probed { answer: recording.probe(&key, now.wall_us), key },
                    Effect::Judge { key, heartbeat } => self.fence(key, heartbeat),
                    Effect::Alert(alert) => {
                        self.outcome.raised(&alert.kind);
                        continue;
                    }
                    _ => continue,
                };
                asks = true;
                self.fleet.decide(now, input);
            }
            if !asks && turn.events.is_empty() {
                break;
            }
        }
        let head = self.fleet.state().head.sequence;
        if self.heads.back().is_none_or(|(_, known)| *known != head) {
            self.heads.push_back((now.wall_us, head));
        }
        // The newest that is old enough is all that is asked for.
        while self.heads.get(1).is_some_and(|(at_us, _)| *at_us <= now.wall_us - HEARS_AFTER) {
            self.heads.pop_front();
        }
    }

    /// No newer beat is stored: whoever beats next finds the fence.
    fn fence(&mut self, key: ServiceKey, heartbeat: u64) -> Input {
        self.fences += 1;
        let fence = self.fences;
        if let Some(service) = self.said.get(&key).and_then(|said| service_of(&said.event)) {
            self.fenced.insert(key.clone(), Fenced { process: service.process.clone(), fence });
        }
        Input::Fenced { key, heartbeat, fence }
    }

    /// What came of it.
    pub fn finish(mut self, until_us: i64, recording: &Recording) -> Outcome {
        self.measure.look(until_us, self.fleet.state(), recording.beats());
        self.measure.end(until_us);
        self.outcome.measured(&self.measure);
        self.outcome
    }
}

/// What the sender of a heartbeat says of itself.
const fn service_of(event: &v1::Event) -> Option<&v1::Service> {
    match &event.payload {
        Some(Payload::Heartbeat(beat)) => beat.service.as_ref(),
        _ => None,
    }
}

/// An orchestrator's beat as that of the leader that never was: the log carried it.
fn own(event: &v1::Event, now: Now) -> Option<v1::Event> {
    let Some(Payload::Heartbeat(beat)) = &event.payload else { return None };
    let service = beat.service.as_ref().filter(|s| s.kind == ServiceKind::Orchestrator.as_str())?;
    let service = v1::Service { process: ME.to_owned(), instance: ME.to_owned(), ..service.clone() };
    let beat = v1::Heartbeat { service: Some(service), ..beat.clone() };
    Some(v1::Event { occurred_at_us: now.wall_us, payload: Some(Payload::Heartbeat(beat)), ..event.clone() })
}
