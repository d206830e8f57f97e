//! The whole plane on one seed and one virtual clock: orchestrators, shards, the log with its real semantics, a Redis that
//! loses, repeats and reorders, clocks that drift and jump, a feed, and faults. It drives the same `Fleet`, append protocol,
//! lease and game set as production; only the shells around them are its own.
//!
//! What it checks after every step is in `rules.rs`, what it breaks in `faults.rs`.

mod faults;
mod network;
mod orchestrator;
mod rng;
mod rules;
mod server;
mod shard;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arbees_fleet::decide::Now;
use arbees_fleet::{Entry, GameReport, GameSet, ReportedPhase, State};
use arbees_proto::{EventId, GameId, Sealed, v1};

use self::faults::Fault;
use self::orchestrator::Orchestrator;
use self::rng::Rng;
use self::server::{Beat, Server, Written};
use self::shard::Shard;

/// Microseconds in a second.
const SECOND: i64 = 1_000_000;
/// One seed is this long.
pub const LENGTH: i64 = 600 * SECOND;
/// At its end nothing breaks for so long, and all must come right.
const REST: i64 = 120 * SECOND;
/// Wall time when a world begins: some moment in 2026.
const EPOCH: i64 = 1_790_000_000 * SECOND;
/// Lines of history that are kept.
const HISTORY: usize = 60;
/// A tail shows itself alive this often.
const PUMP_EVERY: i64 = 500_000;

/// Where a message goes to or comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    Orchestrator(usize),
    Shard(usize),
}

/// What a program asks of the log.
#[derive(Clone, Debug)]
enum Request {
    Append { expected: u64, events: Vec<Sealed> },
    ReadIds { from: u64, count: usize },
    Beat { number: u64, expected: u64, event: v1::Event },
    PlainBeat { event: v1::Event },
    LastBeat { shard: String, judging: Option<u64> },
    Fence { shard: String, heartbeat: u64, expected: u64 },
    Recover,
    Key { revision: u64 },
    Probe { shard: String },
}

/// What the log answers.
#[derive(Clone, Debug)]
enum Answer {
    Appended(Written),
    Ids(Vec<Option<EventId>>),
    Beaten { number: u64, written: Written },
    Looked { asked_us: i64, last: Option<Beat> },
    Judged { shard: String, heartbeat: u64, last: Option<Beat> },
    Fenced { shard: String, heartbeat: u64, written: Written },
    Recovered { asked_us: i64, set: GameSet },
    Key { sent_us: i64, written: Written },
    Probed { shard: String, is_there: bool },
}

/// What happens at a node.
#[derive(Clone, Debug)]
enum Message {
    Wake,
    Answer(Box<Answer>),
    /// Nothing came back in time.
    NoAnswer(u64),
    Control(Arc<Entry>),
    /// A message of HEARTBEATS.
    Heard(Arc<Beat>),
    /// The tail stands at the end.
    AtEnd,
    Slate(Arc<[GameReport]>),
    /// An orchestrator's word on Redis.
    Word {
        instance: String,
        log_ok: bool,
    },
    Stop,
}

#[derive(Clone, Debug)]
enum Happening {
    At { node: Node, life: u64, message: Message },
    Server { from: Node, life: u64, number: u64, sent_us: i64, request: Box<Request> },
    Pump { node: Node, life: u64 },
    Feed,
    Fault(Fault),
}

/// What every program has: whether it lives, its links and its clocks.
#[derive(Debug)]
struct Host {
    life: u64,
    alive: bool,
    paused_until_us: i64,
    backlog: VecDeque<Message>,
    to_log: bool,
    to_redis: bool,
    /// The tail takes so long to come back after a break.
    tail_from_us: i64,
    wall_offset_us: i64,
    /// Parts in a million by which its steady clock is fast.
    drift_ppm: i64,
    next_control: usize,
    next_beat: usize,
    /// Requests not yet answered.
    waiting: BTreeMap<u64, ()>,
    /// When it was last paused, cut off or started.
    trouble_us: i64,
}

impl Host {
    fn new(rng: &mut Rng) -> Self {
        Self {
            life: 1,
            alive: true,
            paused_until_us: 0,
            backlog: VecDeque::new(),
            to_log: true,
            to_redis: true,
            tail_from_us: 0,
            wall_offset_us: rng.range(-50_000, 50_000),
            drift_ppm: rng.range(-200, 200),
            next_control: 0,
            next_beat: 0,
            waiting: BTreeMap::new(),
            trouble_us: 0,
        }
    }

