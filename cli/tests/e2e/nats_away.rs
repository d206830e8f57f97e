//! NATS killed again and again under load, and one of three servers after the other.

use std::time::{Duration, Instant};

use arbees_core::log::{CONTROL, GAME_STATES};
use arbees_fleet::Status;
use arbees_testkit::feed::Sim;
use arbees_testkit::servers::{Cluster, Nats, Postgres, Scratch};
use arbees_testkit::wait;

use crate::faults::doubled_seconds;
use crate::plane::{PATIENCE, Plane, binaries, confirmed, connect_to, is, leader_may_judge, moves, owner, row};

/// What a log that is away makes programs say.
const SAID: [&str; 11] = [
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
];

/// Each sequence from 1 on, once and in order, as a tail that runs through all of it hears them.
async fn hear(plane: &Plane, stream: &'static str) -> tokio::task::JoinHandle<u64> {
    let mut tail = plane.log.tail(stream, Vec::new(), 1);
    tokio::spawn(async move {
        let mut last = 0;
        while let Ok(Some(stored)) = tokio::time::timeout(Duration::from_secs(15), tail.next()).await {
            assert_eq!(stored.sequence, last + 1, "a gap or a repeat in {stream}");
            last = stored.sequence;
        }
        last
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
    let heard = [hear(&plane, CONTROL).await, hear(&plane, GAME_STATES).await];
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
    let mut acknowledged = 0;
    for shard in ["shard_01", "shard_02", "shard_03"] {
        acknowledged += plane.metric(shard, "arbees_states_published_total").await as u64;
        plane.programs.stop(shard).await.unwrap();
    }
    let (_, states) = plane.log.bounds(GAME_STATES).await.unwrap();
    let moved = moves(&plane).await.len();
    row("NATS killed ten times", Duration::ZERO, worst, acknowledged.saturating_sub(states), 0);
    println!("  {acknowledged} states acknowledged, {states} in the stream; {moved} moves");
    assert!(states >= acknowledged, "an acknowledged state is gone");
    assert!(worst < 3 * Duration::from_secs(10), "{worst:?}");
    assert!(doubled_seconds(&plane).await < 0.001, "two owners had effect");
    plane.programs.stop("orchestrator").await.unwrap();
    for (stream, heard) in [CONTROL, GAME_STATES].into_iter().zip(heard) {
        let (_, end) = plane.log.bounds(stream).await.unwrap();
        assert_eq!(heard.await.unwrap(), end, "{stream} was heard whole");
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
