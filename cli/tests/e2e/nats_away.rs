//! NATS killed again and again under load, and one of three servers after the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arbees_core::log::{CONTROL, GAME_STATES};
use arbees_fleet::Status;
use arbees_proto::{Payload, v1};
use arbees_testkit::feed::Sim;
use arbees_testkit::servers::{Cluster, Nats, Postgres, Scratch};
use arbees_testkit::wait;
use tokio::sync::watch;

use crate::faults::doubled_seconds;
use crate::plane::{PATIENCE, Plane, binaries, confirmed, connect_to, is, leader_may_judge, moves, owner, row};

/// What a log that is away makes programs say.
const SAID: [&str; 12] = [
    "tail",
    "nats",
    "not acting",
    "no longer leading",
    "append",
    "ALERT",
    "log",
    "away",
    "office",
    "interrupted",
    "poll",
    // What a shard still says whose games were moved is dropped, and counted.
    "older epoch",
];

/// Each sequence from 1 on, once and in order, as a tail that runs through all of it hears them, up to the one it is told.
fn hear(plane: &Plane, stream: &'static str) -> (tokio::task::JoinHandle<()>, watch::Sender<u64>) {
    let mut tail = plane.log.tail(stream, Vec::new(), 1);
    let (until, mut end) = watch::channel(u64::MAX);
    let hearing = tokio::spawn(async move {
        let mut last = 0;
        while last < *end.borrow() {
            tokio::select! {
                stored = tail.next() => {
                    let stored = stored.unwrap();
                    assert_eq!(stored.sequence, last + 1, "a gap or a repeat in {stream}");
                    last = stored.sequence;
                }
                told = end.changed() => told.unwrap(),
            }
        }
    });
    (hearing, until)
}

