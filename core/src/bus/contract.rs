//! The existing Redis contract: channel names and payloads, read leniently and written exactly.

use arbees_proto::{Epoch, GameId, InstanceId, ServiceKind, v1};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::time::{parse_us, rfc3339};

/// All shards' heartbeats.
pub const SHARD_HEARTBEATS: &str = "shard:*:heartbeat";
/// All shards' commands.
pub const SHARD_COMMANDS: &str = "shard:*:command";
/// All other services' heartbeats.
pub const SERVICE_HEARTBEATS: &str = "health:heartbeats";
/// What market discovery is asked.
pub const DISCOVERY_REQUESTS: &str = "discovery:requests";
/// What market discovery answers.
pub const DISCOVERY_RESULTS: &str = "discovery:results";
/// What market monitors shall follow.
pub const MARKET_ASSIGNMENTS: &str = "orchestrator:market_assignments";
/// Any service that starts asks here what it should know.
pub const STATE_REQUEST: &str = "orchestrator:startup_state_request";
/// Whether the log is there, as each orchestrator sees it.
pub const LOG_STATUS: &str = "orchestrator:log_status";

/// What people must be told.
pub const CRITICAL_ALERTS: &str = "alerts:critical";
/// The status of a service's last beats.
pub const STOPPING: &str = "stopping";

/// Longest payload that is read; a heartbeat with thousands of games is far below it.
const MAX_PAYLOAD: usize = 1 << 20;

/// Where a shard takes its commands.
#[must_use]
pub fn command_channel(shard: &str) -> String {
    format!("shard:{shard}:command")
}

/// Whether a command was sent by an orchestrator of this kind: its commands name the epoch and the whole game.
#[must_use]
pub fn is_own_command(payload: &[u8]) -> bool {
    let command: Value = serde_json::from_slice(payload).unwrap_or_default();
    command["epoch"].is_u64() && command["game"].is_string()
}

/// Where a shard beats.
#[must_use]
pub fn heartbeat_channel(shard: &str) -> String {
    format!("shard:{shard}:heartbeat")
}

/// Where a game's state is told.
#[must_use]
pub fn state_channel(game: &GameId) -> String {
    format!("game:{}:state", game.event())
}

/// Where start-up replies for `monitor_type` go.
#[must_use]
pub fn state_response_channel(monitor_type: &str) -> String {
    format!("orchestrator:startup_state_response:{monitor_type}")
}

/// Why a payload was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPayload {
    #[error("payload of {0} bytes: allowed are {MAX_PAYLOAD}")]
    Size(usize),
    #[error("not the JSON that belongs here: {0}")]
    Json(String),
    #[error("no id of a service in it: {0}")]
    Id(#[from] arbees_proto::ids::BadId),
}

fn read<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, BadPayload> {
    if payload.len() > MAX_PAYLOAD {
        return Err(BadPayload::Size(payload.len()));
    }
    serde_json::from_slice(payload).map_err(|e| BadPayload::Json(e.to_string()))
}

/// A number or a string.
#[derive(Deserialize)]
#[serde(untagged)]
enum Loose {
    Text(String),
    Number(serde_json::Number),
}

impl Loose {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        }
    }
}

#[derive(Deserialize)]
struct WireBeat {
    shard_id: Option<String>,
    service: Option<String>,
    instance_id: Option<String>,
    shard_type: Option<String>,
    process_id: Option<Loose>,
    started_at: Option<String>,
    version: Option<String>,
    #[serde(default)]
    games: Vec<Loose>,
    max_games: Option<u32>,
    status: Option<String>,
    #[serde(default)]
    checks: serde_json::Map<String, Value>,
    #[serde(default)]
    metrics: serde_json::Map<String, Value>,
    last_seen_seq: Option<u64>,
}

/// A heartbeat as it came over Redis.
#[derive(Clone, Debug, PartialEq)]
pub struct BusBeat {
    pub beat: v1::Heartbeat,
    /// It also beats on the log, where it is judged.
    pub on_log: bool,
}

/// Reads a shard's heartbeat.
///
/// # Errors
/// [`BadPayload`].
pub fn read_shard_beat(payload: &[u8]) -> Result<BusBeat, BadPayload> {
    let wire: WireBeat = read(payload)?;
    let id = wire.shard_id.clone().or_else(|| wire.instance_id.clone()).unwrap_or_default();
    let instance = InstanceId::lenient(&id)?;
    let on_log = wire.last_seen_seq.is_some();
    Ok(BusBeat { beat: heartbeat(wire, ServiceKind::Shard, &instance), on_log })
}

