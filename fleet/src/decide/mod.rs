//! What the leader decides, one file per kind of input.
//!
//! `decide` seals each event and applies it to the state at the sequence it is about to get, so that the next decision of
//! the same turn sees it. That state is a promise: when the append of the turn does not store all of it, the caller drops
//! the fleet and folds the log anew. Effects wait until the append is acknowledged.
//!
//! A turn decides about statuses first, input by input; games are placed when it ends, on what all its inputs came to.

mod alert;
mod beat;
mod brake;
mod circuit;
mod clock;
mod common;
mod health;
mod markets;
pub mod operator;
mod place;
mod rebalance;
mod repair;
mod slate;

use std::collections::BTreeMap;
use std::sync::Arc;

use arbees_proto::subject::Names;
use arbees_proto::{Epoch, EventId, GameId, Payload, Sealed, ShardId, envelope, v1};

pub use beat::Medium;
pub use health::CLOSED;
pub use markets::MarketsFound;

pub use crate::silence::Probe;

use crate::echo::Echo;
use crate::fold::{Entry, Skip};
use crate::incidents::Incidents;
use crate::settings::{MAX_BATCH, MAX_EVENT, Settings};
use crate::slate::GameReport;
use crate::state::{Game, ServiceKey, State};

/// The time of an input, on two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Microseconds since the Unix epoch, UTC: for events and schedules. May jump.
    pub wall_us: i64,
    /// Microseconds of a clock that never jumps and goes on in suspend: for everything that is measured.
    pub steady_us: i64,
}

/// What comes in.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// A league's scoreboard was read. `schedule`: make known what only starts within the discovery window, too.
    Slate { games: Vec<GameReport>, schedule: bool },
    /// A service beat.
    Beat(Arc<v1::Event>, Medium),
    /// Market discovery answered.
    Markets(MarketsFound),
    /// What a service that was asked whether it is there answered.
    Probed { key: ServiceKey, answer: Probe },
    /// The fence naming this heartbeat of the service is stored: nothing of its process is accepted any more.
    Fenced { key: ServiceKey, heartbeat: u64, fence: u64 },
    /// The leader's own word came back over Redis.
    RedisEcho,
    /// An orchestrator said that the log is away: shards that heard it hold their leases on the strength of it.
    LogAway,
}

