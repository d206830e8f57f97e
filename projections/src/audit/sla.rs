//! Whether the promise was kept: for how long each game in play was watched by nobody, or by two; how fast games were found,
//! moved and recovered. Pure: it is fed the events.
//!
//! *Unwatched* is counted against us: from the last heartbeat of an owner that is found to be lost, and from each move until the
//! new owner says that it watches. A shard that restarts within its lease is not seen here.

use std::collections::{BTreeMap, BTreeSet};

use arbees_proto::{Payload, v1};
use schemars::JsonSchema;
use serde::Serialize;

/// A loss of which all games are watched elsewhere within this has recovered by itself.
const RECOVERED_WITHIN: i64 = 120_000_000;

/// Kinds of incidents in which something that all stand on is away.
const AWAY: [&str; 4] = ["redis_connectivity", "database_connectivity", "log_unavailable", "external_dependency"];

/// How it went with one game. Times in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize)]
pub struct GameSla {
    pub game: String,
    /// For how long it was in play.
    pub live_us: i64,
    pub unwatched_us: i64,
    /// From the first state told under a newer epoch to the last one under an older.
    pub doubled_us: i64,
    /// From when it was known and due to the first shard's word that it watches.
    pub to_watched_us: Option<i64>,
    pub moves: u32,
    /// From each move to the new owner's word.
    #[serde(skip)]
    handovers_us: Vec<i64>,
}

/// A share, with how many cases it is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, JsonSchema, Serialize)]
pub struct Rate {
    pub of: u64,
    pub count: u64,
}

/// How it went with all of them.
#[derive(Clone, Debug, Default, JsonSchema, Serialize)]
pub struct Sla {
    pub from_us: i64,
    pub until_us: i64,
    pub games: Vec<GameSla>,
    pub live_us: i64,
    pub unwatched_us: i64,
    pub doubled_us: i64,
    pub to_watched: Spread,
    pub handover: Spread,
    /// From a shard's last heartbeat until all its games were watched elsewhere.
    pub recovery: Spread,
    /// Lost shards whose games were all watched again within two minutes, and nobody's hand in it.
    pub automatic: Rate,
    /// Outages of Redis, the database, the log or ESPN that were told of, and of which the end was told, too.
    pub reconnected: Rate,
    /// Assignments that were not taken up at first, and were when they were tried again.
    pub retried: Rate,
    /// Incidents that somebody called a false alarm.
    pub false_alarms: Rate,
}

/// How times are spread. Microseconds; none without any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Spread {
    pub count: usize,
    pub p50_us: Option<i64>,
    pub p99_us: Option<i64>,
    pub worst_us: Option<i64>,
}