/// Reads any other service's heartbeat.
///
/// # Errors
/// [`BadPayload`].
pub fn read_service_beat(payload: &[u8]) -> Result<BusBeat, BadPayload> {
    let wire: WireBeat = read(payload)?;
    // Shards beat on channels of their own: a service that is merely named after one is given no games.
    let kind = match ServiceKind::of_name(wire.service.as_deref().unwrap_or_default()) {
        ServiceKind::Shard | ServiceKind::Orchestrator => ServiceKind::Other,
        kind => kind,
    };
    let instance = InstanceId::lenient(wire.instance_id.as_deref().unwrap_or_default())?;
    let on_log = wire.last_seen_seq.is_some();
    Ok(BusBeat { beat: heartbeat(wire, kind, &instance), on_log })
}

fn heartbeat(wire: WireBeat, kind: ServiceKind, instance: &InstanceId) -> v1::Heartbeat {
    let shard_type = match (kind, wire.shard_type) {
        (ServiceKind::Shard, None) => "sports".to_owned(),
        (_, given) => given.unwrap_or_default(),
    };
    let service = v1::Service {
        kind: kind.as_str().to_owned(),
        instance: instance.to_string(),
        process: wire.process_id.map(Loose::text).unwrap_or_default(),
        started_at_us: wire.started_at.as_deref().and_then(parse_us).unwrap_or(0),
        version: wire.version.unwrap_or_default(),
        shard_type,
        // What a shard that does not say may hold is the default of MAX_GAMES.
        max_games: if kind == ServiceKind::Shard { wire.max_games.unwrap_or(20) } else { 0 },
        on_log: false,
    };
    let watched = |id: Loose| v1::Watched { game: id.text(), epoch: 0 };
    let check = |(name, value): (String, Value)| Some(v1::Check { name, ok: value.as_bool()? });
    let metric = |(name, value): (String, Value)| Some(v1::Metric { name, value: value.as_f64()? });
    v1::Heartbeat {
        service: Some(service),
        status: wire.status.unwrap_or_default().to_lowercase(),
        checks: wire.checks.into_iter().filter_map(check).collect(),
        games: wire.games.into_iter().map(watched).collect(),
        metrics: wire.metrics.into_iter().filter_map(metric).collect(),
        ..v1::Heartbeat::default()
    }
}

/// A log shard's heartbeat as Redis readers know it.
#[must_use]
pub fn shard_beat(beat: &v1::Heartbeat, now_us: i64) -> Value {
    let service = beat.service.clone().unwrap_or_default();
    let bare = |w: &v1::Watched| w.game.split_once('-').map_or(w.game.clone(), |(_, event)| event.to_owned());
    let games: Vec<String> = beat.games.iter().map(bare).collect();
    let checks: serde_json::Map<_, _> = beat.checks.iter().map(|c| (c.name.clone(), json!(c.ok))).collect();
    let metrics: serde_json::Map<_, _> = beat.metrics.iter().map(|m| (m.name.clone(), json!(m.value))).collect();
    json!({
        "shard_id": service.instance, "shard_type": service.shard_type, "process_id": service.process,
        "started_at": rfc3339(service.started_at_us), "timestamp": rfc3339(now_us), "version": service.version,
        "game_count": games.len(), "games": games, "max_games": service.max_games, "status": beat.status,
        "checks": checks, "metrics": metrics,
        "service": "game_shard", "instance_id": service.instance, "last_seen_seq": beat.last_applied,
    })
}

/// The market id of `game` on one side, or null.
fn market(game: &v1::Game, of: impl Fn(&v1::Market) -> &String) -> Value {
    let markets = game.markets.iter().flat_map(|m| &m.by_type);
    markets.map(of).find(|id| !id.is_empty()).map_or(Value::Null, |id| json!(id))
}

fn markets_by_type(game: &v1::Game) -> Value {
    let side = |id: &str| if id.is_empty() { Value::Null } else { json!(id) };
    let entry = |m: &v1::Market| {
        (m.market_type.clone(), json!({ "kalshi": side(&m.kalshi), "polymarket": side(&m.polymarket) }))
    };
    game.markets.iter().flat_map(|m| &m.by_type).map(entry).collect::<serde_json::Map<_, _>>().into()
}

