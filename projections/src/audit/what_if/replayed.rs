//! A leader's mind under some settings, fed by the recording. What its decisions change about the heartbeats that follow is
//! changed in them: who watches what under which epoch, who was fenced, who waits for a lease to end, and whose league still fails.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use arbees_fleet::checks::{ESPN, espn, league_of};
use arbees_fleet::decide::{Medium, Now};
use arbees_fleet::state::{Owner, ServiceKey};
use arbees_fleet::{Effect, Fleet, Input, SECOND, Settings, State};
use arbees_proto::subject::Names;
use arbees_proto::{GameId, League, Payload, ServiceKind, ShardId, v1};

use super::measure::{Beats, Measure};
use super::recording::{News, Recording, acts, beat_of, process, sender};
use super::{Outcome, TICK, at};

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
    /// Until when its process waits for the lease of the one before to end; none: it is the first that was heard.
    quiet_until_us: Option<i64>,
    /// Leagues whose data it failed to get, and of whose games it has kept some since and named none.
    failing: BTreeSet<League>,
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
    lease_ttl: i64,
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
    beats: Beats,
}

impl Replayed {
    /// A leader that listens from `now` on.
    pub fn new(name: &str, state: State, settings: &Settings, names: Names, now: Now) -> Self {
        let me = v1::Producer { service: "orchestrator".to_owned(), instance: ME.to_owned(), process: ME.to_owned() };
        let (redis_interval, lease_ttl) = (settings.redis_interval, settings.lease_ttl);
        let beats = Beats::new(settings);
        // What was recorded as over was confirmed then.
        let settings = Settings { final_confirm: 0, ..settings.clone() };
        let heads = VecDeque::from([(now.wall_us, state.head.sequence)]);
        Self {
            fleet: Fleet::new(state, settings, names, me, now),
            redis_interval,
            lease_ttl,
            redis_us: 0,
            fenced: BTreeMap::new(),
            said: BTreeMap::new(),
            fences: 0,
            heads,
            outcome: Outcome { name: name.to_owned(), ..Outcome::default() },
            measure: Measure::new(now.wall_us),
            beats,
        }
    }

    /// Hears a beat of before the beginning.
    pub fn listen(&mut self, now: Now, event: &v1::Event, sequence: u64) {
        self.note(now, event, sequence);
        self.hear(now, event);
        let event = own(event, now).unwrap_or_else(|| event.clone());
        self.fleet.observe(now, &Input::Beat(Arc::new(event), Medium::Log { sequence: sequence * BETWEEN }));
    }

