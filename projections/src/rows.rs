//! The rows that the fold of CONTROL comes to: written by the projector, expected by `verify`.

use arbees_fleet::state::{Circuit, Game, Owner, Service, ServiceKey};
use arbees_proto::{GameId, ServiceKind, v1};
use chrono::{DateTime, Utc};
use serde_json::json;

use crate::checkpoint::signed;

/// Times that Postgres can hold, in microseconds since the Unix epoch: the years 1 to 9999.
const TIMES: std::ops::RangeInclusive<i64> = -62_135_596_800_000_000..=253_402_300_799_999_999;

/// A time as Postgres holds it, from microseconds since the Unix epoch; the nearest one it can hold.
#[must_use]
pub fn time(at_us: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(at_us.clamp(*TIMES.start(), *TIMES.end())).unwrap_or_default()
}

/// Postgres takes no NUL in text, and none in JSON.
#[must_use]
pub fn clean(text: &str) -> String {
    text.replace('\0', "")
}

/// A row of `games`.
#[derive(Clone, Debug, PartialEq)]
pub struct GameRow {
    pub game_id: String,
    pub league: String,
    pub event_id: String,
    pub home_team: String,
    pub away_team: String,
    pub starts_at: Option<DateTime<Utc>>,
    pub phase: String,
    pub phase_since_at: DateTime<Utc>,
    pub status: String,
    pub markets: serde_json::Value,
    pub queued_since_at: Option<DateTime<Utc>>,
    pub pinned_to: Option<String>,
    pub sequence: i64,
}

impl GameRow {
    /// The row of `game`.
    #[must_use]
    pub fn of(id: &GameId, game: &Game) -> Self {
        let team = |t: &Option<v1::Team>| clean(t.as_ref().map_or("", |t| &t.name));
        Self {
            game_id: id.to_string(),
            league: id.league().to_string(),
            event_id: id.event().to_owned(),
            home_team: team(&game.info.home),
            away_team: team(&game.info.away),
            starts_at: (game.info.starts_at_us != 0).then(|| time(game.info.starts_at_us)),
            phase: game.phase.as_str().to_owned(),
            phase_since_at: time(game.phase_since_us),
            status: clean(&game.status),
            markets: markets(game.info.markets.as_ref()),
            queued_since_at: game.queued_since_us.map(time),
            pinned_to: game.pin.as_ref().map(ToString::to_string),
            sequence: signed(game.last_sequence),
        }
    }
}

fn markets(markets: Option<&v1::Markets>) -> serde_json::Value {
    let sides = |m: &v1::Market| {
        (clean(&m.market_type), json!({ "kalshi": clean(&m.kalshi), "polymarket": clean(&m.polymarket) }))
    };
    markets.iter().flat_map(|m| &m.by_type).map(sides).collect::<serde_json::Map<_, _>>().into()
}

/// A row of `assignments`.
#[derive(Clone, Debug, PartialEq)]
pub struct AssignmentRow {
    pub game_id: String,
    pub shard_id: String,
    pub epoch: i64,
    pub assigned_at: DateTime<Utc>,
    pub confirmed_at: Option<DateTime<Utc>>,
    pub sequence: i64,
}

impl AssignmentRow {
    /// The row of `game` while `owner` watches it.
    #[must_use]
    pub fn of(id: &GameId, game: &Game, owner: &Owner) -> Self {
        Self {
            game_id: id.to_string(),
            shard_id: owner.shard.to_string(),
            epoch: signed(owner.epoch.0),
            assigned_at: time(owner.since_us),
            confirmed_at: owner.confirmed_at_us.map(time),
            sequence: signed(game.last_sequence),
        }
    }
}

/// A row of `assignment_history`.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryRow {
    pub game_id: String,
    pub epoch: i64,
    pub shard_id: String,
    pub assigned_at: DateTime<Utc>,
    pub cause: String,
    pub rule: String,
    pub candidates: serde_json::Value,
    pub rejections: serde_json::Value,
    pub confirmed_at: Option<DateTime<Utc>>,
    pub ended_at: Option<DateTime<Utc>>,
    pub end_cause: Option<String>,
}

impl HistoryRow {
    /// The row of an assignment that has just begun, for this reason.
    #[must_use]
    pub fn begun(id: &GameId, owner: &Owner, reason: &v1::Reason) -> Self {
        let candidates = reason.candidates.iter().map(|c| json!({ "shard": c.shard, "score": c.score }));
        let rejections = reason.rejections.iter().map(|r| (r.code.clone(), json!(r.count)));
        Self {
            game_id: id.to_string(),
            epoch: signed(owner.epoch.0),
            shard_id: owner.shard.to_string(),
            assigned_at: time(owner.since_us),
            cause: clean(&reason.cause),
            rule: clean(&reason.rule),
            candidates: candidates.collect::<Vec<_>>().into(),
            rejections: rejections.collect::<serde_json::Map<_, _>>().into(),
            confirmed_at: owner.confirmed_at_us.map(time),
            ended_at: None,
            end_cause: None,
        }
    }
}

/// A row of `services`.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceRow {
    pub kind: String,
    pub instance: String,
    pub process_id: String,
    pub started_at: Option<DateTime<Utc>>,
    pub version: String,
    pub shard_type: String,
    pub max_games: i32,
    pub on_log: bool,
    pub registered_at: DateTime<Utc>,
    pub restarts: i32,
    pub status: String,
    pub status_since_at: DateTime<Utc>,
    pub failed_checks: String,
    pub drain: String,
    pub sequence: i64,
}

impl ServiceRow {
    /// The row of `service`.
    #[must_use]
    pub fn of(key: &ServiceKey, service: &Service) -> Self {
        let info = &service.info;
        Self {
            kind: key.kind.to_string(),
            instance: clean(key.instance.as_str()),
            process_id: clean(&info.process),
            started_at: (info.started_at_us != 0).then(|| time(info.started_at_us)),
            version: clean(&info.version),
            shard_type: clean(&info.shard_type),
            max_games: i32::try_from(info.max_games).unwrap_or(i32::MAX),
            on_log: info.on_log,
            registered_at: time(service.registered_at_us),
            restarts: i32::try_from(service.restarts).unwrap_or(i32::MAX),
            status: service.status.as_str().to_owned(),
            status_since_at: time(service.status_since_us),
            failed_checks: clean(&service.failed_checks.join(",")),
            drain: service.drain.as_str().to_owned(),
            sequence: signed(service.last_sequence),
        }
    }
}

/// A row of `circuit_breakers`.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerRow {
    pub shard_id: String,
    pub state: String,
    pub failures: i32,
    pub successes: i32,
    pub opened_at: Option<DateTime<Utc>>,
    pub sequence: i64,
}

impl BreakerRow {
    /// The row of the breaker of `service`; none when it is no shard.
    #[must_use]
    pub fn of(key: &ServiceKey, service: &Service) -> Option<Self> {
        let breaker = service.breaker;
        let count = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        (key.kind == ServiceKind::Shard).then(|| Self {
            shard_id: clean(key.instance.as_str()),
            state: breaker.circuit.as_str().to_owned(),
            failures: count(breaker.failures),
            successes: count(breaker.successes),
            opened_at: (breaker.circuit != Circuit::Closed).then(|| time(breaker.opened_at_us)),
            sequence: signed(service.last_sequence),
        })
    }
}
