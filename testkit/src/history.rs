//! A long and busy history, made by the leader's own decisions: for tests and benchmarks that need a full log.

use std::collections::VecDeque;
use std::sync::Arc;

use arbees_fleet::decide::{Medium, Now};
use arbees_fleet::{Fleet, GameReport, Input, ReportedPhase, SECOND, Settings, State};
use arbees_proto::subject::Names;
use arbees_proto::{GameId, Payload, Sealed, v1};

/// Some moment in 2026.
const BEGIN: i64 = 1_790_000_000 * SECOND;
/// Games in a slate. Each slate of them makes at most 450 events, well below a turn's bound.
const SLATE: usize = 150;
/// What befalls each slate's games, one after the other.
const LIFE: [ReportedPhase; 4] =
    [ReportedPhase::Live, ReportedPhase::Suspended, ReportedPhase::Live, ReportedPhase::Canceled];

/// A leader whose day never ends.
#[derive(Debug)]
pub struct History {
    fleet: Fleet,
    now: i64,
    shards: usize,
    max_games: u32,
    round: usize,
    beats: u64,
    inputs: VecDeque<Input>,
}

impl History {
    /// An empty log with so many shards to come.
    #[must_use]
    pub fn new(shards: usize, max_games: u32) -> Self {
        let me = v1::Producer { service: "orchestrator".into(), instance: "o".into(), process: "p".into() };
        let mut fleet = Fleet::new(State::default(), Settings::default(), Names::new(""), me, at(BEGIN));
        fleet.take_office(at(BEGIN), 0);
        Self { fleet, now: BEGIN + 20 * SECOND, shards, max_games, round: 0, beats: 0, inputs: VecDeque::new() }
    }

    /// The state after everything handed out.
    #[must_use]
    pub const fn state(&self) -> &State {
        self.fleet.state()
    }

    /// The next batch of events, to be appended right after the sequence that comes with it. There always is one.
    pub fn turn(&mut self) -> (u64, Vec<Sealed>) {
        loop {
            let events = self.fleet.end_turn().events;
            if !events.is_empty() {
                return (self.fleet.state().head.sequence - events.len() as u64, events);
            }
            let input = self.next_input();
            self.fleet.decide(at(self.now), input);
        }
    }

    /// The batches that give `games` live games to the fleet, and see them confirmed.
    pub fn place(&mut self, games: usize) -> Vec<(u64, Vec<Sealed>)> {
        let mut turns = Vec::new();
        let mut take = |history: &mut Self, input| {
            history.fleet.decide(at(history.now), input);
            let events = history.fleet.end_turn().events;
            if !events.is_empty() {
                turns.push((history.fleet.state().head.sequence - events.len() as u64, events));
            }
        };
        for shard in 0..self.shards {
            let beat = self.beat(shard);
            take(self, beat);
        }
        let all: Vec<usize> = (0..games).collect();
        for slate in all.chunks(SLATE) {
            let games = slate.iter().map(|n| report(&format!("nhl-{n}"), ReportedPhase::Live)).collect();
            take(self, Input::Slate { games, schedule: false });
        }
        for shard in 0..self.shards {
            let beat = self.beat(shard);
            take(self, beat);
        }
        turns
    }

    fn next_input(&mut self) -> Input {
        if let Some(input) = self.inputs.pop_front() {
            return input;
        }
        let first = self.round / LIFE.len() * SLATE;
        let phase = LIFE[self.round % LIFE.len()];
        let games = (first..first + SLATE).map(|n| report(&format!("nba-{n}"), phase)).collect();
        self.inputs.push_back(Input::Slate { games, schedule: false });
        self.round += 1;
        self.now += 1_200 * SECOND;
        // The next beats tell of what the slate before brought.
        for shard in 1..self.shards {
            let beat = self.beat(shard);
            self.inputs.push_front(beat);
        }
        self.beat(0)
    }

    /// A beat of a shard that watches all it owns.
    fn beat(&mut self, shard: usize) -> Input {
        self.beats += 1;
        let name = shard_name(shard);
        let held = |(id, g): (&GameId, &arbees_fleet::state::Game)| {
            let owner = g.owner.as_ref().filter(|o| o.shard.as_str() == name)?;
            Some(v1::Watched { game: id.to_string(), epoch: owner.epoch.0 })
        };
        let games = self.fleet.state().games.iter().filter_map(held).collect();
        let service = v1::Service {
            kind: "shard".into(),
            instance: name.clone(),
            process: "p".into(),
            shard_type: "sports".into(),
            max_games: self.max_games,
            on_log: true,
            ..v1::Service::default()
        };
        let heartbeat = v1::Heartbeat {
            service: Some(service),
            status: "healthy".into(),
            checks: vec![v1::Check { name: "redis_ok".into(), ok: true }],
            games,
            ..v1::Heartbeat::default()
        };
        let event = v1::Event { payload: Some(Payload::Heartbeat(heartbeat)), ..v1::Event::default() };
        Input::Beat(Arc::new(event), Medium::Log { sequence: self.beats })
    }
}

const fn at(at: i64) -> Now {
    Now { wall_us: at, steady_us: at }
}

/// The name of the shard `number`.
#[must_use]
pub fn shard_name(number: usize) -> String {
    format!("shard_{number:02}")
}

fn report(id: &str, phase: ReportedPhase) -> GameReport {
    // Made of letters, a dash and digits by the two callers above.
    let id: GameId = id.parse().expect("a valid id");
    let team = |name: &str| Some(v1::Team { name: format!("{name} {}", id.event()), abbreviation: name[..1].into() });
    let info = v1::Game {
        id: id.to_string(),
        league: id.league().to_string(),
        home: team("Herons"),
        away: team("Kites"),
        starts_at_us: BEGIN,
        markets: None,
        postseason: false,
    };
    GameReport { id, info, phase, status: format!("STATUS_{phase:?}").to_uppercase() }
}
