//! A leader with its log and a clock that is ours.

use std::sync::Arc;

use arbees_fleet::decide::{Medium, Now};
use arbees_fleet::{Effect, Entry, Fleet, GameReport, Input, ReportedPhase, SECOND, Settings, State};
use arbees_proto::subject::{Names, type_name};
use arbees_proto::{GameId, Payload, Sealed, v1};

/// Some moment in 2026.
pub const T0: i64 = 1_790_000_000 * SECOND;

/// A leader with its log and a clock that is ours.
pub struct Plane {
    pub fleet: Fleet,
    pub log: Vec<Sealed>,
    pub effects: Vec<Effect>,
    /// The wall clock and the steady one, which here are the same.
    pub now: i64,
    /// Sequence of the last heartbeat on the log.
    pub beats: u64,
}

/// Both clocks at `at`.
pub fn at(at: i64) -> Now {
    Now { wall_us: at, steady_us: at }
}

pub fn me() -> v1::Producer {
    v1::Producer { service: "orchestrator".into(), instance: "o1".into(), process: "p1".into() }
}

impl Plane {
    pub fn new() -> Self {
        Self::over(State::default(), Vec::new(), T0)
    }

    pub fn over(state: State, log: Vec<Sealed>, now: i64) -> Self {
        let fleet = Fleet::new(state, Settings::default(), Names::new(""), me(), at(now));
        let mut plane = Self { fleet, log, effects: Vec::new(), now, beats: 0 };
        plane.fleet.take_office(at(now), 0);
        plane.end_turn();
        plane
    }

    pub fn end_turn(&mut self) {
        let turn = self.fleet.end_turn();
        self.log.extend(turn.events);
        self.effects.extend(turn.effects);
    }

    pub fn hear(&mut self, input: Input) {
        self.fleet.decide(at(self.now), input);
        self.end_turn();
    }

    pub fn wait(&mut self, seconds: i64) {
        self.now += seconds * SECOND;
        self.hear(Input::Tick);
    }

    pub fn slate(&mut self, games: &[(&str, ReportedPhase)]) {
        let games = games.iter().map(|(id, phase)| report(id, *phase, self.now)).collect();
        self.hear(Input::Slate { games, schedule: false });
    }

    /// A beat of a log shard that watches what the log gives to it.
    pub fn beat(&mut self, shard: &str, max_games: u32) {
        let held = |(id, g): (&GameId, &arbees_fleet::state::Game)| {
            let owner = g.owner.as_ref().filter(|o| o.shard.as_str() == shard)?;
            Some(v1::Watched { game: id.to_string(), epoch: owner.epoch.0 })
        };
        let games = self.fleet.state().games.iter().filter_map(held).collect();
        let event = beat(shard, max_games, true, games);
        self.log_beat(event);
    }

    /// A beat on the log, the next of all.
    pub fn log_beat(&mut self, event: v1::Event) {
        self.beats += 1;
        self.hear(Input::Beat(Arc::new(event), Medium::Log { sequence: self.beats }));
    }

    /// Time passes second by second; the leader's own word comes back, and these shards beat well.
    pub fn live(&mut self, seconds: i64, shards: &[&str]) {
        for _ in 0..seconds {
            self.now += SECOND;
            let mut own = beat("o1", 0, true, Vec::new());
            if let Some(Payload::Heartbeat(h)) = &mut own.payload {
                let s = h.service.as_mut().unwrap();
                (s.kind, s.process) = ("orchestrator".into(), me().process);
            }
            own.occurred_at_us = self.now;
            self.log_beat(own);
            self.hear(Input::RedisEcho);
            for shard in shards {
                self.beat(shard, 20);
            }
            self.hear(Input::Tick);
        }
    }

    pub fn redis_beat(&mut self, shard: &str, games: &[&str]) {
        let watched = |g: &&str| v1::Watched { game: (*g).to_owned(), epoch: 0 };
        let event = beat(shard, 20, false, games.iter().map(watched).collect());
        self.hear(Input::RedisEcho);
        self.hear(Input::Beat(Arc::new(event), Medium::Redis));
    }

    pub fn types(&self) -> Vec<&'static str> {
        self.log.iter().filter_map(|e| e.event.payload.as_ref()).map(type_name).collect()
    }

    pub fn count(&self, name: &str) -> usize {
        self.types().iter().filter(|t| **t == name).count()
    }

    pub fn owner(&self, game: &str) -> Option<String> {
        let game = self.fleet.state().games.get(&game.parse::<GameId>().unwrap())?;
        game.owner.as_ref().map(|o| o.shard.to_string())
    }

    /// The log as a reader finds it.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |(i, e): (usize, &Sealed)| Entry {
            sequence: i as u64 + 1,
            subject: e.subject.clone(),
            event_type: e.event_type.to_owned(),
            hash: e.hash,
            payload: e.payload.clone(),
        };
        self.log.iter().enumerate().map(entry).collect()
    }

    pub fn folded(&self) -> State {
        let mut state = State::default();
        for entry in self.entries() {
            state.fold(&entry).unwrap();
        }
        state
    }
}

pub fn report(id: &str, phase: ReportedPhase, starts_at_us: i64) -> GameReport {
    let id: GameId = id.parse().unwrap();
    let info = v1::Game { id: id.to_string(), league: id.league().to_string(), starts_at_us, ..v1::Game::default() };
    let info = v1::Game { starts_at_us: if phase == ReportedPhase::Pre { starts_at_us } else { T0 }, ..info };
    GameReport { id, info, phase, status: format!("STATUS_{phase:?}").to_uppercase() }
}

pub fn beat(shard: &str, max_games: u32, on_log: bool, games: Vec<v1::Watched>) -> v1::Event {
    let service = v1::Service {
        kind: "shard".into(),
        instance: shard.into(),
        process: "p".into(),
        started_at_us: T0,
        shard_type: "sports".into(),
        max_games,
        on_log,
        ..v1::Service::default()
    };
    let checks = vec![v1::Check { name: "redis_ok".into(), ok: true }];
    let heartbeat = v1::Heartbeat {
        service: Some(service),
        status: "healthy".into(),
        checks,
        games,
        last_applied: u64::from(u32::MAX),
        ..v1::Heartbeat::default()
    };
    v1::Event { payload: Some(Payload::Heartbeat(heartbeat)), ..v1::Event::default() }
}

/// One shard with one live game.
pub fn live_game() -> Plane {
    let mut p = Plane::new();
    p.wait(12);
    p.beat("s1", 20);
    p.slate(&[("nfl-1", ReportedPhase::Live)]);
    p.beat("s1", 20);
    assert_eq!(p.owner("nfl-1").as_deref(), Some("s1"));
    p
}