    fn now(&self, true_us: i64) -> Now {
        let steady_us = true_us + true_us / 1_000_000 * self.drift_ppm;
        Now { wall_us: EPOCH + true_us + self.wall_offset_us, steady_us }
    }
}

/// How a world ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What was broken, empty when nothing was.
    pub violation: Option<String>,
    /// The last lines before that.
    pub history: Vec<String>,
    pub events: u64,
    pub moves: u64,
    pub lost: u64,
    pub terms: u64,
    /// Outputs that an epoch gate dropped.
    pub dropped: u64,
    /// Shards that a monitor with a fixed time-out of a minute would have taken for dead.
    pub naive_deaths: u64,
    /// blake3 of the log and the count of steps.
    pub fingerprint: String,
}

/// A world and everything in it.
#[derive(Debug)]
struct World {
    now: i64,
    rng: Rng,
    count: u64,
    queue: BTreeMap<(i64, u64), Happening>,
    server: Server,
    server_up: bool,
    /// When the log last came back.
    server_trouble_us: i64,
    redis_up: bool,
    orchestrators: Vec<(Host, Orchestrator)>,
    shards: Vec<(Host, Shard)>,
    games: BTreeMap<GameId, ReportedPhase>,
    rules: rules::Rules,
    history: VecDeque<String>,
    requests: u64,
    length_us: i64,
    /// From here on nothing breaks any more, and all must come right.
    quiet_us: i64,
    /// Requests that belong to an append.
    appending: BTreeMap<(usize, u64), ()>,
}

/// Plays the world of `seed`.
#[must_use]
pub fn play(seed: u64) -> Report {
    let mut world = World::new(seed, LENGTH);
    world.plan_faults();
    world.played()
}

/// Plays a day of `hours` in which nothing fails but what passes by itself.
#[must_use]
pub fn play_day(seed: u64, hours: i64) -> Report {
    let mut world = World::new(seed, hours * 3_600 * SECOND);
    world.plan_day();
    world.played()
}

impl World {
    fn played(mut self) -> Report {
        let world = &mut self;
        let violation = world.run().err();
        let state = world.rules.state();
        Report {
            history: if violation.is_some() { world.history.iter().cloned().collect() } else { Vec::new() },
            violation,
            events: state.head.sequence,
            moves: world.rules.moves,
            lost: world.rules.lost,
            terms: state.head.term,
            dropped: world.rules.dropped(),
            naive_deaths: world.orchestrators.iter().map(|(_, o)| o.naive.deaths).sum(),
            fingerprint: arbees_proto::envelope::hex(&state.hash()) + &format!(":{}", world.count),
        }
    }

    fn new(seed: u64, length_us: i64) -> Self {
        let mut rng = Rng::new(seed);
        let shard_count = 3 + rng.index(4);
        let orchestrators = (0..2).map(|n| (Host::new(&mut rng), Orchestrator::new(n, 0))).collect();
        let shards = (0..shard_count).map(|n| (Host::new(&mut rng), Shard::new(n, 0, 10))).collect();
        let mut world = Self {
            now: 0,
            rng,
            count: 0,
            queue: BTreeMap::new(),
            server: Server::default(),
            server_up: true,
            server_trouble_us: -LENGTH,
            redis_up: true,
            orchestrators,
            shards,
            games: BTreeMap::new(),
            rules: rules::Rules::default(),
            history: VecDeque::new(),
            requests: 0,
            length_us,
            quiet_us: length_us - REST,
            appending: BTreeMap::new(),
        };
        for n in 0..world.orchestrators.len() {
            world.start(Node::Orchestrator(n));
        }
        for n in 0..world.shards.len() {
            world.start(Node::Shard(n));
        }
        world.at(SECOND / 2, Happening::Feed);
        world
    }

    fn run(&mut self) -> Result<(), String> {
        while let Some(((at, _), happening)) = self.queue.pop_first() {
            if at > self.length_us {
                break;
            }
            self.now = at;
            self.happen(happening)?;
        }
        self.check_end()
    }

    fn at(&mut self, at: i64, happening: Happening) {
        self.count += 1;
        self.queue.insert((at.max(self.now), self.count), happening);
    }