    /// Leads from now on.
    pub fn begin(&mut self, now: Now, open: &BTreeSet<String>, recording: &Recording) {
        self.measure = Measure::new(now.wall_us);
        self.redis_us = now.wall_us;
        for (event, medium) in recording.redis_beats(|key| !recording.is_silent(key, now.wall_us), |_| Vec::new()) {
            self.hear(now, &event);
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
    pub fn tick(&mut self, now: Now, news: &News, recording: &Recording) {
        if !news.reports.is_empty() {
            self.fleet.decide(now, Input::Slate { games: news.reports.clone(), schedule: true });
            self.conclude(now, recording);
        }
        for ask in &news.asked {
            if let Err(why) = self.fleet.operate(now, ask) {
                self.outcome.refused.push(format!("{}: {why}", ask.verb.name()));
            }
            self.conclude(now, recording);
        }
        let is_due = now.wall_us >= self.redis_us;
        let last_words = recording.fell_silent(now.wall_us - TICK, now.wall_us);
        if is_due {
            self.redis_us += self.redis_interval;
        }
        let wanted = |key: &ServiceKey| {
            last_words.contains(key) || news.heard.contains(key) || is_due && !recording.is_silent(key, now.wall_us)
        };
        for (event, medium) in recording.redis_beats(wanted, |shard| self.watched(shard, now)) {
            self.hear(now, &event);
            self.fleet.decide(now, Input::Beat(event, medium));
        }
        self.fleet.decide(now, Input::RedisEcho);
        self.fleet.decide(now, Input::Tick);
        self.conclude(now, recording);
        self.measure.look(now.wall_us, self.fleet.state(), &self.beats);
    }

    /// Takes in a recorded heartbeat, as it would have been.
    pub fn beat(&mut self, now: Now, event: &v1::Event, sequence: u64, recording: &Recording) {
        self.note(now, event, sequence);
        let Some(event) = own(event, now).or_else(|| self.rewritten(event, now, recording)) else { return };
        self.hear(now, &event);
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
        self.hear(now, &event);
        self.fleet.decide(now, Input::Beat(Arc::new(event), Medium::Log { sequence }));
        self.conclude(now, recording);
        // What it had not heard of yet it says when it has.
        let heard = self.heard_through(now);
        let is_its = |o: &Owner| o.shard == key.instance && o.epoch.sequence() > heard;
        if self.fleet.owned().any(|(_, g)| g.owner.as_ref().is_some_and(is_its)) {
            self.will_say(key.instance.as_str(), now);
        }
    }

    /// Notes that a service said something, and so does its work.
    fn hear(&mut self, now: Now, event: &v1::Event) {
        let (Some(key), Some(beat)) = (sender(event), beat_of(event)) else { return };
        if key.kind == ServiceKind::Shard && acts(beat) {
            let on_log = beat.service.as_ref().is_some_and(|s| s.on_log);
            self.beats.note(key.instance, now.wall_us, on_log);
        }
    }

    /// Notes who said what.
    fn note(&mut self, now: Now, event: &v1::Event, sequence: u64) {
        let (Some(key), Some(beat)) = (sender(event), beat_of(event)) else { return };
        let process = process(beat);
        let was_fenced = self.fenced.contains_key(&key);
        if self.fenced.get(&key).is_some_and(|f| f.process != process) {
            self.fenced.remove(&key);
        }
        if key.kind != ServiceKind::Shard {
            return;
        }
        let before = self.said.get(&key);
        let again_us = before.and_then(|s| s.again_us);
        let same = before.filter(|s| s.is_of(process));
        let quiet_until_us = match (before, same) {
            (_, Some(same)) => same.quiet_until_us,
            // Nobody's lease can last: it was fenced, or given up with the last word.
            (Some(other), None) if was_fenced || other.is_over() => Some(now.wall_us),
            (Some(_), None) => Some(now.wall_us + self.lease_ttl - 2 * HEARS_AFTER),
            (None, None) => None,
        };
        let watches = leagues(&beat.games);
        let mut failing: BTreeSet<League> = same.map(|s| s.failing.clone()).unwrap_or_default();
        let its = self.fleet.owned().filter(|(_, g)| g.owner.as_ref().is_some_and(|o| o.shard == key.instance));
        let keeps: BTreeSet<League> = its.map(|(id, _)| id.league()).collect();
        failing.retain(|league| !watches.contains(league) && keeps.contains(league));
        let failed = beat.checks.iter().filter(|c| !c.ok).filter_map(|c| league_of(&c.name)?.parse::<League>().ok());
        failing.extend(failed);
        let (event, sequence) = (event.clone(), sequence * BETWEEN);
        self.said.insert(key, Said { event, sequence, again_us, quiet_until_us, failing });
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
        let beat = beat_of(event)?;
        let key = sender(event)?;
        if key.kind != ServiceKind::Shard {
            return Some(event.clone());
        }
        let fence_sequence = self.fenced.get(&key).map_or(0, |f| f.fence);
        let works = matches!(beat.status.as_str(), "healthy" | "degraded" | "unhealthy") || !beat.games.is_empty();
        let mut games = if works && fence_sequence == 0 { self.watched(&key.instance, now) } else { Vec::new() };
        games.retain(|w| w.game.parse().is_ok_and(|id| !recording.left_out(&key, &id)));
        let last_applied = self.heard_through(now);
        let mut beat = v1::Heartbeat { games, last_applied, fence_sequence, rejected: Vec::new(), ..beat.clone() };
        if let Some(said) = self.said.get(&key) {
            // Who watches nothing of a league any more is well without knowing whether it would be.
            let watches = leagues(&beat.games);
            let failing: Vec<String> = said.failing.intersection(&watches).map(|league| espn(*league)).collect();
            if !failing.is_empty() {
                beat.checks.retain(|c| c.name != ESPN && !failing.contains(&c.name));
                let failed = failing.into_iter().chain([ESPN.to_owned()]);
                beat.checks.extend(failed.map(|name| v1::Check { name, ok: false }));
                if beat.status == "healthy" {
                    "degraded".clone_into(&mut beat.status);
                }
            }
            let waits = said.quiet_until_us.is_some_and(|until_us| now.wall_us < until_us);
            // In truth it waited for longer, or for somebody who was fenced here.
            let waited = said.quiet_until_us.is_some() && self.lease_ttl < recording.lease_ttl();
            match beat.status.as_str() {
                "healthy" | "degraded" if waits => "starting".clone_into(&mut beat.status),
                "starting" if waited && !waits => {
                    let is_well = beat.checks.iter().all(|c| c.ok);
                    if is_well { "healthy" } else { "degraded" }.clone_into(&mut beat.status);
                }
                _ => {}
            }
        }
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
                        let fenced = self.fenced.len();
                        self.fenced.retain(|key, _| key.kind.as_str() != e.kind || key.instance.as_str() != e.instance);
                        if self.fenced.len() < fenced {
                            self.will_say(&e.instance, now);
                        }
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
        if let Some(beat) = self.said.get(&key).and_then(|said| beat_of(&said.event)) {
            self.fenced.insert(key.clone(), Fenced { process: process(beat).to_owned(), fence });
        }
        Input::Fenced { key, heartbeat, fence }
    }

    /// What came of it.
    pub fn finish(mut self, until_us: i64) -> Outcome {
        self.measure.look(until_us, self.fleet.state(), &self.beats);
        self.measure.end(until_us);
        self.outcome.measured(&self.measure);
        self.outcome
    }
}

impl Said {
    fn is_of(&self, by: &str) -> bool {
        beat_of(&self.event).is_some_and(|beat| process(beat) == by)
    }

    /// It was the last word of a process that has handed over everything.
    fn is_over(&self) -> bool {
        beat_of(&self.event).is_some_and(|beat| beat.status == "stopping" && beat.games.is_empty())
    }
}

/// The leagues of these games.
fn leagues(games: &[v1::Watched]) -> BTreeSet<League> {
    games.iter().filter_map(|w| Some(w.game.parse::<GameId>().ok()?.league())).collect()
}

/// An orchestrator's beat as that of the leader that never was: the log carried it.
fn own(event: &v1::Event, now: Now) -> Option<v1::Event> {
    let Some(Payload::Heartbeat(beat)) = &event.payload else { return None };
    let service = beat.service.as_ref().filter(|s| s.kind == ServiceKind::Orchestrator.as_str())?;
    let service = v1::Service { process: ME.to_owned(), instance: ME.to_owned(), ..service.clone() };
    let beat = v1::Heartbeat { service: Some(service), ..beat.clone() };
    Some(v1::Event { occurred_at_us: now.wall_us, payload: Some(Payload::Heartbeat(beat)), ..event.clone() })
}

#[cfg(test)]
mod tests {
    use super::super::samples::{S, beat, live, owner, shard};
    use super::*;

    /// A replay in which the shard owns nfl-1 under `epoch`, and has heard ten events; and what was recorded, which is nothing.
    fn replay(lease_ttl: i64, epoch: u64) -> (Replayed, Recording) {
        let mut state = State::default();
        state.head.sequence = 10;
        state.games.insert("nfl-1".parse().unwrap(), live(90 * S, owner(epoch, 90 * S, Some(91 * S))));
        let settings = Settings { lease_ttl, ..Settings::default() };
        let replayed = Replayed::new("as set", state, &settings, Names::new(""), at(95 * S));
        (replayed, Recording::new(State::default(), Vec::new(), &Settings::default(), 200 * S))
    }

    /// What the shard says at `at_s` seconds when it said this in truth: its status and what it fails.
    fn says(replay: &mut (Replayed, Recording), at_s: i64, event: &v1::Event) -> (String, Vec<String>) {
        let (replayed, recording) = replay;
        replayed.note(at(at_s * S), event, 1);
        let said = replayed.rewritten(event, at(at_s * S), recording).unwrap();
        let beat = beat_of(&said).unwrap();
        let failed = beat.checks.iter().filter(|c| !c.ok).map(|c| c.name.clone());
        (beat.status.clone(), failed.collect())
    }

    #[test]
    fn who_keeps_the_games_of_a_league_that_fails_is_ill_for_as_long_as_nothing_says_otherwise() {
        let mut keeps = replay(2 * S, 5);
        let ill = beat("p", "degraded", &["nfl-1"], &["espn_nfl_ok", "espn_api_ok"]);
        let well = |games: &[&str]| beat("p", "healthy", games, &[]);
        let (is_ill, is_well) = ("degraded".to_owned(), ("healthy".to_owned(), Vec::new()));
        let fails = vec!["espn_nfl_ok".to_owned(), "espn_api_ok".to_owned()];
        assert_eq!(says(&mut keeps, 100, &ill), (is_ill.clone(), fails.clone()));
        // In truth its games were taken from it, and with them what it could not do.
        assert_eq!(says(&mut keeps, 110, &well(&[])), (is_ill.clone(), fails.clone()));
        assert_eq!(says(&mut keeps, 111, &well(&["nba-1"])), (is_ill, fails), "of the league it says nothing");
        assert_eq!(says(&mut keeps, 112, &well(&["nfl-2"])), is_well);
        assert_eq!(says(&mut keeps, 113, &well(&[])), is_well);
        let mut gives_up = replay(2 * S, 5);
        says(&mut gives_up, 100, &ill);
        gives_up.0.fenced.insert(shard(), Fenced { process: "p".into(), fence: 1 });
        assert_eq!(says(&mut gives_up, 110, &well(&[])), is_well, "it watches nothing there either");
        // It gives its game up and has it again: what failed then may work now.
        let mut has_again = replay(2 * S, 5);
        says(&mut has_again, 100, &ill);
        let owns = has_again.0.fleet.state().clone();
        has_again.0.fleet.refold(State::default());
        says(&mut has_again, 110, &well(&[]));
        has_again.0.fleet.refold(owns);
        assert_eq!(says(&mut has_again, 120, &well(&[])), is_well);
        let mut begins_anew = replay(2 * S, 5);
        says(&mut begins_anew, 100, &ill);
        begins_anew.0.fenced.insert(shard(), Fenced { process: "p".into(), fence: 1 });
        assert_eq!(says(&mut begins_anew, 110, &beat("q", "healthy", &[], &[])), is_well, "another process");
    }

    #[test]
    fn a_new_process_waits_for_the_lease_of_the_one_before_unless_that_was_fenced_or_given_up() {
        let status = |replay: &mut _, at_s, event: &_| says(replay, at_s, event).0;
        let (p, q) = (beat("p", "healthy", &["nfl-1"], &[]), beat("q", "healthy", &["nfl-1"], &[]));
        let mut patient = replay(8 * S, 5);
        let told = [(100, &p), (105, &q), (112, &q), (113, &q)].map(|(at_s, b)| status(&mut patient, at_s, b));
        assert_eq!(told, ["healthy", "starting", "starting", "healthy"]);
        let mut fenced = replay(8 * S, 5);
        status(&mut fenced, 100, &p);
        fenced.0.fenced.insert(shard(), Fenced { process: "p".into(), fence: 1 });
        assert_eq!(status(&mut fenced, 105, &q), "healthy");
        // In truth it waited for longer.
        let starting = beat("q", "starting", &["nfl-1"], &[]);
        for (lease_ttl, then) in [(S, "healthy"), (2 * S, "starting")] {
            let mut waits = replay(lease_ttl, 5);
            let told = [(100, &p), (101, &starting), (103, &starting)].map(|(at_s, b)| status(&mut waits, at_s, b));
            assert_eq!(told, ["healthy", "starting", then]);
            assert_eq!(status(&mut replay(lease_ttl, 5), 101, &starting), "starting", "it follows nobody");
        }
        let mut over = replay(8 * S, 5);
        status(&mut over, 100, &beat("p", "stopping", &[], &[]));
        assert_eq!(status(&mut over, 105, &q), "healthy");
        // Whoever waits watches nothing.
        let hears = |event: &v1::Event| {
            let (mut replayed, _) = replay(2 * S, 5);
            replayed.hear(at(96 * S), event);
            replayed.measure.look(96 * S, replayed.fleet.state(), &replayed.beats);
            replayed.measure.end(97 * S);
            replayed.measure.longest_us()
        };
        assert_eq!((hears(&p), hears(&beat("p", "starting", &["nfl-1"], &[]))), (0, 2 * S));
    }

    #[test]
    fn what_a_shard_has_not_heard_of_when_it_speaks_it_says_when_it_has() {
        for (epoch, again_us) in [(10, None), (11, Some(100 * S + HEARS_AFTER))] {
            let (mut replayed, mut recording) = replay(2 * S, epoch);
            let event = beat("p", "healthy", &[], &[]);
            [100, 101].into_iter().for_each(|at_s| recording.will_beat(at_s * S, &event));
            recording.beat(100 * S, &event);
            replayed.note(at(100 * S), &event, 1);
            replayed.beat_again(at(100 * S), &shard(), &recording);
            assert_eq!(replayed.said[&shard()].again_us, again_us, "epoch {epoch}");
        }
    }
}
