//! What the leader decides, one file per kind of input.
//!
//! `decide` seals each event and applies it to the state at the sequence it is about to get, so that the next decision of
//! the same turn sees it. That state is a promise: when the append of the turn does not store all of it, the caller drops
//! the fleet and folds the log anew. Effects wait until the append is acknowledged.

mod beat;
mod clock;
mod markets;
mod slate;

use std::collections::BTreeMap;

use arbees_proto::subject::Names;
use arbees_proto::{Epoch, EventId, GameId, Payload, Sealed, ShardId, envelope, v1};

pub use beat::Medium;
pub use markets::MarketsFound;

use crate::placement::{Place, Refusal};
use crate::settings::{MAX_BATCH, MAX_EVENT, Settings};
use crate::slate::GameReport;
use crate::state::{Game, Phase, ServiceKey, State};

/// What comes in.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// A league's scoreboard was read. `schedule`: make known what only starts within the discovery window, too.
    Slate { games: Vec<GameReport>, schedule: bool },
    /// A service beat.
    Beat(Box<v1::Event>, Medium),
    /// Market discovery answered.
    Markets(MarketsFound),
}

/// What follows from decisions, once they are in the log. Shards on the log need none of it.
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
}

/// What one turn of the loop decided.
#[derive(Debug, Default)]
pub struct Turn {
    pub events: Vec<Sealed>,
    pub effects: Vec<Effect>,
}

/// The leader's mind: the folded state, and what it has observed since it took over.
#[derive(Debug)]
pub struct Fleet {
    state: State,
    settings: Settings,
    names: Names,
    me: v1::Producer,
    seen: Seen,
    /// Counts inputs: with process and term it makes event ids.
    input: u64,
    turn: Turn,
}

/// Observed, not decided: never in the log, gathered anew by every leader.
#[derive(Debug, Default)]
struct Seen {
    since_us: i64,
    services: BTreeMap<ServiceKey, beat::Heard>,
    /// When a game was first reported final, in a row.
    finals: BTreeMap<GameId, i64>,
    /// When a watched game was last on a slate or asked for by id.
    on_slate: BTreeMap<GameId, i64>,
    /// When a game's markets were last asked for.
    asked_markets: BTreeMap<GameId, i64>,
    /// When a game's markets were last told to those who hear of them over Redis.
    told_markets: BTreeMap<GameId, i64>,
    /// Commands to Redis-only shards, for repeating them.
    sent: BTreeMap<(ShardId, GameId), beat::Sent>,
    /// Games by bare event id, as Redis names them.
    by_event: BTreeMap<String, Vec<GameId>>,
}

/// One event about to be sealed.
struct Draft {
    payload: Payload,
    reason: v1::Reason,
    cause: Option<EventId>,
    correlation: Option<EventId>,
}

impl Fleet {
    /// A leader's mind over `state`, taken over at `now_us`.
    #[must_use]
    pub fn new(state: State, settings: Settings, names: Names, me: v1::Producer, now_us: i64) -> Self {
        let mut seen = Seen { since_us: now_us, ..Seen::default() };
        for id in state.games.keys() {
            seen.by_event.entry(id.event().to_owned()).or_default().push(id.clone());
        }
        Self { state, settings, names, me, seen, input: 0, turn: Turn::default() }
    }

    /// What is so, with everything decided up to now.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// The first decision of a term: all that follow are this leader's. `generation` is what the log must at least be in: one
    /// more than before when it is known to have lost its tail, so that epochs only grow.
    pub fn take_office(&mut self, now_us: i64, generation: u64) {
        self.state.head.term += 1;
        self.state.head.generation = self.state.head.generation.max(generation);
        let elected = v1::LeaderElected { instance: self.me.instance.clone(), process: self.me.process.clone() };
        let reason = reason("took over", "first decision of a term");
        self.emit(now_us, Draft { payload: Payload::LeaderElected(elected), reason, cause: None, correlation: None });
    }

    /// Decides about one input. The turn grows; [`Self::end_turn`] hands it over.
    pub fn decide(&mut self, now_us: i64, input: Input) {
        self.input += 1;
        match input {
            Input::Tick => self.tick(now_us),
            Input::Slate { games, schedule } => {
                for report in &games {
                    self.on_report(now_us, report, schedule);
                }
                self.place(now_us);
            }
            Input::Beat(event, medium) => self.on_beat(now_us, &event, medium),
            Input::Markets(found) => self.on_markets(now_us, &found),
        }
    }

    /// The turn's events, to be appended in this order right after the head they were decided on, and what follows.
    pub fn end_turn(&mut self) -> Turn {
        std::mem::take(&mut self.turn)
    }

    /// Room left in the turn for events.
    #[must_use]
    pub fn room(&self) -> usize {
        MAX_BATCH.saturating_sub(self.turn.events.len())
    }