fn bare(game: &v1::Game) -> &str {
    game.id.split_once('-').map_or(game.id.as_str(), |(_, event)| event)
}

/// `add_game`.
#[must_use]
pub fn add_game(game: &v1::Game, epoch: Epoch, reason: &str) -> Value {
    json!({
        "type": "add_game", "game_id": bare(game), "sport": game.league,
        "kalshi_market_id": market(game, |m| &m.kalshi), "polymarket_market_id": market(game, |m| &m.polymarket),
        "market_ids_by_type": markets_by_type(game),
        "epoch": epoch, "game": game.id, "reason": reason,
    })
}

/// `remove_game`.
#[must_use]
pub fn remove_game(game: &GameId, epoch: Epoch, reason: &str) -> Value {
    json!({ "type": "remove_game", "game_id": game.event(), "epoch": epoch, "game": game, "reason": reason })
}

/// A question to market discovery.
#[must_use]
pub fn discovery_request(game: &v1::Game) -> Value {
    let team = |t: &Option<v1::Team>| t.clone().unwrap_or_default();
    let (home, away) = (team(&game.home), team(&game.away));
    json!({
        "game_id": bare(game), "sport": game.league, "home_team": home.name, "away_team": away.name,
        "home_abbr": home.abbreviation, "away_abbr": away.abbreviation, "game": game.id,
    })
}

/// An answer of market discovery.
#[derive(Clone, Debug, Deserialize)]
pub struct DiscoveryResult {
    pub game_id: String,
    pub sport: Option<String>,
    pub polymarket_moneyline: Option<String>,
    pub kalshi_moneyline: Option<String>,
}

/// Reads an answer of market discovery.
///
/// # Errors
/// [`BadPayload`].
pub fn read_discovery_result(payload: &[u8]) -> Result<DiscoveryResult, BadPayload> {
    read(payload)
}

/// A side that trades markets: what its monitor is told, and where the id stands.
struct Side {
    message: &'static str,
    id_name: &'static str,
    id: fn(&v1::Market) -> &String,
}

const SIDES: [Side; 2] = [
    Side { message: "polymarket_assign", id_name: "condition_id", id: |m| &m.polymarket },
    Side { message: "kalshi_assign", id_name: "ticker", id: |m| &m.kalshi },
];

/// What the market monitors shall follow for `game`: a message for each side that has markets.
#[must_use]
pub fn market_assignments(game: &v1::Game) -> Vec<Value> {
    let message = |side: Side| {
        let markets: Vec<Value> = game
            .markets
            .iter()
            .flat_map(|m| &m.by_type)
            .filter(|m| !(side.id)(m).is_empty())
            .map(|m| json!({ "market_type": m.market_type, side.id_name: (side.id)(m) }))
            .collect();
        (!markets.is_empty()).then(|| {
            json!({ "type": side.message, "game_id": bare(game), "sport": game.league, "markets": markets, "game": game.id })
        })
    };
    SIDES.into_iter().filter_map(message).collect()
}

#[derive(Deserialize)]
struct WireStateRequest {
    monitor_type: String,
}

/// Reads which kind of service asks for its start-up state.
///
/// # Errors
/// [`BadPayload`].
pub fn read_state_request(payload: &[u8]) -> Result<String, BadPayload> {
    Ok(read::<WireStateRequest>(payload)?.monitor_type.chars().take(64).collect())
}

/// One game in a start-up reply.
#[must_use]
pub fn assignment(game: &v1::Game, shard: &str, assigned_at_us: i64) -> Value {
    json!({
        "game_id": bare(game), "sport": game.league, "shard_id": shard,
        "kalshi_market_id": market(game, |m| &m.kalshi), "polymarket_market_id": market(game, |m| &m.polymarket),
        "market_ids_by_type": markets_by_type(game), "assigned_at": rfc3339(assigned_at_us), "game": game.id,
    })
}

/// A start-up reply for `monitor_type` out of the assignments `all`: monitors get those with an id on their market.
#[must_use]
pub fn state_response(monitor_type: &str, all: &[Value]) -> Value {
    let with = |name: &str| all.iter().filter(|a| !a[name].is_null()).cloned().collect::<Vec<_>>();
    match monitor_type {
        "kalshi" => json!({ "markets": with("kalshi_market_id") }),
        "polymarket" => json!({ "markets": with("polymarket_market_id") }),
        _ => json!({ "games": all }),
    }
}

