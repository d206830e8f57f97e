//! Whatever is killed and started again has what the log says, and nothing is decided twice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use arbees_testkit::feed::{Sim, SimGame, Turn};
use arbees_testkit::link::Link;
use arbees_testkit::wait;

use crate::plane::{PATIENCE, Plane, confirmed, is};

/// 60 games in play for as long as a test lasts.
fn sixty_live() -> Sim {
    Sim::all_live(60.0, 60, 24 * 60)
}

/// The orchestrator's Redis is cut: not one command arrives anywhere. And then neither it nor Redis is there at all.
#[tokio::test]
async fn every_shard_gets_its_games_without_redis_and_without_the_orchestrator() {
    let mut plane = Plane::new("gap", sixty_live()).await;
    let link = Link::to(plane.valkey.port()).await.unwrap();
    link.cut();
    let url = format!("redis://127.0.0.1:{}", link.port());
    let cut_off = plane.with(&[("REDIS_URL", &url)]);
    plane.programs.start("orchestrator", "arbees-orchestrator", &cut_off).await.unwrap();
    for n in 1..=4 {
        plane.shard(&format!("shard_{n:02}")).await;
    }
    let (state, took) = plane.until("60 games confirmed", |s| is(confirmed(s), 60)).await;
    println!("60 games reached their shards in {took:.1?} with every command dropped");

    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for (id, game) in &state.games {
        let owner = game.owner.as_ref().unwrap();
        if owner.shard.as_str() == "shard_02" {
            expected.insert(id.to_string(), owner.epoch.0);
        }
    }
    assert!(!expected.is_empty());
    plane.programs.stop("orchestrator").await.unwrap();
    plane.valkey.kill().await;
    let old_process = plane.last_beat("shard_02").await.unwrap().service.unwrap().process;
    plane.programs.process("shard_02").unwrap().kill().await;
    let begun = Instant::now();
    let own = plane.with(&[("SHARD_ID", "shard_02")]);
    plane.programs.launch("shard_02", "arbees-shard", &own).unwrap();
    let probe = || async {
        let beat = plane.last_beat("shard_02").await.ok_or("no beat")?;
        if beat.service.as_ref().is_none_or(|s| s.process == old_process) {
            return Err("no beat of the new process");
        }
        Ok(beat)
    };
    let (beat, _) = wait::until("the first beat of the new process", PATIENCE, probe).await.unwrap();
    let found: BTreeMap<String, u64> = beat.games.into_iter().map(|w| (w.game, w.epoch)).collect();
    assert_eq!(found, expected);
    println!(
        "a killed shard had exactly its {} games again after {:.0?}, with orchestrator and Redis down",
        found.len(),
        begun.elapsed()
    );
    plane.stop(&["redis", "message not sent"]).await;
}

#[tokio::test]
async fn a_restarted_orchestrator_decides_nothing_anew() {
    let mut plane = Plane::new("restart", sixty_live()).await;
    plane.all(4).await;
    plane.until("60 games confirmed", |s| is(confirmed(s), 60)).await;
    let before = (plane.count("GameAssigned").await, plane.count("GameReleased").await);
    for by_kill in [false, true] {
        if by_kill {
            plane.programs.process("orchestrator").unwrap().kill().await;
        } else {
            plane.programs.stop("orchestrator").await.unwrap();
        }
        let term = plane.state().await.head.term;
        plane.orchestrator().await;
        plane.until("a new term", |s| is(s.head.term, term + 1)).await;
        // Long enough for the settling time and several slates: what it would do wrong, it would do by then.
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!((plane.count("GameAssigned").await, plane.count("GameReleased").await), before);
    }
    assert_eq!(plane.count("LeaderElected").await, 3);
    plane.verified().await;
    plane.stop(&[]).await;
}

