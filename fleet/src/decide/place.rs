//! Who watches what: games without an owner, and games that must leave theirs. The most urgent first, on what the whole turn
//! came to.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use arbees_proto::{EventId, GameId, Payload, ServiceKind, ShardId, v1};

use super::alert::Severity;
use super::common;
use super::{Fleet, reason};
use crate::placement::{Choice, Place, Refusal, weight_of};
use crate::settings::{MOVES_PER_SECOND, MOVES_PER_TARGET};
use crate::state::{Circuit, Drain, Game, Owner, Phase, Service, ServiceKey, Status};

/// How many moves there were in the running second. Times are steady.
#[derive(Debug, Default)]
pub(super) struct Rate {
    second: i64,
    all: u32,
    to: BTreeMap<ShardId, u32>,
}

impl Rate {
    fn turn_to(&mut self, now_us: i64) {
        let second = now_us.div_euclid(crate::SECOND);
        if second != self.second {
            *self = Self { second, ..Self::default() };
        }
    }

    fn is_spent(&self) -> bool {
        self.all >= MOVES_PER_SECOND
    }

    fn is_spent_for(&self, shard: &ShardId) -> bool {
        self.to.get(shard).is_some_and(|n| *n >= MOVES_PER_TARGET)
    }

    fn count(&mut self, shard: &ShardId) {
        self.all += 1;
        *self.to.entry(shard.clone()).or_default() += 1;
    }
}

/// Why a game needs another owner than it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It has none.
    Due,
    /// Its owner is gone.
    Lost,
    /// Its owner is alive and does not take it up.
    NotTakenUp,
    Unhealthy,
    Stopping,
    Draining,
    Degraded,
    /// Its owner has more than it may hold.
    Surplus,
    /// An operator pinned it elsewhere.
    Pinned,
}

impl Why {
    /// Whether nobody watches the game meanwhile.
    const fn is_unwatched(self) -> bool {
        matches!(self, Self::Due | Self::Lost | Self::NotTakenUp)
    }

    /// Whether it is for how its owner stands.
    const fn is_owners_fault(self) -> bool {
        !matches!(self, Self::Due | Self::Surplus | Self::Pinned)
    }

    /// Cause and rule, as they are recorded.
    const fn reason(self) -> (&'static str, &'static str) {
        match self {
            Self::Due => ("due", "freest shard first"),
            Self::Lost => ("its shard is lost", "moves when the lease is over"),
            Self::NotTakenUp => ("its shard does not take it up", "moves after repeated failures"),
            Self::Unhealthy => ("its shard is unhealthy", "moves at once"),
            Self::Stopping => ("its shard stops", "handed over at once"),
            Self::Draining => ("its shard is drained", "an operator's word"),
            Self::Degraded => ("its shard is degraded", "moves when it lasts"),
            Self::Surplus => ("its shard holds more than it may", "surplus moves"),
            Self::Pinned => ("pinned elsewhere", "an operator's word"),
        }
    }
}

/// Why a game is given to a shard, as it is recorded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grounds<'a> {
    pub cause: &'a str,
    pub rule: &'a str,
    /// The event behind it; none: the last one about the game.
    pub event: Option<EventId>,
}

/// A game that needs an owner; the derived order is the urgency.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Want {
    is_watched: bool,
    is_scheduled: bool,
    since_us: i64,
    weight: Reverse<u32>,
    starts_at_us: i64,
    id: GameId,
}

impl Fleet {
    /// Gives every game that should be watched and is not, or not well, to a shard.
    pub(super) fn place(&mut self) {
        if !self.is_settled() {
            return;
        }
        self.follow_brake();
        self.complete_drains();
        let common = self.common_checks();
        self.note_common(&common);
        let excused = self.excused(common);
        let mut wants = self.wants(&excused);
        if wants.is_empty() {
            self.note_queue();
            self.rebalance();
            return;
        }
        wants.sort_by(|(a, _), (b, _)| a.cmp(b));
        self.seen.rate.turn_to(self.now.steady_us);
        let mut places = self.places();
        let mut nowhere = None;
        for (want, why) in wants {
            let has_open = places.iter().any(|p| p.has_room() && matches!(p.refusal, None | Some(Refusal::Degraded)));
            if !has_open {
                // All that are left find the same: nothing is looked for thousands of times.
                self.wait_nowhere(&want.id, why, &places, &mut nowhere);
                continue;
            }
            if self.room() == 0 {
                // The next turn finds what is left.
                self.unplaced = true;
                break;
            }
            self.place_one(&want.id, why, &mut places);
        }
        self.note_queue();
    }