/// Whether the log is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    pub instance: String,
    pub term: u64,
    pub log_ok: bool,
    pub last_sequence: u64,
    pub timestamp: String,
}

/// Reads what an orchestrator says of the log.
///
/// # Errors
/// [`BadPayload`].
pub fn read_log_status(payload: &[u8]) -> Result<LogStatus, BadPayload> {
    read(payload)
}

/// An alert for all who listen on Redis.
#[must_use]
pub fn critical_alert(alert: &v1::AlertRaised, at_us: i64) -> Value {
    json!({
        "type": "critical_alert", "alert_type": alert.kind, "context": alert.summary, "timestamp": rfc3339(at_us),
        "severity": alert.severity, "incident": alert.incident,
    })
}

/// A game's state.
#[must_use]
pub fn game_state(s: &v1::GameStateChanged, id: &GameId, at_us: i64) -> Value {
    json!({
        "game_id": id.event(), "game": id, "sport": id.league(), "home_team": s.home_team, "away_team": s.away_team,
        "home_score": s.home_score, "away_score": s.away_score, "period": s.period, "time_remaining": s.clock,
        "status": s.status, "state": s.state, "possession": s.possession, "home_win_prob": s.home_win_prob,
        "shard_id": s.shard, "epoch": s.epoch, "timestamp": rfc3339(at_us),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD_SHARD: &str = r#"{"shard_id":"shard_01","shard_type":"sports","process_id":4711,
        "started_at":"2026-01-28T10:00:00+00:00","timestamp":"2026-01-28T10:00:05+00:00","version":"dev",
        "games":["401547698"],"game_count":1,"max_games":20,"status":"healthy",
        "checks":{"redis_ok":true,"espn_api_ok":true,"zmq_ok":true},"metrics":{"games_monitoring":1}}"#;

    #[test]
    fn an_old_shards_heartbeat_is_read_and_a_new_ones_is_told_apart() {
        let old = read_shard_beat(OLD_SHARD.as_bytes()).unwrap();
        let service = old.beat.service.clone().unwrap();
        assert!(!old.on_log);
        assert_eq!((service.process.as_str(), service.max_games), ("4711", 20));
        assert_eq!(old.beat.games[0].game, "401547698");
        let ours = shard_beat(&old.beat, 0).to_string();
        assert!(read_shard_beat(ours.as_bytes()).unwrap().on_log);
    }

    #[test]
    fn a_service_named_after_a_shard_is_none() {
        let beat = br#"{"service":"crypto_shard","instance_id":"c1","status":"healthy","checks":{"redis_ok":true}}"#;
        assert_eq!(read_service_beat(beat).unwrap().beat.service.unwrap().kind, "other");
    }

    #[test]
    fn garbage_is_refused_and_changes_nothing() {
        for bad in ["", "[]", "{\"shard_id\":\"none\"}", "{}", "{\"shard_id\":7}", "\u{0}"] {
            assert!(read_shard_beat(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(matches!(read_shard_beat(&vec![b' '; MAX_PAYLOAD + 1]), Err(BadPayload::Size(_))));
    }

    #[test]
    fn an_add_command_has_every_field_that_old_shards_read() {
        let moneyline = v1::Market { market_type: "moneyline".into(), kalshi: "K1".into(), polymarket: String::new() };
        let game = v1::Game {
            id: "nfl-401547698".into(),
            league: "nfl".into(),
            markets: Some(v1::Markets { by_type: vec![moneyline] }),
            ..v1::Game::default()
        };
        let expected = json!({
            "type": "add_game", "game_id": "401547698", "sport": "nfl", "kalshi_market_id": "K1", "polymarket_market_id": null,
            "market_ids_by_type": { "moneyline": { "kalshi": "K1", "polymarket": null } },
            "epoch": 7, "game": "nfl-401547698", "reason": "assigned",
        });
        assert_eq!(add_game(&game, Epoch(7), "assigned"), expected);
        let follow = market_assignments(&game);
        assert_eq!(follow.len(), 1);
        assert_eq!(follow[0]["markets"], json!([{ "market_type": "moneyline", "ticker": "K1" }]));
    }
}