/// The log's server is put back to an older copy of its data: leader, standby and shards knew more than is there now.
#[tokio::test]
async fn over_a_restored_log_all_go_on_in_a_new_generation() {
    let mut plane = Plane::new("restored", Sim::all_live(60.0, 10, 24 * 60)).await;
    plane.orchestrator().await;
    let second = plane.with(&[("INSTANCE_ID", "orchestrator_02")]);
    plane.programs.start("orchestrator_02", "arbees-orchestrator", &second).await.unwrap();
    for n in 1..=2 {
        plane.shard(&format!("shard_{n:02}")).await;
    }
    let (before, _) = plane.until("10 games confirmed", |s| is(confirmed(s), 10)).await;
    plane.nats.stop().await.unwrap();
    let data = plane.scratch.path().join("nats/data");
    let copy = plane.scratch.path().join("copy");
    assert!(std::process::Command::new("cp").arg("-r").args([&data, &copy]).status().unwrap().success());
    plane.nats.start_again().await.unwrap();
    plane.shard("shard_03").await;
    let known = before.head.sequence;
    plane.until("more to be written", |s| if s.head.sequence > known { Ok(()) } else { Err("nothing".into()) }).await;
    plane.nats.stop().await.unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&copy, &data).unwrap();
    plane.nats.start_again().await.unwrap();
    let is_new = |s: &arbees_fleet::State| is((s.head.generation, s.services.len(), confirmed(s)), (2, 3, 10));
    let (state, took) = plane.until("all to go on in a new generation", is_new).await;
    println!("a log {known} events long after {} was known: all went on after {took:.1?}", state.head.sequence);
    // Whichever led: the standby must have learned it, too.
    let leader = ["orchestrator", "orchestrator_02"];
    for name in leader {
        plane.programs.process(name).unwrap().kill().await;
    }
    plane.orchestrator().await;
    plane.until("a leader that knew nothing", |s| is((s.head.generation, confirmed(s)), (2, 10))).await;
    let acting = || async {
        let beats = [plane.last_beat("shard_01").await, plane.last_beat("shard_02").await];
        let held: usize = beats.iter().flatten().map(|b| b.games.len()).sum();
        is(held, 10)
    };
    wait::until("the shards to hold them", PATIENCE, acting).await.unwrap();
    plane.stop(&["lost its tail", "tail", "nats", "folding", "not acting", "ALERT", "redis", "leading"]).await;
}

#[tokio::test]
async fn a_shard_cut_off_from_the_log_misses_nothing() {
    // The games are on no slate for the first 8 s: by then the shard is known and cut off.
    let game = |n: usize| SimGame {
        league: n % 8,
        event: 500_000_000 + n as u64,
        start: -10,
        script: vec![(-10, Turn::Vanish), (8, Turn::Play), (24 * 60, Turn::End)],
    };
    let mut plane = Plane::new("cut-shard", Sim::scripted(60.0, (0..60).map(game).collect())).await;
    let link = Link::to(plane.nats.port()).await.unwrap();
    let url = format!("nats://127.0.0.1:{}", link.port());
    // The leader takes it for well for longer than the cut lasts: all its games are assigned while it cannot hear of it.
    let patient = plane.with(&[("LOG_HEARTBEAT_MS", "30000"), ("LEASE_TTL_MS", "60000")]);
    plane.programs.start("orchestrator", "arbees-orchestrator", &patient).await.unwrap();
    let own = plane.with(&[("SHARD_ID", "shard_01"), ("NATS_URL", &url), ("MAX_GAMES", "60")]);
    plane.programs.start("shard_01", "arbees-shard", &own).await.unwrap();
    plane.until("the shard to be known", |s| is(s.services.len(), 1)).await;
    link.cut();
    let owned = |s: &arbees_fleet::State| usize::try_from(s.loads().values().sum::<u32>()).unwrap();
    let (state, _) = plane.until("60 games assigned", |s| is(owned(s), 60)).await;
    assert_eq!((confirmed(&state), plane.last_beat("shard_01").await.unwrap().games.len()), (0, 0));
    // Longer than a tail takes to find out that it is dead: it must come back by itself, not go on as it was.
    tokio::time::sleep(Duration::from_secs(2)).await;
    link.mend();
    let (_, took) = plane.until("60 games confirmed", |s| is(confirmed(s), 60)).await;
    println!("all 60 there {took:.1?} after the link was mended");
    assert_eq!(plane.count("GameAssigned").await, 60);
    plane.stop(&["nats", "tail", "recovery", "not acting"]).await;
}

/// A restart of a shard tells no state twice.
#[tokio::test]
async fn a_restarted_shard_tells_no_state_twice() {
    // At this speed nothing moves for as long as the test lasts.
    let mut plane = Plane::new("states", Sim::all_live(0.001, 10, 24 * 60)).await;
    plane.orchestrator().await;
    plane.shard("shard_01").await;
    plane.until("10 games confirmed", |s| is(confirmed(s), 10)).await;
    let told = || async {
        let (_, end) = plane.log.bounds(arbees_core::log::GAME_STATES).await.map_err(|e| e.to_string())?;
        is(end, 10).map(|()| end)
    };
    wait::until("10 states", PATIENCE, told).await.unwrap();
    plane.programs.process("shard_01").unwrap().kill().await;
    plane.shard("shard_01").await;
    // Ten polls: what it would tell twice, it would tell by then.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (_, end) = plane.log.bounds(arbees_core::log::GAME_STATES).await.unwrap();
    assert_eq!(end, 10);
    plane.stop(&[]).await;
}