    /// Seals `draft` and applies it. A turn that is full decides nothing more: the next one finds the same difference.
    fn emit(&mut self, now_us: i64, draft: Draft) -> Option<EventId> {
        if self.room() == 0 {
            return None;
        }
        let head = &self.state.head;
        let at = now_us.max(head.occurred_at_us);
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
    fn emit_game(&mut self, now_us: i64, id: &GameId, payload: Payload, reason: v1::Reason, cause: Option<EventId>) {
        let game = self.state.games.get(id);
        let correlation = game.map(|g| g.origin);
        let cause = cause.or_else(|| game.map(|g| g.last_event));
        self.emit(now_us, Draft { payload, reason, cause, correlation });
    }

    /// Gives every game that should be watched and is not to a shard, most urgent first.
    fn place(&mut self, now_us: i64) {
        if now_us - self.seen.since_us < self.settings.settle {
            return;
        }
        let mut waiting: Vec<_> = self
            .state
            .games
            .iter()
            .filter(|(_, g)| g.owner.is_none() && self.is_due(g, now_us))
            .map(|(id, g)| (g.phase == Phase::Scheduled, g.phase_since_us, g.info.starts_at_us, id.clone()))
            .collect();
        if waiting.is_empty() {
            return;
        }
        waiting.sort();
        let mut places = self.places(now_us);
        for (_, _, _, id) in waiting {
            self.place_one(now_us, &id, &mut places);
        }
    }

    fn place_one(&mut self, now_us: i64, id: &GameId, places: &mut [Place]) {
        let Some(game) = self.state.games.get(id) else { return };
        let choice = crate::placement::choose(places, id.league());
        let cause = if game.queued_since_us.is_some() { "a shard has room" } else { game.phase.as_str() };
        let why = v1::Reason {
            candidates: choice.candidates,
            rejections: choice.rejections,
            ..reason(cause, "freest shard first")
        };
        let Some(place) = choice.chosen.and_then(|index| places.get_mut(index)) else {
            if game.queued_since_us.is_none() {
                let queued = Payload::GameQueued(v1::GameQueued { game: id.to_string() });
                self.emit_game(now_us, id, queued, v1::Reason { rule: "no shard may take it".into(), ..why }, None);
            }
            return;
        };
        let (info, shard) = (game.info.clone(), place.shard.clone());
        let assigned = v1::GameAssigned { game: Some(info.clone()), shard: shard.to_string() };
        self.emit_game(now_us, id, Payload::GameAssigned(assigned), why, None);
        let Some(owner) = self.state.games.get(id).and_then(|g| g.owner.clone()) else { return };
        place.take(id.league());
        self.seen.on_slate.insert(id.clone(), now_us);
        self.command(now_us, &shard, id, owner.epoch, true, "assigned");
        self.ask_markets(now_us, id);
    }

    /// Whether the game should be watched now.
    fn is_due(&self, game: &Game, now_us: i64) -> bool {
        match game.phase {
            Phase::Live | Phase::Suspended => true,
            Phase::Scheduled => {
                game.info.starts_at_us != 0 && game.info.starts_at_us - now_us <= self.settings.pregame_assign
            }
            Phase::Postponed | Phase::Canceled | Phase::Finished => false,
        }
    }

    fn places(&self, now_us: i64) -> Vec<Place> {
        let mut places: BTreeMap<&ShardId, Place> = BTreeMap::new();
        for (key, service) in &self.state.services {
            if key.kind != arbees_proto::ServiceKind::Shard {
                continue;
            }
            let heard = self.seen.services.get(key);
            let place = Place {
                shard: key.instance.clone(),
                load: 0,
                max_games: heard.map_or(service.info.max_games, |h| h.max_games),
                leagues: BTreeMap::new(),
                refusal: self.refusal(&service.info, heard, now_us),
            };
            places.insert(&key.instance, place);
        }
        share_the_failure(&mut places, &self.state);
        for (id, game) in &self.state.games {
            if let Some(place) = game.owner.as_ref().and_then(|o| places.get_mut(&o.shard)) {
                place.take(id.league());
            }
        }
        places.into_values().collect()
    }

    fn refusal(&self, info: &v1::Service, heard: Option<&beat::Heard>, now_us: i64) -> Option<Refusal> {
        let sports = matches!(info.shard_type.as_str(), "sports" | "game");
        let limit = if info.on_log { self.settings.log_timeout } else { self.settings.redis_timeout };
        match heard {
            _ if !sports => Some(Refusal::NotSports),
            None => Some(Refusal::NotHeard),
            Some(h) if now_us - h.at_us > limit => Some(Refusal::NotHeard),
            Some(h) if !h.healthy => Some(Refusal::NotHealthy),
            Some(h) if !h.operational => Some(Refusal::NotOperational),
            Some(_) => None,
        }
    }

    /// The games of the fleet as the start-up replies of the Redis contract want them.
    pub fn owned(&self) -> impl Iterator<Item = (&GameId, &Game)> {
        self.state.games.iter().filter(|(_, g)| g.owner.is_some())
    }
}

/// When every shard that is well but for a failing check fails it, there is no better place: shards on the log take games all
/// the same, for their games come by the log.
fn share_the_failure(places: &mut BTreeMap<&ShardId, Place>, state: &State) {
    let is_alone = |p: &Place| p.refusal == Some(Refusal::NotOperational);
    if places.values().any(|p| p.refusal.is_none()) {
        return;
    }
    for (shard, place) in places.iter_mut().filter(|(_, p)| is_alone(p)) {
        let service = state.services.get(&ServiceKey::shard((*shard).clone()));
        if service.is_some_and(|s| s.info.on_log) {
            place.refusal = None;
        }
    }
}

/// A reason without candidates.
fn reason(cause: &str, rule: &str) -> v1::Reason {
    v1::Reason { cause: cause.to_owned(), rule: rule.to_owned(), ..v1::Reason::default() }
}