    /// Whether the fleet has had time to beat, so that the first shard heard is not given everything. On the first day that
    /// is long enough for shards that beat on Redis only, and may be watching already.
    pub(super) fn is_settled(&self) -> bool {
        let listened_us = self.now.steady_us - self.seen.since_us;
        let first_day = if self.seen.is_first_day { self.settings.redis_interval } else { 0 };
        listened_us >= self.settings.settle + first_day
    }

    fn wants(&self, excused: &BTreeSet<String>) -> Vec<(Want, Why)> {
        let surplus = self.surplus();
        let want = |(id, g): (&GameId, &Game)| {
            let why = match &g.owner {
                None => self.is_due(g).then_some(Why::Due),
                Some(_) if g.phase.is_over() => None,
                Some(owner) => self.why_move(id, g, owner, excused, &surplus),
            }?;
            let since_us = match &g.owner {
                None => g.phase_since_us,
                Some(owner) if why == Why::Lost => self.lost_since_us(owner),
                Some(owner) => owner.since_us,
            };
            let want = Want {
                is_watched: !why.is_unwatched(),
                is_scheduled: g.phase == Phase::Scheduled,
                since_us,
                weight: Reverse(weight_of(&g.info)),
                starts_at_us: g.info.starts_at_us,
                id: id.clone(),
            };
            Some((want, why))
        };
        self.state.games.iter().filter_map(want).collect()
    }

    fn why_move(
        &self,
        id: &GameId,
        game: &Game,
        owner: &Owner,
        excused: &BTreeSet<String>,
        surplus: &BTreeSet<GameId>,
    ) -> Option<Why> {
        let key = ServiceKey::shard(owner.shard.clone());
        let Some(service) = self.state.services.get(&key) else { return Some(Why::Lost) };
        if service.status.is_gone() {
            // One that has beaten since is back, and its next beat says so.
            let limit = if service.info.on_log { self.settings.log_timeout() } else { self.settings.redis_timeout };
            let is_back = |h: &super::health::Heard| h.is_real() && self.now.steady_us - h.silence.at_us() < limit;
            return (!self.seen.services.get(&key).is_some_and(is_back)).then_some(Why::Lost);
        }
        // What follows is the fleet's own wish: an operator can forbid it.
        if service.status == Status::Stopping {
            return Some(Why::Stopping);
        }
        if service.drain != Drain::No {
            return Some(Why::Draining);
        }
        if self.state.paused {
            return None;
        }
        match &game.pin {
            Some(pin) if *pin == owner.shard => return None,
            Some(_) => return Some(Why::Pinned),
            None => {}
        }
        let heard = self.seen.services.get(&key);
        let (unwell, is_ill) = (heard.and_then(|h| h.unwell_since_us), heard.is_some_and(|h| !h.good));
        let is_long = unwell.is_some_and(|at| self.now.steady_us - at >= self.settings.degraded_patience);
        match service.status {
            Status::Unhealthy => Some(Why::Unhealthy),
            Status::Degraded | Status::Recovered if is_long && is_ill && !common::is_excused(service, excused) => {
                Some(Why::Degraded)
            }
            _ if self.has_failed(owner, id) => Some(Why::NotTakenUp),
            _ if surplus.contains(id) => Some(Why::Surplus),
            _ => None,
        }
    }

    fn lost_since_us(&self, owner: &Owner) -> i64 {
        let service = self.state.services.get(&ServiceKey::shard(owner.shard.clone()));
        service.map_or(owner.since_us, |s| s.status_since_us)
    }

    /// The newest games of shards that own more than they may hold.
    fn surplus(&self) -> BTreeSet<GameId> {
        let mut owned: BTreeMap<&ShardId, Vec<(u64, &GameId)>> = BTreeMap::new();
        for (id, game) in self.owned() {
            if let Some(owner) = &game.owner {
                owned.entry(&owner.shard).or_default().push((owner.epoch.0, id));
            }
        }
        let mut surplus = BTreeSet::new();
        for (shard, mut games) in owned {
            let key = ServiceKey::shard(shard.clone());
            let Some(max) = self.seen.services.get(&key).map(|h| h.max_games) else { continue };
            let max = usize::try_from(max).unwrap_or(usize::MAX);
            if games.len() > max {
                games.sort_unstable();
                surplus.extend(games[max..].iter().map(|(_, id)| (*id).clone()));
            }
        }
        surplus
    }

    fn wait_nowhere(&mut self, id: &GameId, why: Why, places: &[Place], nowhere: &mut Option<Choice>) {
        let is_queued = self.state.games.get(id).is_some_and(|g| g.queued_since_us.is_some());
        if why.is_unwatched() && !is_queued && self.room() > 0 {
            let choice =
                nowhere.get_or_insert_with(|| crate::placement::choose(places, id.league(), 1, |p| p.refusal)).clone();
            self.queue(id, why, choice);
        }
    }