impl Spread {
    fn of(mut times: Vec<i64>) -> Self {
        times.sort_unstable();
        // Nearest rank: the smallest time that so many in a hundred do not exceed.
        let rank = |percent: usize| times.get((times.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        Self { count: times.len(), p50_us: rank(50), p99_us: rank(99), worst_us: times.last().copied() }
    }
}

#[derive(Debug, Default)]
struct Watch {
    sla: GameSla,
    /// Known, and in play, since then.
    live_since_us: Option<i64>,
    first_live_us: Option<i64>,
    owner: Option<String>,
    /// Its owner has said that it watches.
    was_confirmed: bool,
    is_watched: bool,
    unwatched_since_us: Option<i64>,
    moved_us: Option<i64>,
    /// Newest epoch told of, since when, and the last word under an older one.
    told: Option<(u64, i64)>,
}

impl Watch {
    /// Nobody has watched it since `at_us`.
    fn leave(&mut self, at_us: i64) {
        self.is_watched = false;
        if let Some(live_us) = self.live_since_us {
            self.unwatched_since_us.get_or_insert(at_us.max(live_us));
        }
    }

    fn watch(&mut self, at_us: i64) {
        self.is_watched = true;
        if let Some(since_us) = self.unwatched_since_us.take() {
            self.sla.unwatched_us += (at_us - since_us).max(0);
        }
        if let Some(moved_us) = self.moved_us.take() {
            self.sla.handovers_us.push(at_us - moved_us);
        }
        if let Some(first_us) = self.first_live_us {
            self.sla.to_watched_us.get_or_insert((at_us - first_us).max(0));
        }
    }

    fn go_live(&mut self, at_us: i64) {
        self.live_since_us.get_or_insert(at_us);
        self.first_live_us.get_or_insert(at_us);
        if self.is_watched {
            self.sla.to_watched_us.get_or_insert(0);
        } else {
            self.unwatched_since_us.get_or_insert(at_us);
        }
    }

    fn end_play(&mut self, at_us: i64) {
        if let Some(since_us) = self.live_since_us.take() {
            self.sla.live_us += at_us - since_us;
        }
        if let Some(since_us) = self.unwatched_since_us.take() {
            self.sla.unwatched_us += (at_us - since_us).max(0);
        }
    }
}

/// A lost shard and its games that nobody watches yet.
#[derive(Debug)]
struct Loss {
    from_us: i64,
    waiting: BTreeSet<String>,
    by_hand: bool,
}

/// Counts as events come.
#[derive(Debug, Default)]
pub struct Counter {
    watches: BTreeMap<String, Watch>,
    losses: Vec<Loss>,
    recovered_us: Vec<i64>,
    automatic: Rate,
    /// Incidents that last, and whether somebody called them false alarms.
    alerts: BTreeMap<String, bool>,
    false_alarms: Rate,
    /// Outages that last.
    away: BTreeSet<String>,
    reconnected: Rate,
    /// Games that were not taken up, and are tried again.
    failed: BTreeSet<String>,
    retried: Rate,
    moved_by_hand: BTreeSet<String>,
    from_us: Option<i64>,
}

impl Counter {
    /// Takes in an event of CONTROL, in the stream's order.
    pub fn control(&mut self, event: &v1::Event) {
        let at = event.occurred_at_us;
        self.from_us.get_or_insert(at);
        match &event.payload {
            Some(Payload::GameDiscovered(e)) => {
                if let Some(info) = &e.game {
                    self.watch(&info.id);
                }
            }
            Some(Payload::GameWentLive(e)) => self.watch(&e.game).go_live(at),
            Some(Payload::GameResumed(e)) => self.watch(&e.game).go_live(at),
            Some(Payload::GameSuspended(e)) => self.over(&e.game, at),
            Some(Payload::GameFinished(e)) => self.over(&e.game, at),
            Some(Payload::GamePostponed(e)) => self.over(&e.game, at),
            Some(Payload::GameCanceled(e)) => self.over(&e.game, at),
            Some(Payload::GameQueued(e)) => self.watch(&e.game).leave(at),
            Some(Payload::GameAssigned(e)) => {
                if let Some(info) = &e.game {
                    let watch = self.watch(&info.id);
                    (watch.owner, watch.was_confirmed) = (Some(e.shard.clone()), false);
                }
            }
            Some(Payload::GameReassigned(e)) => {
                let Some(info) = &e.game else { return };
                let by_hand = event.reason.as_ref().is_some_and(|r| r.rule == "an operator's word");
                if by_hand {
                    self.moved_by_hand.insert(info.id.clone());
                }
                let watch = self.watch(&info.id);
                watch.leave(at);
                (watch.owner, watch.was_confirmed) = (Some(e.shard.clone()), false);
                watch.moved_us = Some(at);
                watch.sla.moves += 1;
            }
            Some(Payload::GameReleased(e)) => {
                let watch = self.watch(&e.game);
                watch.owner = None;
                watch.leave(at);
            }
            Some(Payload::AssignmentConfirmed(e)) => {
                let Some(id) = e.game.as_ref().map(|g| g.id.clone()) else { return };
                if self.watch(&id).owner.as_deref() == Some(e.shard.as_str()) {
                    self.watch(&id).was_confirmed = true;
                    self.watch(&id).watch(at);
                    self.found(&id, at);
                    self.retried.count += u64::from(self.failed.remove(&id));
                }
            }
            Some(Payload::AssignmentFailed(e)) => self.retried.of += u64::from(self.failed.insert(e.game.clone())),
            Some(Payload::ServiceLost(e)) if e.kind == "shard" => self.lost(&e.instance, at - e.silent_us),
            Some(Payload::ServiceStatusChanged(e)) if e.kind == "shard" && e.to == "retired" => {
                self.lost(&e.instance, at);
            }
            Some(Payload::ServiceStatusChanged(e)) if e.kind == "shard" && e.to == "healthy" => {
                self.is_back(&e.instance, at);
            }
            Some(Payload::ServiceRecovered(e)) if e.kind == "shard" => self.is_back(&e.instance, at),
            _ => {}
        }
    }

    /// Counts from `at_us` on: what was before is known, and does not count.
    pub fn begin(&mut self, at_us: i64) {
        self.from_us = Some(at_us);
        (self.recovered_us, self.automatic, self.false_alarms) = (Vec::new(), Rate::default(), Rate::default());
        (self.retried, self.reconnected) = (Rate::default(), Rate::default());
        self.failed.clear();
        self.losses.clear();
        for (id, watch) in &mut self.watches {
            watch.sla = GameSla { game: id.clone(), ..GameSla::default() };
            watch.live_since_us = watch.live_since_us.map(|_| at_us);
            watch.unwatched_since_us = watch.unwatched_since_us.map(|_| at_us);
            // It was found before.
            watch.first_live_us = None;
            watch.moved_us = None;
        }
    }

    /// Takes in an event of GAME_STATES, in the stream's order.
    pub fn state(&mut self, event: &v1::Event) {
        let Some(Payload::GameStateChanged(state)) = &event.payload else { return };
        let at = event.occurred_at_us;
        let Some(watch) = self.watches.get_mut(&state.game) else { return };
        match watch.told {
            Some((newest, since_us)) if state.epoch < newest => {
                watch.sla.doubled_us = watch.sla.doubled_us.max(at - since_us);
            }
            Some((newest, _)) if state.epoch == newest => {}
            _ => watch.told = Some((state.epoch, at)),
        }
    }

    /// Takes in an event of ALERTS.
    pub fn alert(&mut self, event: &v1::Event) {
        match &event.payload {
            Some(Payload::AlertRaised(e)) => {
                let is_away = AWAY.contains(&e.kind.as_str());
                self.reconnected.of += u64::from(is_away && self.away.insert(e.incident.clone()));
                let raised = &mut self.false_alarms.of;
                self.alerts.entry(e.incident.clone()).or_insert_with(|| {
                    *raised += 1;
                    false
                });
            }
            Some(Payload::AlertResolved(e)) => {
                self.alerts.remove(&e.incident);
                self.reconnected.count += u64::from(self.away.remove(&e.incident));
            }
            Some(Payload::AlertAcknowledged(e)) if e.false_alarm => {
                let is_known =
                    self.alerts.get_mut(&e.incident).is_none_or(|is_false| std::mem::replace(is_false, true));
                self.false_alarms.count += u64::from(!is_known);
            }
            _ => {}
        }
    }

    fn watch(&mut self, game: &str) -> &mut Watch {
        let fresh = || Watch { sla: GameSla { game: game.to_owned(), ..GameSla::default() }, ..Watch::default() };
        self.watches.entry(game.to_owned()).or_insert_with(fresh)
    }

    fn lost(&mut self, shard: &str, since_us: i64) {
        let mut waiting = BTreeSet::new();
        for (id, watch) in &mut self.watches {
            if watch.owner.as_deref() == Some(shard) {
                watch.leave(since_us);
                if watch.live_since_us.is_some() {
                    waiting.insert(id.clone());
                }
            }
        }
        if !waiting.is_empty() {
            self.automatic.of += 1;
            self.losses.push(Loss { from_us: since_us, waiting, by_hand: false });
        }
    }

    /// What is still its own it watches again.
    fn is_back(&mut self, shard: &str, at: i64) {
        let own = self.watches.iter().filter(|(_, w)| w.owner.as_deref() == Some(shard) && !w.is_watched);
        let own: Vec<String> = own.filter(|(_, w)| w.was_confirmed).map(|(id, _)| id.clone()).collect();
        for id in own {
            self.watch(&id).watch(at);
            self.found(&id, at);
        }
    }

    /// Nobody needs to watch it any more.
    fn over(&mut self, game: &str, at: i64) {
        self.watch(game).end_play(at);
        // What is over need not be taken up any more.
        self.retried.of -= u64::from(self.failed.remove(game));
        for loss in &mut self.losses {
            loss.waiting.remove(game);
        }
        self.close_losses(at);
    }

    fn found(&mut self, game: &str, at: i64) {
        let by_hand = self.moved_by_hand.remove(game);
        for loss in &mut self.losses {
            loss.by_hand |= loss.waiting.remove(game) && by_hand;
        }
        self.close_losses(at);
    }

    fn close_losses(&mut self, at: i64) {
        for loss in self.losses.extract_if(.., |l| l.waiting.is_empty()) {
            let took_us = at - loss.from_us;
            self.recovered_us.push(took_us);
            self.automatic.count += u64::from(!loss.by_hand && took_us <= RECOVERED_WITHIN);
        }
    }

    /// The figures, with what lasts counted up to `until_us`.
    #[must_use]
    pub fn finish(mut self, until_us: i64) -> Sla {
        for watch in self.watches.values_mut() {
            watch.end_play(until_us);
        }
        let games: Vec<GameSla> = self.watches.into_values().map(|w| w.sla).filter(|g| g.live_us > 0).collect();
        let total = |of: fn(&GameSla) -> i64| games.iter().map(of).sum();
        Sla {
            from_us: self.from_us.unwrap_or(until_us),
            until_us,
            live_us: total(|g| g.live_us),
            unwatched_us: total(|g| g.unwatched_us),
            doubled_us: total(|g| g.doubled_us),
            to_watched: Spread::of(games.iter().filter_map(|g| g.to_watched_us).collect()),
            handover: Spread::of(games.iter().flat_map(|g| g.handovers_us.iter().copied()).collect()),
            recovery: Spread::of(self.recovered_us),
            automatic: self.automatic,
            reconnected: self.reconnected,
            retried: self.retried,
            false_alarms: self.false_alarms,
            games,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000;

    fn event(at: i64, payload: Payload) -> v1::Event {
        v1::Event { occurred_at_us: at * S, payload: Some(payload), ..v1::Event::default() }
    }

    fn game(id: &str) -> Option<v1::Game> {
        Some(v1::Game { id: id.into(), ..v1::Game::default() })
    }

    fn confirmed(shard: &str) -> Payload {
        Payload::AssignmentConfirmed(v1::AssignmentConfirmed { game: game("nfl-1"), shard: shard.into(), epoch: 1 })
    }

    fn live_on_a() -> Counter {
        let mut counter = Counter::default();
        let assigned = v1::GameAssigned { game: game("nfl-1"), shard: "a".into() };
        for (at, payload) in [
            (100, Payload::GameDiscovered(v1::GameDiscovered { game: game("nfl-1") })),
            (100, Payload::GameWentLive(v1::GameWentLive { game: "nfl-1".into() })),
            (101, Payload::GameAssigned(assigned)),
            (102, confirmed("a")),
        ] {
            counter.control(&event(at, payload));
        }
        counter
    }

    #[test]
    fn a_lost_owner_counts_from_its_last_heartbeat_until_another_says_that_it_watches() {
        let mut counter = live_on_a();
        let lost =
            v1::ServiceLost { kind: "shard".into(), instance: "a".into(), silent_us: 2 * S, ..Default::default() };
        let moved =
            v1::GameReassigned { game: game("nfl-1"), from: "a".into(), shard: "b".into(), ..Default::default() };
        counter.control(&event(200, Payload::ServiceLost(lost)));
        counter.control(&event(201, Payload::GameReassigned(moved)));
        counter.control(&event(203, confirmed("b")));
        let sla = counter.finish(300 * S);
        let only = &sla.games[0];
        assert_eq!((only.live_us, only.unwatched_us, only.moves), (200 * S, (2 + 5) * S, 1));
        assert_eq!((only.to_watched_us, sla.handover.p50_us), (Some(2 * S), Some(2 * S)));
        assert_eq!((sla.recovery.worst_us, sla.automatic), (Some(5 * S), Rate { of: 1, count: 1 }));
    }

    #[test]
    fn what_nobody_ever_watches_counts_to_the_end_and_what_is_over_counts_no_more() {
        let mut counter = Counter::default();
        for id in ["nfl-1", "nfl-2"] {
            counter.control(&event(100, Payload::GameWentLive(v1::GameWentLive { game: id.into() })));
        }
        let over = v1::GameFinished { game: "nfl-2".into(), ..Default::default() };
        counter.control(&event(110, Payload::GameFinished(over)));
        let sla = counter.finish(150 * S);
        assert_eq!(sla.games.iter().map(|g| g.unwatched_us).collect::<Vec<_>>(), [50 * S, 10 * S]);
        assert_eq!((sla.to_watched.count, sla.automatic.of), (0, 0));
    }

    #[test]
    fn what_was_before_the_beginning_is_known_and_does_not_count() {
        let mut counter = live_on_a();
        let lost = v1::ServiceLost { kind: "shard".into(), instance: "a".into(), ..Default::default() };
        counter.control(&event(200, Payload::ServiceLost(lost)));
        counter.begin(250 * S);
        counter.control(&event(260, confirmed("a")));
        let sla = counter.finish(300 * S);
        assert_eq!((sla.games[0].live_us, sla.games[0].unwatched_us, sla.automatic.of), (50 * S, 10 * S, 0));
        assert_eq!(sla.games[0].to_watched_us, None);
    }

    #[test]
    fn two_count_as_watching_while_an_older_epoch_is_told_beside_a_newer() {
        let mut counter = live_on_a();
        let told = |epoch| {
            let state = v1::GameStateChanged { game: "nfl-1".into(), epoch, ..Default::default() };
            Payload::GameStateChanged(state)
        };
        for (at, epoch) in [(110, 5), (120, 9), (121, 5), (123, 5), (124, 9)] {
            counter.state(&event(at, told(epoch)));
        }
        assert_eq!(counter.finish(200 * S).games[0].doubled_us, 3 * S);
    }

    #[test]
    fn false_alarms_are_a_share_of_all() {
        let mut counter = live_on_a();
        let raised =
            |incident: &str| Payload::AlertRaised(v1::AlertRaised { incident: incident.into(), ..Default::default() });
        let called = v1::AlertAcknowledged { incident: "a".into(), false_alarm: true, ..Default::default() };
        let over = v1::AlertResolved { incident: "b".into(), ..Default::default() };
        for payload in
            [raised("a"), raised("b"), Payload::AlertAcknowledged(called), Payload::AlertResolved(over), raised("b")]
        {
            counter.alert(&event(110, payload));
        }
        assert_eq!(counter.finish(200 * S).false_alarms, Rate { of: 3, count: 1 });
    }

    #[test]
    fn outages_and_assignments_that_end_well_are_a_share_of_all() {
        let mut counter = live_on_a();
        let raised = |kind: &str| {
            let raised = v1::AlertRaised { kind: kind.into(), incident: kind.into(), ..Default::default() };
            Payload::AlertRaised(raised)
        };
        let over = v1::AlertResolved { incident: "redis_connectivity".into(), ..Default::default() };
        for payload in [
            raised("redis_connectivity"),
            raised("log_unavailable"),
            raised("shard_lost"),
            Payload::AlertResolved(over),
        ] {
            counter.alert(&event(110, payload));
        }
        let failed = |game: &str| v1::AssignmentFailed { game: game.into(), shard: "a".into(), ..Default::default() };
        counter.control(&event(111, Payload::AssignmentFailed(failed("nfl-1"))));
        counter.control(&event(112, Payload::AssignmentFailed(failed("nfl-1"))));
        counter.control(&event(113, confirmed("a")));
        counter.control(&event(114, Payload::AssignmentFailed(failed("nfl-1"))));
        let sla = counter.finish(200 * S);
        assert_eq!((sla.reconnected, sla.retried), (Rate { of: 2, count: 1 }, Rate { of: 2, count: 1 }));
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        assert_eq!(Spread::of((1..=200).collect()).p99_us, Some(198));
        assert_eq!(Spread::of(vec![7]).p50_us, Some(7));
        assert_eq!(Spread::of(Vec::new()).p50_us, None);
    }
}
