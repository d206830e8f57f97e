//! The fleet in figures and in a few words: what `/metrics`, `/healthz` and this orchestrator's heartbeat tell of it.

use std::collections::BTreeMap;

use arbees_core::health::Health;
use arbees_core::metrics::{counter, figure, gauge, histogram};
use arbees_core::time::{now_us, steady_us};
use arbees_fleet::state::{Circuit, Phase};
use arbees_fleet::{SECOND, State, Status};
use arbees_proto::{GameId, Payload, ServiceKind, v1};

use super::Desk;

/// How often the figures are taken.
const EVERY_US: i64 = SECOND;

/// The parts of health that only who leads can tell of.
const PARTS: [&str; 4] = ["shards", "games", "discovery", "database"];

/// What only a leader knows.
const OF_LEADER: [&str; 6] = [
    "arbees_leader",
    "arbees_games_owned",
    "arbees_games_waiting",
    "arbees_games_unwatched",
    "arbees_breakers_open",
    "arbees_alerts_open",
];

/// What it looks at, and when it did.
#[derive(Debug)]
pub(super) struct Summary {
    health: Health,
    monitor_us: i64,
    measured_us: i64,
    told_us: i64,
}

impl Summary {
    pub fn new(health: Health, monitor_us: i64) -> Self {
        Self { health, monitor_us, measured_us: i64::MIN / 2, told_us: i64::MIN / 2 }
    }
}

impl Desk<'_> {
    /// Takes the figures and tells health, when it is time to.
    pub(super) fn summarise(&mut self) {
        let now_us = steady_us();
        if now_us - self.summary.measured_us >= EVERY_US {
            self.summary.measured_us = now_us;
            self.measure(now_us);
        }
        if now_us - self.summary.told_us >= self.summary.monitor_us {
            self.summary.told_us = now_us;
            self.tell_health();
        }
    }

    /// No more than who leads knows what is so.
    pub(super) fn summarise_nothing(&mut self) {
        // What a leader knew is not so any more, whoever asks this one.
        for name in OF_LEADER {
            gauge!(name).set(0.0);
        }
        for kind in ServiceKind::ALL {
            gauge!("arbees_heartbeat_age_seconds", "kind" => kind.as_str()).set(0.0);
            for status in Status::ALL {
                gauge!("arbees_services", "kind" => kind.as_str(), "status" => status.as_str()).set(0.0);
            }
        }
        for part in PARTS {
            self.summary.health.ok(part);
            self.summary.health.detail(part, "another orchestrator leads, and tells of it".to_owned());
        }
        self.summary.told_us = i64::MIN / 2;
    }

    fn measure(&self, now_us: i64) {
        let state = self.fleet.state();
        let count = Games::of(state, arbees_core::time::now_us());
        gauge!("arbees_leader").set(1.0);
        #[allow(clippy::cast_precision_loss)]
        gauge!("arbees_term").set(state.head.term as f64);
        gauge!("arbees_games_owned").set(figure(count.owned));
        gauge!("arbees_games_waiting").set(figure(count.waiting));
        gauge!("arbees_games_unwatched").set(figure(count.unwatched));
        gauge!("arbees_breakers_open")
            .set(figure(state.services.values().filter(|s| s.breaker.circuit == Circuit::Open).count()));
        let open = self.open.borrow().as_ref().map_or(0, std::collections::BTreeSet::len);
        gauge!("arbees_alerts_open").set(figure(open));
        let counted = by_status(state);
        for kind in ServiceKind::ALL {
            for status in Status::ALL {
                let services = counted.get(&kind).and_then(|c| c.get(&status)).copied().unwrap_or(0);
                gauge!("arbees_services", "kind" => kind.as_str(), "status" => status.as_str()).set(figure(services));
            }
        }
        let silences = self.fleet.silences(now_us);
        for kind in ServiceKind::ALL {
            let silent_us = silences.get(&kind).copied().unwrap_or(0);
            #[allow(clippy::cast_precision_loss)]
            gauge!("arbees_heartbeat_age_seconds", "kind" => kind.as_str()).set(silent_us as f64 / 1e6);
        }
    }

    fn tell_health(&self) {
        let (health, state) = (&self.summary.health, self.fleet.state());
        let shards = by_status(state).remove(&ServiceKind::Shard).unwrap_or_default();
        let told: Vec<String> = shards.iter().map(|(status, n)| format!("{n} {}", status.as_str())).collect();
        set(health, "shards", shards.contains_key(&Status::Healthy), told.join(", "), "no shard is healthy");
        let count = Games::of(state, now_us());
        let told = format!("{} owned, {} waiting, {} unwatched", count.owned, count.waiting, count.unwatched);
        set(health, "games", count.unwatched == 0, told, "games in play are watched by nobody");
        let open = self.open.borrow();
        let lasts = |kind: &str| {
            let is_it = |i: &&String| i.split(':').next() == Some(kind);
            open.iter().flatten().filter(is_it).cloned().collect::<Vec<_>>().join(", ")
        };
        let discovery = [lasts("discovery_failing"), lasts("no_market_discovery")].join(" ").trim().to_owned();
        set(health, "discovery", discovery.is_empty(), discovery, "an alert about it lasts");
        // This program has no database. Who has one raises an alert when it is away.
        let database = lasts("database_connectivity");
        set(health, "database", database.is_empty(), database, "the projector says that it is away");
    }
}

