//! Programs that know only Redis: an old shard, market discovery, a monitor that starts.

use std::collections::BTreeSet;

use arbees_testkit::feed::{Sim, SimGame, Turn};
use arbees_testkit::wait;
use serde_json::{Value, json};

use crate::old_shard::OldShard;
use crate::plane::{PATIENCE, Plane, confirmed, is};

/// Ten games in two leagues that end after 20 s.
fn short_games() -> Sim {
    let game = |n: u64| SimGame {
        league: usize::try_from(n % 2).unwrap(),
        event: 600_000_000 + n,
        start: -1,
        script: vec![(-1, Turn::Play), (20, Turn::End)],
    };
    Sim::scripted(60.0, (0..10).map(game).collect())
}

#[tokio::test]
async fn a_shard_that_knows_only_redis_gets_games_and_drops_them_beside_a_log_shard() {
    let mut plane = Plane::new("old-shard", short_games()).await;
    let old = OldShard::start(&plane.bus(), "old.host-1");
    plane.projector().await;
    plane.orchestrator().await;
    plane.shard("shard_01").await;
    let (state, _) = plane.until("10 games confirmed", |s| is(confirmed(s), 10)).await;
    let loads: Vec<(String, u32)> = state.loads().into_iter().map(|(s, n)| (s.to_string(), n)).collect();
    let on_old = loads.iter().find(|(s, _)| s == "old.host-1").map_or(0, |(_, n)| *n);
    assert!((1..=5).contains(&on_old), "some, and never more than it holds: {loads:?}");
    assert_eq!(old.count(), usize::try_from(on_old).unwrap());
    let first = old.commands.lock().unwrap()[0].clone();
    assert_eq!((first["type"].as_str(), first["reason"].as_str()), (Some("add_game"), Some("assigned")));
    assert!(first["game_id"].as_str().unwrap().starts_with("6000000"), "a bare id: {first}");
    let probe = || async { is(old.count(), 0) };
    wait::until("the old shard to have dropped all", PATIENCE, probe).await.unwrap();
    plane.until("no game owned", |s| is(s.loads().len(), 0)).await;
    plane.verified().await;
    plane.stop(&[]).await;
}

/// A lost command is sent again, and a game that the shard should not have is taken from it.
#[tokio::test]
async fn what_an_old_shard_misses_is_repaired() {
    let mut plane = Plane::new("repair", Sim::all_live(60.0, 3, 24 * 60)).await;
    let settings = plane.with(&[("HEARTBEAT_INTERVAL_SECS", "0.5")]);
    let old = OldShard::start(&plane.bus(), "old-2");
    plane.programs.start("orchestrator", "arbees-orchestrator", &settings).await.unwrap();
    plane.until("3 games confirmed", |s| is(confirmed(s), 3)).await;
    old.games.lock().unwrap().clear();
    let probe = || async { is(old.count(), 3) };
    let (_, took) = wait::until("the forgotten games to be back", PATIENCE, probe).await.unwrap();
    println!("three forgotten games were commanded again within {took:.1?}");
    let other = OldShard::start(&plane.bus(), "old-3");
    let stolen = old.games.lock().unwrap().first().cloned().unwrap();
    other.games.lock().unwrap().insert(stolen);
    let probe = || async { is(other.count(), 0) };
    wait::until("the zombie to be removed", PATIENCE, probe).await.unwrap();
    assert_eq!(old.count(), 3);
    plane.stop(&[]).await;
}