    fn place_one(&mut self, id: &GameId, why: Why, places: &mut [Place]) {
        let Some(game) = self.state.games.get(id) else { return };
        let (owner, weight) = (game.owner.clone(), weight_of(&game.info));
        if owner.is_some() && self.seen.rate.is_spent() {
            self.unplaced = true;
            return;
        }
        let choice = self.choose(id, game, owner.as_ref(), why, places);
        let Some(index) = choice.chosen else {
            if why.is_unwatched() && game.queued_since_us.is_none() {
                self.queue(id, why, choice);
            }
            return;
        };
        if why == Why::Lost
            && let Some(key) = owner.as_ref().map(|o| ServiceKey::shard(o.shard.clone()))
            && !self.brake_lets_go(&key)
        {
            return;
        }
        let Some(place) = places.get_mut(index) else { return };
        let to = place.shard.clone();
        let (cause, rule) = why.reason();
        let event = owner.as_ref().filter(|_| why.is_owners_fault()).and_then(|o| self.standing_of(&o.shard));
        if !self.give(id, &to, Grounds { cause, rule, event }, choice) {
            return;
        }
        place.take(id.league(), weight);
        if let Some(owner) = owner {
            self.seen.rate.count(&to);
            if why == Why::NotTakenUp {
                self.seen.failed.insert((owner.shard.clone(), id.clone()), self.now.steady_us);
            }
            if let Some(from) = places.iter_mut().find(|p| p.shard == owner.shard) {
                from.give_back(id.league(), weight);
            }
        }
    }

    /// The event that made the shard stand as it does.
    fn standing_of(&self, shard: &ShardId) -> Option<EventId> {
        self.state.services.get(&ServiceKey::shard(shard.clone())).map(|s| s.standing)
    }

    /// Decides that `to` watches the game from now on, and says so.
    pub(super) fn give(&mut self, id: &GameId, to: &ShardId, why: Grounds<'_>, choice: Choice) -> bool {
        let Some(game) = self.state.games.get(id) else { return false };
        let (info, owner) = (Some(game.info.clone()), game.owner.clone());
        let cause = match (&owner, game.queued_since_us) {
            (None, None) => game.phase.as_str(),
            (None, Some(_)) => "a shard has room",
            (Some(_), _) => why.cause,
        };
        let event = why.event;
        let why =
            v1::Reason { candidates: choice.candidates, rejections: choice.rejections, ..reason(cause, why.rule) };
        let shard = to.to_string();
        let payload = match &owner {
            None => Payload::GameAssigned(v1::GameAssigned { game: info, shard }),
            Some(owner) => Payload::GameReassigned(v1::GameReassigned {
                game: info,
                from: owner.shard.to_string(),
                from_epoch: owner.epoch.0,
                shard,
            }),
        };
        if self.emit_game(id, payload, why, event).is_none() {
            return false;
        }
        let Some(epoch) = self.state.games.get(id).and_then(|g| g.owner.as_ref()).map(|o| o.epoch) else {
            return false;
        };
        self.seen.on_slate.insert(id.clone(), self.now.steady_us);
        // Next owner first: who hears only one of the two should be the one who begins.
        self.command(to, id, epoch, true, "assigned");
        if let Some(owner) = owner {
            self.command(&owner.shard, id, epoch, false, "moved");
        }
        self.ask_markets(id);
        true
    }

    fn queue(&mut self, id: &GameId, why: Why, choice: Choice) {
        let queued = Payload::GameQueued(v1::GameQueued { game: id.to_string() });
        let why = v1::Reason {
            candidates: choice.candidates,
            rejections: choice.rejections,
            ..reason(why.reason().0, "no shard may take it")
        };
        self.emit_game(id, queued, why, None);
    }

    /// Tells people that games wait, and that none waits any more.
    fn note_queue(&mut self) {
        let is_waiting = |g: &&Game| g.queued_since_us.is_some() && matches!(g.phase, Phase::Live | Phase::Suspended);
        let waiting = self.state.games.values().filter(is_waiting).count();
        if waiting == 0 {
            self.settle("no_healthy_shards", "");
            return;
        }
        let is_alive = |(key, s): &(&ServiceKey, &Service)| key.kind == ServiceKind::Shard && !s.status.is_gone();
        let alive = self.state.services.iter().filter(is_alive).count();
        let summary = format!("{waiting} live games wait: none of {alive} shards may take them");
        self.raise("no_healthy_shards", "", Severity::Critical, summary);
    }

