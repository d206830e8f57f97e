//! Recorded real days, from first poll to last release.

use std::collections::BTreeMap;
use std::time::Duration;

use arbees_fleet::{Phase, State};
use arbees_proto::Payload;
use arbees_testkit::feed::{Playback, Sim, SimGame, Turn};
use arbees_testkit::recordings::folder_for_test;
use sqlx::Row as _;

use crate::plane::{Plane, is, owner};

/// A whole day of 15 games at 1,500 times the speed: each is assigned once, watched while it lasts by exactly one shard, its
/// real scores land in the tables, and it is released.
#[tokio::test]
async fn a_real_day() {
    let Some(root) = folder_for_test("a real day") else { return };
    let day = root.join("espn/scoreboard/mlb/seq-2025-06-01");
    let mut plane = Plane::new("real-day", Playback::read(&day, 1_500.0).unwrap()).await;
    plane.all(3).await;
    let finished = |s: &State| s.games.values().filter(|g| g.phase == Phase::Finished && g.owner.is_none()).count();
    let (_, took) = plane.until("15 games to be over", |s| is(finished(s), 15)).await;
    println!("15 games over and released after {took:.1?}");

    let mut assigned: BTreeMap<String, usize> = BTreeMap::new();
    let mut released: BTreeMap<String, usize> = BTreeMap::new();
    let mut never_live: Vec<String> = Vec::new();
    for (_, event) in plane.events().await {
        match event.payload.unwrap() {
            Payload::GameDiscovered(e) => never_live.push(e.game.unwrap().id),
            Payload::GameWentLive(e) => never_live.retain(|id| *id != e.game),
            Payload::GameAssigned(e) => *assigned.entry(e.game.unwrap().id).or_default() += 1,
            Payload::GameReleased(e) => *released.entry(e.game).or_default() += 1,
            _ => {}
        }
    }
    never_live.dedup();
    assert_eq!(never_live, ["mlb-401695787"], "recorded before and after, never in play");
    assert_eq!(assigned.len(), 15);
    assert!(assigned.values().all(|n| *n == 1), "{assigned:?}");
    assert_eq!(released, assigned);

    let report = plane.verified().await;
    assert_eq!(report.rows["games"], 15);
    assert_eq!(report.rows["assignment_history"], 15);
    let pool = plane.pool().await;
    let sql = "SELECT DISTINCT ON (game_id) game_id, away_score, home_score, status FROM arbees.game_states
               ORDER BY game_id, sequence DESC";
    let last: BTreeMap<String, (i32, i32, String)> = sqlx::query(sql)
        .fetch_all(&pool)
        .await
        .unwrap()
        .iter()
        .map(|r| (r.get(0), (r.get(1), r.get(2), r.get(3))))
        .collect();
    assert_eq!(last, final_scores(&day), "the last state of each game is what the last body says");
    let watchers: i64 = sqlx::query(
        "SELECT max(n) FROM (SELECT count(DISTINCT shard_id) n FROM arbees.game_states GROUP BY game_id) t",
    )
    .fetch_one(&pool)
    .await
    .unwrap()
    .get(0);
    assert_eq!(watchers, 1, "each game was watched by one shard");
    plane.stop(&[]).await;
}

/// Read from the last body by other means than the product's.
fn final_scores(day: &std::path::Path) -> BTreeMap<String, (i32, i32, String)> {
    let body = std::fs::read(day.join("08_2137.json")).unwrap();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let score = |event: &serde_json::Value, side: &str| {
        let all = event["competitions"][0]["competitors"].as_array().unwrap();
        let one = all.iter().find(|c| c["homeAway"] == side).unwrap();
        one["score"].as_str().unwrap().parse().unwrap()
    };
    let line = |event: &serde_json::Value| {
        let id = format!("mlb-{}", event["id"].as_str().unwrap());
        let status = event["status"]["type"]["name"].as_str().unwrap().to_owned();
        (id, (score(event, "away"), score(event, "home"), status))
    };
    body["events"].as_array().unwrap().iter().map(line).collect()
}

/// A suspended game is kept while it is on no slate, and released at its end days later; postponed ones have no owner.
#[tokio::test]
async fn a_suspended_game_is_kept_through_absence_to_its_final() {
    let Some(root) = folder_for_test("a recorded suspension") else { return };
    let days = root.join("espn/scoreboard/mlb/seq-2025-05-19_21");
    let playback = Playback::read(&days, 1_500.0).unwrap();
    let length = playback.length();
    let mut plane = Plane::new("suspended", playback).await;
    plane.all(2).await;
    let id = "mlb-401695613";
    plane.until("the suspended game to be owned", |s| is(owner(s, id).is_some(), true)).await;
    let (state, took) = plane
        .until("the suspended game to be finished", |s| {
            let game = &s.games[&id.parse().unwrap()];
            is((game.phase, game.owner.is_none()), (Phase::Finished, true))
        })
        .await;
    assert!(took >= Duration::from_secs(30), "kept until two final reports stood 30 s apart, not {took:?}");
    let mut life = Vec::new();
    for (name, event) in plane.events().await {
        let about = match event.payload.unwrap() {
            Payload::GameDiscovered(e) => e.game.unwrap().id,
            Payload::GameSuspended(e) => e.game,
            Payload::GameFinished(e) => e.game,
            Payload::GameWentLive(e) => e.game,
            Payload::GameAssigned(e) => e.game.unwrap().id,
            Payload::GameReleased(e) => e.game,
            Payload::AssignmentConfirmed(e) => e.game.unwrap().id,
            _ => continue,
        };
        if about == id {
            life.push(name);
        }
    }
    let expected =
        ["GameDiscovered", "GameSuspended", "GameAssigned", "AssignmentConfirmed", "GameFinished", "GameReleased"];
    assert_eq!(life, expected, "one assignment through {length:?} of playback");
    let postponed: Vec<_> = state.games.iter().filter(|(_, g)| g.phase == Phase::Postponed).collect();
    assert!(postponed.len() >= 2, "{postponed:?}");
    assert!(postponed.iter().all(|(_, g)| g.owner.is_none()));
    plane.verified().await;
    plane.stop(&[]).await;
}

/// On the made-up feed: suspended, off the slate, taken up again, and played to its end.
#[tokio::test]
async fn a_suspended_game_is_taken_up_again_by_the_same_owner() {
    let script = vec![(-5, Turn::Play), (8, Turn::Suspend), (14, Turn::Vanish), (22, Turn::Play), (30, Turn::End)];
    let game = SimGame { league: 0, event: 700_000_001, start: -5, script };
    let mut plane = Plane::new("resume", Sim::scripted(60.0, vec![game])).await;
    plane.all(2).await;
    let id = "nfl-700000001";
    let phase = |s: &State| s.games.get(&id.parse().unwrap()).map(|g| g.phase);
    let (first, _) = plane.until("the game to be owned", |s| is(owner(s, id).is_some(), true)).await;
    plane.until("the game to be suspended", |s| is(phase(s), Some(Phase::Suspended))).await;
    let (again, _) = plane.until("the game to go on", |s| is(phase(s), Some(Phase::Live))).await;
    assert_eq!(owner(&again, id), owner(&first, id));
    plane.until("the game to be over", |s| is((phase(s), owner(s, id)), (Some(Phase::Finished), None))).await;
    assert_eq!((plane.count("GameAssigned").await, plane.count("GameResumed").await), (1, 1));
    plane.verified().await;
    plane.stop(&[]).await;
}