fn set(health: &Health, part: &'static str, is_well: bool, detail: String, otherwise: &str) {
    if is_well {
        health.ok(part);
    } else {
        health.failed(part, otherwise);
    }
    health.detail(part, detail);
}

/// Counts what was appended; `state` holds it already.
pub(super) fn count(event: &v1::Event, state: &State) {
    let Some(payload) = &event.payload else { return };
    counter!("arbees_events_total", "type" => arbees_proto::subject::type_name(payload)).increment(1);
    if matches!(payload, Payload::GameReassigned(_)) {
        // The rule: the cause can name whoever asked.
        let rule = event.reason.as_ref().map(|r| r.rule.clone()).unwrap_or_default();
        counter!("arbees_moves_total", "rule" => rule).increment(1);
    }
    if let Payload::AssignmentConfirmed(confirmed) = payload {
        let game = confirmed.game.as_ref().and_then(|g| g.id.parse::<GameId>().ok());
        let owner = game.and_then(|id| state.games.get(&id)).and_then(|g| g.owner.as_ref());
        if let Some(owner) = owner.filter(|o| o.epoch.0 == confirmed.epoch) {
            #[allow(clippy::cast_precision_loss)]
            histogram!("arbees_handover_seconds").record((event.occurred_at_us - owner.since_us) as f64 / 1e6);
        }
    }
}

fn by_status(state: &State) -> BTreeMap<ServiceKind, BTreeMap<Status, usize>> {
    let mut all: BTreeMap<ServiceKind, BTreeMap<Status, usize>> = BTreeMap::new();
    for (key, service) in &state.services {
        *all.entry(key.kind).or_default().entry(service.status).or_default() += 1;
    }
    all
}

/// Games by how they are watched.
#[derive(Debug, Default, PartialEq, Eq)]
struct Games {
    owned: usize,
    waiting: usize,
    /// Live or suspended, and no shard says that it watches.
    unwatched: usize,
}

impl Games {
    /// A game that was given away a moment ago is not unwatched yet: its shard confirms with its next heartbeat.
    fn of(state: &State, now_us: i64) -> Self {
        let mut count = Self::default();
        for game in state.games.values() {
            count.owned += usize::from(game.owner.is_some());
            count.waiting += usize::from(game.queued_since_us.is_some());
            let is_played = matches!(game.phase, Phase::Live | Phase::Suspended);
            let is_new = |since_us: i64| now_us - since_us < 3 * SECOND;
            let is_watched = match &game.owner {
                Some(owner) => owner.confirmed_at_us.is_some() || is_new(owner.since_us),
                None => is_new(game.phase_since_us),
            };
            count.unwatched += usize::from(is_played && !is_watched);
        }
        count
    }
}