    fn complete_drains(&mut self) {
        let loads = self.state.loads();
        let is_done =
            |(key, s): &(&ServiceKey, &Service)| s.drain == Drain::Draining && !loads.contains_key(&key.instance);
        let done: Vec<_> = self.state.services.iter().filter(is_done).map(|(key, _)| key.instance.clone()).collect();
        for shard in done {
            let completed = Payload::DrainCompleted(v1::DrainCompleted { shard: shard.to_string() });
            self.emit_service(completed, reason("it owns no game any more", "drained"), None);
        }
    }

    /// Whether the game should be watched now.
    pub(super) fn is_due(&self, game: &Game) -> bool {
        match game.phase {
            Phase::Live | Phase::Suspended => true,
            Phase::Scheduled => {
                let starts_at_us = game.info.starts_at_us;
                starts_at_us != 0 && starts_at_us - self.now.wall_us <= self.settings.pregame_assign
            }
            Phase::Postponed | Phase::Canceled | Phase::Finished => false,
        }
    }

    pub(super) fn choose(&self, id: &GameId, game: &Game, owner: Option<&Owner>, why: Why, places: &[Place]) -> Choice {
        // A pin yields to death: of its owner, and of the shard it names.
        let is_there = |shard: &ShardId| {
            let service = self.state.services.get(&ServiceKey::shard(shard.clone()));
            service.is_some_and(|s| !s.status.is_gone())
        };
        let pin = game.pin.as_ref().filter(|pin| is_there(pin));
        // A shard that is as ill as the owner is no better place; for a game that nobody watches it is better than none.
        let takes_ill = why.is_unwatched() && places.iter().all(|p| p.refusal.is_some());
        let refuse = |place: &Place| {
            if owner.is_some_and(|o| o.shard == place.shard) {
                return Some(Refusal::IsOwner);
            }
            if pin.is_some_and(|pin| *pin != place.shard) {
                return Some(Refusal::PinnedElsewhere);
            }
            if !self.seen.failed.is_empty() && self.seen.failed.contains_key(&(place.shard.clone(), id.clone())) {
                return Some(Refusal::FailedBefore);
            }
            if owner.is_some() && self.seen.rate.is_spent_for(&place.shard) {
                return Some(Refusal::Busy);
            }
            place.refusal.filter(|r| !(takes_ill && *r == Refusal::Degraded))
        };
        crate::placement::choose(places, id.league(), weight_of(&game.info), refuse)
    }

    pub(super) fn places(&self) -> Vec<Place> {
        let mut places: BTreeMap<&ShardId, Place> = BTreeMap::new();
        for (key, service) in self.state.services.iter().filter(|(key, _)| key.kind == ServiceKind::Shard) {
            let heard = self.seen.services.get(key);
            let place = Place {
                shard: key.instance.clone(),
                load: 0,
                weight: 0,
                max_games: heard.map_or(service.info.max_games, |h| h.max_games),
                leagues: BTreeMap::new(),
                failures: service.breaker.failures,
                is_on_trial: service.breaker.circuit == Circuit::HalfOpen,
                refusal: self.refusal(key, service),
            };
            places.insert(&key.instance, place);
        }
        for (id, game) in &self.state.games {
            let Some(owner) = &game.owner else { continue };
            let Some(place) = places.get_mut(&owner.shard) else { continue };
            place.count(id.league(), weight_of(&game.info));
            if place.is_on_trial && owner.confirmed_at_us.is_none() {
                place.refusal = place.refusal.or(Some(Refusal::OnTrial));
            }
        }
        places.into_values().collect()
    }

    fn refusal(&self, key: &ServiceKey, service: &Service) -> Option<Refusal> {
        let on_log = service.info.on_log;
        let limit = if on_log { self.settings.suspect_after() } else { self.settings.redis_timeout };
        let is_heard =
            self.seen.services.get(key).is_some_and(|h| h.is_real() && self.now.steady_us - h.silence.at_us() <= limit);
        if !matches!(service.info.shard_type.as_str(), "sports" | "game") {
            return Some(Refusal::NotSports);
        }
        // Who hears of games on Redis only cannot be given any while it does not carry them.
        let is_reachable = on_log || self.seen.redis.is_fresh(self.now.steady_us);
        if !is_heard || !is_reachable || service.status.is_gone() {
            return Some(Refusal::NotHeard);
        }
        if self.state.shadow && on_log {
            return Some(Refusal::Shadow);
        }
        if service.drain != Drain::No {
            return Some(Refusal::Draining);
        }
        match service.status {
            // Games come to log shards by the log alone, so one that fails a check can still take what nobody else can.
            Status::Degraded if on_log => Some(Refusal::Degraded),
            Status::Healthy if service.breaker.circuit == Circuit::Open => Some(Refusal::BreakerOpen),
            Status::Healthy => None,
            _ => Some(Refusal::NotHealthy),
        }
    }
}
