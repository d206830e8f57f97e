//! What other settings would have done with a recorded day of faults, beside what happened.

use std::collections::BTreeMap;
use std::time::Duration;

use arbees_testkit::feed::Sim;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::plane::{Plane, busiest, confirmed, games_of, is, leader_may_judge, moved, well};

/// The moves in one column of the answer: game, from, to.
fn moves(column: &Value) -> Vec<[String; 3]> {
    let text = |m: &Value, name: &str| m[name].as_str().unwrap().to_owned();
    let all = column["moves"].as_array().unwrap().iter();
    all.map(|m| [text(m, "game"), text(m, "from"), text(m, "to")]).collect()
}

fn unwatched_s(column: &Value) -> f64 {
    column["unwatched_us"].as_f64().unwrap() / 1e6
}

#[tokio::test]
async fn a_replay_does_what_was_done_and_tells_what_other_settings_would_have() {
    let mut plane = Plane::new("what-if", Sim::all_live(60.0, 20, 24 * 60)).await;
    plane.settings.insert("OPERATOR_TOKEN".into(), "secret".into());
    plane.settings.insert("MAX_GAMES".into(), "20".into());
    plane.orchestrator().await;
    for n in 1..=4 {
        plane.shard(&format!("shard_{n:02}")).await;
    }
    plane.until("20 games confirmed", |s| is(confirmed(s), 20)).await;
    leader_may_judge().await;
    // A replayed leader listens for 15 s of what is kept before it leads: nothing may happen before.
    tokio::time::sleep(Duration::from_secs(16)).await;
    // One freezes for 5 s, which is longer than its lease, and stays frozen for as long again once it is lost.
    let frozen = busiest(&plane.state().await);
    let its = games_of(&plane.state().await, &frozen);
    plane.programs.process(&frozen).unwrap().signal(Signal::SIGSTOP);
    plane.until("its games to be watched elsewhere", |s| moved(s, &its, &frozen)).await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    plane.programs.process(&frozen).unwrap().signal(Signal::SIGCONT);
    plane.until("the frozen shard to be well again", |s| is(well(s, &frozen), true)).await;
    // One is killed.
    let killed = busiest(&plane.state().await);
    let lost = games_of(&plane.state().await, &killed);
    plane.programs.process(&killed).unwrap().kill().await;
    plane.until("its games to be watched elsewhere", |s| moved(s, &lost, &killed)).await;
    // And one of the others is drained.
    let others = ["shard_01", "shard_02", "shard_03", "shard_04"].into_iter();
    let drained = others.into_iter().find(|name| *name != frozen && *name != killed).unwrap();
    let (code, text) = plane.arbees(&["drain", drained]).await;
    assert_eq!(code, Some(0), "{text}");
    plane.until("the drain to be over", |s| is(games_of(s, drained).len(), 0)).await;
    // So that a lease of 8 s ends within what is replayed, and what follows is confirmed.
    tokio::time::sleep(Duration::from_secs(11)).await;

    let file = plane.scratch.path().join("slower");
    std::fs::write(&file, "# Patience.\nLEASE_TTL_MS=8000\n").unwrap();
    let file = file.to_string_lossy().into_owned();
    let (code, text) = plane.arbees(&["what-if", "--policy", &file, "--json"]).await;
    assert_eq!(code, Some(0), "{text}");
    let told: Value = serde_json::from_str(&text).unwrap();
    let (happened, as_set, slower) = (&told["happened"], &told["replayed"][0], &told["replayed"][1]);
    let counts = |c: &Value| ["lost", "came_back", "braked"].map(|name| c[name].as_u64().unwrap());
    // What happened is what the log says.
    assert_eq!(moves(happened).len(), plane.count("GameReassigned").await);
    assert_eq!(counts(happened), [2, 1, 0], "{text}");
    // With the same settings it happens again: the same shards are lost, the same games leave them.
    assert_eq!(counts(as_set), [2, 1, 0], "{text}");
    let left = |c: &Value| {
        let mut all: Vec<_> = moves(c).into_iter().map(|[game, from, _]| (game, from)).collect();
        all.sort();
        all
    };
    assert_eq!(left(as_set), left(happened), "{text}");
    println!("to the same places: {}", moves(as_set) == moves(happened));
    assert_eq!(as_set["alerts"], happened["alerts"], "{text}");
    let (really, replayed) = (unwatched_s(happened), unwatched_s(as_set));
    println!("game-seconds unwatched: {really:.1} in truth, {replayed:.1} replayed, {:.1} slower", unwatched_s(slower));
    // Some twenty games are confirmed, each in truth after somewhat less or more than the tenth of a second that a replay takes,
    // and on a busy machine after more.
    assert!((really - replayed).abs() < 0.5 * moves(happened).len() as f64, "{text}");
    // With more patience the frozen shard keeps its games, and they wait for it; the killed one is dead all the same.
    assert_eq!(counts(slower), [1, 0, 0], "{text}");
    let off = |name: &str| moves(slower).iter().filter(|[_, from, _]| from == name).count();
    assert_eq!((off(&frozen), off(&killed) > 0), (0, true), "{text}");
    assert!(unwatched_s(slower) > really + 10.0, "{text}");
    assert_eq!(told["policy"], serde_json::json!(BTreeMap::from([("LEASE_TTL_MS", "8000")])));

    let (code, text) = plane.arbees(&["what-if", "--policy", &file]).await;
    println!("{text}");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("REPLAYED WITH THE POLICY") && text.contains("alerts shard_lost"), "{text}");
    let (code, text) = plane.arbees(&["what-if", "--policy", &file, "--moves"]).await;
    assert!(code == Some(0) && text.contains("its shard is lost") && text.contains("with the policy"), "{text}");
    std::fs::write(&file, "LOG_HEARTBEAT_MS=500\n").unwrap();
    let (code, text) = plane.arbees(&["what-if", "--policy", &file]).await;
    assert!(code == Some(1) && text.contains("heartbeats come as they were recorded"), "{text}");
    std::fs::write(&file, "LEASE_TTL_MS=soon\nNATS_URL=x\n").unwrap();
    let (code, text) = plane.arbees(&["what-if", "--policy", &file]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("LEASE_TTL_MS=\"soon\"") && text.contains("no decision goes by NATS_URL"), "{text}");
    plane.stop(&["shard_lost", "not acting", "tail", "older epoch", "nats"]).await;
}