/// Says something of its own again and again, and keeps under which sequence each was acknowledged.
fn speak(plane: &Plane, over: Arc<AtomicBool>) -> tokio::task::JoinHandle<Vec<(u64, String)>> {
    let log = plane.log.clone();
    tokio::spawn(async move {
        let subject = log.names().game_state(&"nfl-1".parse().unwrap());
        let mut acknowledged = Vec::new();
        let mut number = 0u64;
        while !over.load(Ordering::Relaxed) {
            number += 1;
            let state = v1::GameStateChanged { game: "nfl-1".into(), epoch: 1, period: Some(1), ..Default::default() };
            let event = v1::Event { payload: Some(Payload::GameStateChanged(state)), ..v1::Event::default() };
            let id = format!("spoken-{number}");
            if let Ok(sequence) = log.publish(subject.clone(), &event, &id).await {
                acknowledged.push((sequence, id));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        acknowledged
    })
}

#[tokio::test]
async fn ten_kills_of_nats_under_load_lose_nothing_that_was_acknowledged() {
    // A fast day: every game changes all the time.
    let mut plane = Plane::new("nats-kills", Sim::all_live(600.0, 40, 24 * 600)).await;
    plane.settings.insert("MAX_GAMES".into(), "30".into());
    plane.all(3).await;
    plane.until("40 games confirmed", |s| is(confirmed(s), 40)).await;
    leader_may_judge().await;
    let heard = [hear(&plane, CONTROL), hear(&plane, GAME_STATES)];
    let is_over = Arc::new(AtomicBool::new(false));
    let spoken = speak(&plane, is_over.clone());
    let mut worst = Duration::ZERO;
    for kill in 0..10u64 {
        // At another moment of a beat each time.
        tokio::time::sleep(Duration::from_millis(1_500 + kill * 130)).await;
        plane.nats.kill().await;
        plane.nats.start_again().await.unwrap();
        let begun = Instant::now();
        let before = plane.metric("shard_01", "arbees_states_published_total").await;
        loop {
            let is_acting = plane.metric("shard_01", "arbees_lease_seconds").await > 0.0;
            let flows = plane.metric("shard_01", "arbees_states_published_total").await > before;
            if is_acting && flows && plane.metric("orchestrator", "arbees_leader").await > 0.0 {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "not steady again after kill {kill}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        worst = worst.max(begun.elapsed());
    }
    plane.until("40 games confirmed", |s| is(confirmed(s), 40)).await;
    is_over.store(true, Ordering::Relaxed);
    let spoken = spoken.await.unwrap();
    // Before the shards stop, which hands their games over.
    let moved = moves(&plane).await.len();
    for shard in ["shard_01", "shard_02", "shard_03"] {
        plane.programs.stop(shard).await.unwrap();
    }
    let (_, end) = plane.log.bounds(GAME_STATES).await.unwrap();
    let mut reader = plane.log.read(GAME_STATES, Vec::new(), 1, end).await.unwrap();
    let mut stored = BTreeMap::new();
    while let Some(message) = reader.next().await.unwrap() {
        stored.insert(message.sequence, message.header("Nats-Msg-Id").to_owned());
    }
    let lost = spoken.iter().filter(|(sequence, id)| stored.get(sequence) != Some(id)).count();
    row("NATS killed ten times", Duration::ZERO, worst, lost as u64, 0);
    println!("  {} acknowledged by one speaker, {end} in the stream; {moved} moves", spoken.len(),);
    assert_eq!(moved, 0, "nobody loses games because the log was away");
    assert!(lost == 0 && spoken.len() > 500, "{lost} of {} acknowledged ones are gone", spoken.len());
    assert!(worst < 3 * Duration::from_secs(10), "{worst:?}");
    assert!(doubled_seconds(&plane).await < 0.001, "two owners had effect");
    plane.programs.stop("orchestrator").await.unwrap();
    for (stream, (hearing, until)) in [CONTROL, GAME_STATES].into_iter().zip(heard) {
        until.send_replace(plane.log.bounds(stream).await.unwrap().1);
        tokio::time::timeout(PATIENCE, hearing).await.expect("it is heard to its end").unwrap();
    }
    plane.verified().await;
    plane.stop(&SAID).await;
}

/// Three servers, each killed in turn: appends go on after at most an election, and nobody is moved or lost.
#[tokio::test]
async fn any_one_of_three_servers_may_die_and_nothing_stops() {
    let scratch = Scratch::new("cluster-plane").unwrap();
    let mut cluster = Cluster::start(&binaries(), &scratch.path().join("cluster")).await.unwrap();
    let urls = cluster.urls();
    // Stands in for the single server that other planes have; nothing is said to it.
    let idle = Nats::start(&binaries(), &scratch.path().join("idle")).await.unwrap();
    let postgres = Postgres::start(&binaries(), &scratch.path().join("postgres")).await.unwrap();
    let mut plane = Plane::over(scratch, idle, postgres, Sim::all_live(60.0, 24, 24 * 60)).await;
    plane.log = connect_to(&urls, 3).await;
    let ensured = || async { plane.log.ensure_streams().await.map_err(|e| e.to_string()) };
    wait::until("the streams", PATIENCE, ensured).await.unwrap();
    plane.settings.insert("NATS_URL".into(), urls);
    plane.settings.insert("STREAM_REPLICAS".into(), "3".into());
    plane.settings.insert("OPERATOR_TOKEN".into(), "token".into());
    plane.all(3).await;
    plane.until("24 games confirmed", |s| is(confirmed(s), 24)).await;
    leader_may_judge().await;
    let game = plane.state().await.games.keys().next().unwrap().to_string();
    let mut asked = 0;
    for index in 0..3 {
        let begun = Instant::now();
        cluster.kill(index).await;
        let (state, _) = plane.until("the log to be read", |s| is(owner(s, &game).is_some(), true)).await;
        let from = owner(&state, &game).unwrap();
        let to = if from == "shard_01" { "shard_02" } else { "shard_01" };
        let decided = loop {
            let (code, text) = plane.arbees(&["move", &game, to]).await;
            if code == Some(0) {
                break begun.elapsed();
            }
            assert!(begun.elapsed() < PATIENCE, "{text}");
        };
        plane.until("the game to be there", |s| is(owner(s, &game).as_deref(), Some(to))).await;
        asked += 1;
        cluster.servers()[index].start_again().await.unwrap();
        let back = Instant::now();
        let whole = || async { is(plane.log.copies_behind().await.map_err(|e| e.to_string())?, Vec::new()) };
        wait::until("its copies to be current", PATIENCE, whole).await.unwrap();
        row(&format!("server {} of three killed", index + 1), decided, back.elapsed(), 0, 0);
        assert!(decided < Duration::from_secs(30), "an election takes some 2 to 8 s: {decided:?}");
    }
    plane.until("24 games confirmed", |s| is(confirmed(s), 24)).await;
    let lost = plane.state().await.services.values().filter(|s| s.status == Status::Dead).count();
    assert_eq!((moves(&plane).await.len(), lost), (asked, 0), "only what was asked for");
    plane.verified().await;
    plane.stop(&SAID).await;
}