    fn note(&mut self, line: &str) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        #[allow(clippy::cast_precision_loss)]
        self.history.push_back(format!("{:10.4} {line}", self.now as f64 / 1e6));
    }

    fn host(&mut self, node: Node) -> &mut Host {
        match node {
            Node::Orchestrator(n) => &mut self.orchestrators[n].0,
            Node::Shard(n) => &mut self.shards[n].0,
        }
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::At { node, life, message } => {
                let now = self.now;
                let host = self.host(node);
                if !host.alive || host.life != life {
                    return Ok(());
                }
                if host.paused_until_us > now || !host.backlog.is_empty() {
                    host.backlog.push_back(message);
                    return Ok(());
                }
                self.deliver(node, message)
            }
            Happening::Server { from, life, number, sent_us, request } => {
                self.serve(from, life, number, sent_us, *request)
            }
            Happening::Pump { node, life } => {
                if self.host(node).life == life && self.host(node).alive {
                    self.pump(node);
                    self.at(self.now + PUMP_EVERY, Happening::Pump { node, life });
                }
                Ok(())
            }
            Happening::Feed => {
                self.feed();
                Ok(())
            }
            Happening::Fault(fault) => self.strike(fault),
        }
    }

    fn deliver(&mut self, node: Node, message: Message) -> Result<(), String> {
        match node {
            Node::Orchestrator(n) => self.orchestrator_hears(n, message),
            Node::Shard(n) => {
                self.shard_hears(n, message);
                Ok(())
            }
        }
    }

    /// All that waited while the node was paused is read at once.
    fn resume(&mut self, node: Node) -> Result<(), String> {
        while let Some(message) = self.host(node).backlog.pop_front() {
            self.deliver(node, message)?;
        }
        Ok(())
    }

    /// The scoreboards, every two seconds: games begin and end.
    fn feed(&mut self) {
        self.at(self.now + 2 * SECOND, Happening::Feed);
        let quiet = self.now >= self.quiet_us;
        if !quiet && self.games.len() < 40 && self.rng.chance(2_500) {
            let id: GameId = format!("nfl-{}", self.games.len()).parse().expect("a valid id");
            self.games.insert(id, ReportedPhase::Live);
        }
        if !quiet && self.rng.chance(300) {
            let live: Vec<GameId> =
                self.games.iter().filter(|(_, p)| **p == ReportedPhase::Live).map(|(id, _)| id.clone()).collect();
            if live.len() > 8 {
                let index = self.rng.index(live.len());
                self.games.insert(live[index].clone(), ReportedPhase::Final);
            }
        }
        let slate: Arc<[GameReport]> = self.games.iter().map(|(id, phase)| report(id, *phase)).collect();
        for n in 0..self.orchestrators.len() {
            // Only a leader reads scoreboards.
            if !self.orchestrators[n].1.leads {
                continue;
            }
            let life = self.orchestrators[n].0.life;
            let message = Message::Slate(slate.clone());
            let delay = self.rng.range(20_000, 200_000);
            self.at(self.now + delay, Happening::At { node: Node::Orchestrator(n), life, message });
        }
    }

    /// A program starts, or starts anew.
    fn start(&mut self, node: Node) {
        let now = self.now;
        let (control, beats) = (self.server.control.len(), self.server.beats.len());
        let host = self.host(node);
        host.life += 1;
        host.alive = true;
        host.backlog.clear();
        host.waiting.clear();
        host.paused_until_us = 0;
        host.trouble_us = now;
        host.tail_from_us = now;
        (host.next_control, host.next_beat) = (control, beats);
        let life = host.life;
        match node {
            Node::Orchestrator(n) => {
                self.orchestrators[n].1 = Orchestrator::new(n, life);
                self.fold_anew(n);
            }
            Node::Shard(n) => {
                let max_games = self.shards[n].1.max_games;
                let id = self.shards[n].1.number;
                self.shards[n].1 = Shard::new(id, life, max_games);
                self.ask(node, Request::Recover);
            }
        }
        let first = now + self.rng.range(1, PUMP_EVERY);
        self.at(first, Happening::Pump { node, life });
        self.at(now + 1_000, Happening::At { node, life, message: Message::Wake });
    }

    fn state(&self) -> &State {
        self.rules.state()
    }
}

fn report(id: &GameId, phase: ReportedPhase) -> GameReport {
    let info =
        v1::Game { id: id.to_string(), league: id.league().to_string(), starts_at_us: EPOCH, ..v1::Game::default() };
    GameReport { id: id.clone(), info, phase, status: format!("{phase:?}") }
}