/// Market discovery answers late: the assignment is amended, the monitors are told, and who starts later can ask.
#[tokio::test]
async fn markets_arrive_late_and_reach_shards_and_monitors() {
    let mut plane = Plane::new("markets", Sim::all_live(60.0, 2, 24 * 60)).await;
    let bus = plane.bus();
    let old = OldShard::start(&bus, "old-4");
    let channels =
        ["discovery:requests", "orchestrator:market_assignments", "orchestrator:startup_state_response:kalshi"];
    let mut heard = bus.subscribe(&channels, &[]);
    plane.orchestrator().await;
    plane.until("2 games confirmed", |s| is(confirmed(s), 2)).await;
    let next = async |heard: &mut arbees_core::bus::Subscription, channel: &str| -> Value {
        loop {
            let message = tokio::time::timeout(PATIENCE, heard.next()).await.expect("a message").unwrap();
            if message.channel == channel {
                return serde_json::from_slice(&message.payload).unwrap();
            }
        }
    };
    let request = next(&mut heard, "discovery:requests").await;
    let fields = ["game_id", "sport", "home_team", "away_team", "home_abbr", "away_abbr"];
    assert!(fields.iter().all(|f| request[f].is_string()), "{request}");
    let answer = json!({ "game_id": request["game_id"], "sport": request["sport"], "kalshi_moneyline": "KX-1",
        "polymarket_moneyline": null });
    bus.publish("discovery:results", "{\"garbage\":").await.unwrap();
    bus.publish("discovery:results", &answer.to_string()).await.unwrap();
    let follow = next(&mut heard, "orchestrator:market_assignments").await;
    assert_eq!(follow["type"], "kalshi_assign");
    assert_eq!(follow["markets"], json!([{ "market_type": "moneyline", "ticker": "KX-1" }]));
    assert_eq!(plane.count("AssignmentAmended").await, 1);
    let told = || async {
        let commands = old.commands.lock().unwrap();
        let amended = commands.iter().find(|c| c["kalshi_market_id"] == "KX-1").cloned();
        amended.ok_or_else(|| commands.clone())
    };
    let (command, _) = wait::until("the old shard to be told", PATIENCE, told).await.unwrap();
    assert_eq!(command["market_ids_by_type"]["moneyline"], json!({ "kalshi": "KX-1", "polymarket": null }));
    bus.publish("orchestrator:startup_state_request", "{\"monitor_type\":\"kalshi\"}").await.unwrap();
    let state = next(&mut heard, "orchestrator:startup_state_response:kalshi").await;
    assert_eq!(state["markets"].as_array().unwrap().len(), 1, "those with an id on that market: {state}");
    assert_eq!(state["markets"][0]["shard_id"], "old-4");
    plane.stop(&["payload cannot be read"]).await;
}

/// What a shard on the log says over Redis, and what it tells of a game.
#[tokio::test]
async fn redis_readers_still_hear_shards_and_game_states() {
    let mut plane = Plane::new("readers", Sim::all_live(60.0, 2, 24 * 60)).await;
    let bus = plane.bus();
    let mut heard = bus.subscribe(&["orchestrator:log_status"], &["shard:*:heartbeat", "game:*:state"]);
    plane.orchestrator().await;
    let own = plane.with(&[("SHARD_ID", "shard_01"), ("HEARTBEAT_INTERVAL_SECS", "0.5")]);
    plane.programs.start("shard_01", "arbees-shard", &own).await.unwrap();
    let mut missing: BTreeSet<&str> = ["log_status", "heartbeat", "state"].into();
    let all = async {
        while !missing.is_empty() {
            let message = heard.next().await.unwrap();
            let payload: Value = serde_json::from_slice(&message.payload).unwrap();
            if message.channel == "orchestrator:log_status" {
                if payload["log_ok"] == true && payload["term"].is_u64() && payload["last_sequence"].is_u64() {
                    missing.remove("log_status");
                }
            } else if message.channel == "shard:shard_01:heartbeat" {
                if payload["games"].as_array().is_some_and(|g| g.len() == 2) {
                    assert_eq!(
                        (payload["status"].as_str(), payload["game_count"].as_u64()),
                        (Some("healthy"), Some(2))
                    );
                    assert!(payload["games"][0].as_str().unwrap().starts_with("8000000"), "bare: {payload}");
                    assert_eq!(payload["checks"]["redis_ok"], true);
                    missing.remove("heartbeat");
                }
            } else {
                let fields = ["game_id", "home_team", "away_team", "status", "state", "shard_id", "timestamp"];
                assert!(fields.iter().all(|f| payload[f].is_string()), "{payload}");
                assert!(payload["epoch"].is_u64() && payload["home_score"].is_u64(), "{payload}");
                assert_eq!(message.channel, format!("game:{}:state", payload["game_id"].as_str().unwrap()));
                missing.remove("state");
            }
        }
    };
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        panic!("not heard on Redis: {missing:?}");
    }
    plane.stop(&[]).await;
}