/// What follows from decisions, once they are in the log. Shards on the log need none of the commands.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// `add_game` to the shard.
    AddGame { shard: ShardId, game: v1::Game, epoch: Epoch, reason: &'static str },
    /// `remove_game` to the shard.
    RemoveGame { shard: ShardId, game: GameId, epoch: Epoch, reason: &'static str },
    /// Ask market discovery for the game's markets.
    AskMarkets { game: v1::Game },
    /// Tell the market monitors which markets to follow.
    FollowMarkets { game: v1::Game },
    /// Ask ESPN for a game that is on no slate.
    AskGame { game: GameId },
    /// Ask a silent service whether it is there: [`Input::Probed`].
    Probe { key: ServiceKey },
    /// Read its heartbeat subject again: a newer beat than `heartbeat` is an [`Input::Beat`]; else fence it, conditional on
    /// that beat, which is an [`Input::Fenced`].
    Judge { key: ServiceKey, heartbeat: u64 },
    /// Tell people.
    Alert(v1::AlertRaised),
    /// Tell them that it is over.
    Resolve(v1::AlertResolved),
}

/// What one turn of the loop decided.
#[derive(Debug, Default)]
pub struct Turn {
    pub events: Vec<Sealed>,
    pub effects: Vec<Effect>,
}

/// The leader's mind: the folded state, and what it has observed.
#[derive(Debug)]
pub struct Fleet {
    state: State,
    settings: Settings,
    names: Names,
    me: v1::Producer,
    seen: Seen,
    now: Now,
    /// Counts inputs: with process and term it makes event ids.
    input: u64,
    /// Something changed that placing depends on.
    unplaced: bool,
    turn: Turn,
}

/// Observed, not decided: never in the log, gathered anew by every process. All times are steady.
#[derive(Debug)]
struct Seen {
    /// Since when it listens.
    since_us: i64,
    /// Nobody had ever beaten when it took over.
    is_first_day: bool,
    /// When all was looked over last.
    looked_us: i64,
    /// The leader's own beats, come back over the log.
    log: Echo,
    /// The leader's own word, come back over Redis.
    redis: Echo,
    /// HEARTBEATS sequence of the own beat heard last.
    echo_sequence: u64,
    services: BTreeMap<ServiceKey, health::Heard>,
    brake: brake::Brake,
    rate: place::Rate,
    alerts: Incidents,
    /// When a game was first reported final, in a row.
    finals: BTreeMap<GameId, i64>,
    /// When a watched game was last on a slate or asked for by id.
    on_slate: BTreeMap<GameId, i64>,
    /// When a game's markets were last asked for.
    asked_markets: BTreeMap<GameId, i64>,
    /// When a game's markets were last told to those who hear of them over Redis.
    told_markets: BTreeMap<GameId, i64>,
    /// When most last failed a check at once.
    common: BTreeMap<String, i64>,
    /// Commands that are not yet seen to have worked.
    sent: BTreeMap<(ShardId, GameId), repair::Sent>,
    /// When a game was last moved for evenness.
    rebalanced_us: Option<i64>,
    /// Since when an open breaker was seen open.
    circuits: BTreeMap<ServiceKey, i64>,
    /// When a shard last lost a game because it did not take it up.
    failed: BTreeMap<(ShardId, GameId), i64>,
    /// Restarted Redis-only shards that are to be told all their games.
    resyncs: BTreeMap<ShardId, repair::Resync>,
    /// Games by bare event id, as Redis names them.
    by_event: BTreeMap<String, Vec<GameId>>,
}

impl Seen {
    fn new(now_us: i64) -> Self {
        Self {
            since_us: now_us,
            is_first_day: false,
            looked_us: i64::MIN / 2,
            log: Echo::default(),
            redis: Echo::default(),
            echo_sequence: 0,
            services: BTreeMap::new(),
            brake: brake::Brake::default(),
            rate: place::Rate::default(),
            alerts: Incidents::default(),
            finals: BTreeMap::new(),
            on_slate: BTreeMap::new(),
            asked_markets: BTreeMap::new(),
            told_markets: BTreeMap::new(),
            common: BTreeMap::new(),
            sent: BTreeMap::new(),
            rebalanced_us: None,
            circuits: BTreeMap::new(),
            failed: BTreeMap::new(),
            resyncs: BTreeMap::new(),
            by_event: BTreeMap::new(),
        }
    }
}

/// One event about to be sealed.
struct Draft {
    payload: Payload,
    reason: v1::Reason,
    cause: Option<EventId>,
    correlation: Option<EventId>,
}

impl Fleet {
    /// A mind over `state` that listens from `now` on.
    #[must_use]
    pub fn new(state: State, settings: Settings, names: Names, me: v1::Producer, now: Now) -> Self {
        let seen = Seen::new(now.steady_us);
        Self { state, settings, names, me, seen, now, input: 0, unplaced: false, turn: Turn::default() }
    }

    /// What is so, with everything decided up to now.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Folds what another leader wrote.
    ///
    /// # Errors
    /// When it is no valid event; every fold skips it.
    pub fn follow(&mut self, entry: &Entry) -> Result<(), Skip> {
        self.state.fold(entry).map(drop)
    }

    /// Goes on from `state`, as the log was folded anew. What was observed stays true.
    pub fn refold(&mut self, state: State) {
        self.state = state;
        self.unplaced = false;
        self.turn = Turn::default();
    }

    /// The first decision of a term: all that follow are this leader's. `generation` is what the log must at least be in: one
    /// more than before when it is known to have lost its tail, so that epochs only grow.
    pub fn take_office(&mut self, now: Now, generation: u64) {
        self.now = now;
        // What an earlier term of this process observed is not this one's, but for who beat.
        let before = std::mem::replace(&mut self.seen, Seen::new(now.steady_us));
        self.seen.since_us = before.since_us;
        self.seen.services = before.services;
        self.seen.echo_sequence = before.echo_sequence;
        self.seen.common = before.common;
        self.seen.is_first_day = self.state.services.is_empty();
        for id in self.state.games.keys() {
            self.seen.by_event.entry(id.event().to_owned()).or_default().push(id.clone());
        }
        self.expect_beats();
        self.state.head.term += 1;
        self.state.head.generation = self.state.head.generation.max(generation);
        let elected = v1::LeaderElected { instance: self.me.instance.clone(), process: self.me.process.clone() };
        self.emit_fleet(Payload::LeaderElected(elected), reason("took over", "first decision of a term"));
        if self.state.shadow != self.settings.shadow {
            let mode = Payload::ShadowMode(v1::ShadowMode { on: self.settings.shadow });
            self.emit_fleet(mode, reason("started in this mode", "as configured"));
        }
    }

    /// Takes in what a standby hears, so that it knows the fleet when it takes over. Decides nothing.
    pub fn observe(&mut self, now: Now, input: &Input) {
        self.turn_to(now);
        match input {
            Input::Beat(event, medium) => drop(self.hear_beat(event, *medium)),
            Input::RedisEcho => self.seen.redis.heard(now.steady_us),
            Input::LogAway => self.seen.log.broke(),
            _ => {}
        }
    }

    /// Takes for granted that both media have carried its own word for long enough: for a replay, which has nothing to find out.
    pub fn trust_media(&mut self, now: Now) {
        self.seen.log = Echo::trusted(now.steady_us);
        self.seen.redis = Echo::trusted(now.steady_us);
    }

    /// Decides about one input. The turn grows; [`Self::end_turn`] hands it over.
    pub fn decide(&mut self, now: Now, input: Input) {
        self.turn_to(now);
        match input {
            Input::Beat(event, medium) => self.on_beat(&event, medium),
            Input::RedisEcho => self.seen.redis.heard(now.steady_us),
            Input::LogAway => self.seen.log.broke(),
            Input::Tick => self.tick(),
            Input::Slate { games, schedule } => {
                for report in &games {
                    self.on_report(report, schedule);
                }
                self.unplaced = true;
            }
            Input::Markets(found) => self.on_markets(&found),
            Input::Probed { key, answer } => self.on_probed(&key, answer),
            Input::Fenced { key, heartbeat, fence } => self.on_fenced(&key, heartbeat, fence),
        }
    }

    fn turn_to(&mut self, now: Now) {
        let gap = now.steady_us - self.now.steady_us;
        self.now = now;
        self.input += 1;
        self.seen.log.turned_after(gap);
        self.seen.redis.turned_after(gap);
    }

    /// The turn's events, to be appended in this order right after the head they were decided on, and what follows.
    pub fn end_turn(&mut self) -> Turn {
        if std::mem::take(&mut self.unplaced) {
            self.place();
        }
        let mut turn = std::mem::take(&mut self.turn);
        if self.state.shadow {
            turn.effects.retain(|e| matches!(e, Effect::AskGame { .. } | Effect::Probe { .. } | Effect::Judge { .. }));
        }
        turn
    }

    /// Room left in the turn for events.
    #[must_use]
    pub fn room(&self) -> usize {
        MAX_BATCH.saturating_sub(self.turn.events.len())
    }

    /// Seals `draft` and applies it. A turn that is full decides nothing more: the next one finds the same difference.
    fn emit(&mut self, draft: Draft) -> Option<EventId> {
        if self.room() == 0 {
            return None;
        }
        let head = &self.state.head;
        let at = self.now.wall_us.max(head.occurred_at_us);
        let index = self.turn.events.len() as u64;
        let id = EventId::derive(
            at,
            &[self.me.process.as_bytes(), &head.term.to_le_bytes(), &self.input.to_le_bytes(), &index.to_le_bytes()],
        );
        let subject = self.names.control(&draft.payload)?;
        let event = v1::Event {
            id: id.0.to_vec(),
            occurred_at_us: at,
            producer: Some(self.me.clone()),
            correlation_id: draft.correlation.unwrap_or(id).0.to_vec(),
            causation_id: draft.cause.map(|c| c.0.to_vec()).unwrap_or_default(),
            schema_version: envelope::SCHEMA_VERSION,
            generation: head.generation,
            term: head.term,
            reason: Some(draft.reason),
            payload: Some(draft.payload),
        };
        let sealed = Sealed::new(subject, event, Some(&head.hash)).filter(|s| s.payload.len() <= MAX_EVENT)?;
        let sequence = head.sequence + 1;
        // Every id in a draft of ours was parsed on its way in.
        self.state.accept(sequence, sealed.hash?, &sealed.event).ok()?;
        self.turn.events.push(sealed);
        Some(id)
    }

    /// Seals a decision about `game`, caused by `cause` or else by the last event about it.
    fn emit_game(
        &mut self,
        id: &GameId,
        payload: Payload,
        reason: v1::Reason,
        cause: Option<EventId>,
    ) -> Option<EventId> {
        let game = self.state.games.get(id);
        let correlation = game.map(|g| g.origin);
        let cause = cause.or_else(|| game.map(|g| g.last_event));
        self.emit(Draft { payload, reason, cause, correlation })
    }

    /// Seals a decision about a service, caused by `cause` if by any event.
    fn emit_service(&mut self, payload: Payload, reason: v1::Reason, cause: Option<EventId>) -> Option<EventId> {
        self.emit(Draft { payload, reason, cause, correlation: cause })
    }

    /// Seals a decision about the fleet as a whole.
    fn emit_fleet(&mut self, payload: Payload, reason: v1::Reason) -> Option<EventId> {
        self.emit(Draft { payload, reason, cause: None, correlation: None })
    }

    /// The games of the fleet as the start-up replies of the Redis contract want them.
    pub fn owned(&self) -> impl Iterator<Item = (&GameId, &Game)> {
        self.state.games.iter().filter(|(_, g)| g.owner.is_some())
    }
}

/// A reason without candidates.
fn reason(cause: &str, rule: &str) -> v1::Reason {
    v1::Reason { cause: cause.to_owned(), rule: rule.to_owned(), ..v1::Reason::default() }
}
