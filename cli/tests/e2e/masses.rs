//! Much at once: half the fleet killed, a burst with Redis away, leaders killed in the middle of a mass move.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arbees_core::time::now_us;
use arbees_fleet::State;
use arbees_fleet::state::Circuit;
use arbees_proto::{Payload, ServiceKind, v1};
use arbees_testkit::feed::{Fault, Sim, SimGame, Turn};
use arbees_testkit::wait;

use crate::alerts::raised;
use crate::old_shard::OldShard;
use crate::plane::{PATIENCE, Plane, busiest, confirmed, games_of, is, leader_may_judge, moved, moves, settings, well};

/// Nobody owns more than `most` games.
fn nobody_over(state: &State, most: u32) {
    assert!(state.loads().values().all(|n| *n <= most), "{:?}", state.loads());
}

/// How many games wait for a shard.
fn waiting(state: &State) -> usize {
    state.games.values().filter(|g| g.queued_since_us.is_some()).count()
}

/// Every move stands on the owner of that moment, and no game has two owners: what the fold skips is counted.
async fn is_whole(plane: &Plane) {
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    for (_, event) in plane.events().await {
        match event.payload {
            Some(Payload::GameAssigned(e)) => {
                let before = owners.insert(e.game.unwrap().id, e.shard);
                assert_eq!(before, None, "assigned though owned");
            }
            Some(Payload::GameReassigned(e)) => {
                let before = owners.insert(e.game.unwrap().id, e.shard);
                assert_eq!(before.as_ref(), Some(&e.from), "moved off another than its owner");
            }
            Some(Payload::GameReleased(e)) => drop(owners.remove(&e.game)),
            _ => {}
        }
    }
    assert_eq!(plane.state().await.head.skipped, 0);
}

#[tokio::test]
async fn three_of_six_and_two_of_three_killed_at_once_move_at_full_rate_and_what_finds_no_room_waits() {
    let mut plane = Plane::new("half", Sim::all_live(60.0, 60, 24 * 60)).await;
    plane.all(6).await;
    plane.until("60 games confirmed", |s| is(confirmed(s), 60)).await;
    leader_may_judge().await;
    let begun = Instant::now();
    for name in ["shard_01", "shard_02", "shard_03"] {
        plane.programs.process(name).unwrap().kill().await;
    }
    let on_three = |s: &State| {
        let left: u32 = s.loads().iter().filter(|(n, _)| n.as_str() > "shard_03").map(|(_, n)| *n).sum();
        is((left, confirmed(s)), (60, 60))
    };
    let (state, _) = plane.until("all on the three that are left", on_three).await;
    println!("three of six killed: all 60 games watched by the others after {:.1?}", begun.elapsed());
    nobody_over(&state, 20);
    assert_eq!((plane.count("BrakeEngaged").await, plane.count("GameQueued").await), (0, 0), "proof, not silence");
    for name in ["shard_04", "shard_05"] {
        plane.programs.process(name).unwrap().kill().await;
    }
    let (state, took) = plane.until("40 games to wait", |s| is(waiting(s), 40)).await;
    println!("two of the last three killed: 40 games wait after {took:.1?}");
    nobody_over(&state, 20);
    assert_eq!((games_of(&state, "shard_06").len(), plane.count("BrakeEngaged").await), (20, 0));
    assert_eq!(raised(&plane, "no_healthy_shards").await, 1);
    for name in ["shard_01", "shard_02"] {
        plane.shard(name).await;
    }
    let (state, _) = plane.until("all games watched", |s| is((confirmed(s), waiting(s)), (60, 0))).await;
    nobody_over(&state, 20);
    is_whole(&plane).await;
    plane.verified().await;
    plane.stop(&["shard_lost", "no_healthy_shards"]).await;
}

/// 72 games on four shards with room for 20 each; 30 more begin after 20 s.
fn with_a_burst() -> Sim {
    let game = |n: usize| SimGame {
        league: n % 8,
        event: 500_000_000 + n as u64,
        start: -10,
        script: if n < 72 {
            vec![(-10, Turn::Play), (24 * 60, Turn::End)]
        } else {
            vec![(-10, Turn::Vanish), (20, Turn::Play), (24 * 60, Turn::End)]
        },
    };
    Sim::scripted(60.0, (0..102).map(game).collect())
}

#[tokio::test]
async fn at_ninety_per_cent_a_burst_without_redis_and_without_a_shard_is_placed_or_waits() {
    let mut plane = Plane::new("burst", with_a_burst()).await;
    plane.all(4).await;
    plane.until("72 games confirmed", |s| is(confirmed(s), 72)).await;
    plane.valkey.pause();
    plane.programs.process("shard_02").unwrap().kill().await;
    let (state, _) = plane
        .until("the three others to be full", |s| {
            let on_others: usize = ["shard_01", "shard_03", "shard_04"].iter().map(|n| games_of(s, n).len()).sum();
            is((on_others, s.games.len(), waiting(s)), (60, 102, 42))
        })
        .await;
    nobody_over(&state, 20);
    let begun = Instant::now();
    plane.valkey.resume();
    for name in ["shard_02", "shard_05", "shard_06"] {
        plane.shard(name).await;
    }
    let (state, _) = plane.until("all 102 games watched", |s| is((confirmed(s), waiting(s)), (102, 0))).await;
    println!("102 games steady {:.1?} after room and Redis came back", begun.elapsed());
    nobody_over(&state, 20);
    assert_eq!(raised(&plane, "no_healthy_shards").await, 1);
    is_whole(&plane).await;
    plane.verified().await;
    plane
        .stop(&["shard_lost", "no_healthy_shards", "degraded", "redis", "Redis", "subscription", "message not sent"])
        .await;
}

/// `ARBEES_LEADER_KILLS` times (2): a shard is killed, and the leader while its games move.
#[tokio::test]
async fn a_leader_killed_during_a_mass_move_loses_and_doubles_nothing() {
    let kills: u64 = std::env::var("ARBEES_LEADER_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let mut plane = Plane::new("leader-kill", Sim::all_live(60.0, 200, 24 * 60)).await;
    plane.settings.insert("MAX_GAMES".into(), "100".into());
    plane.projector().await;
    for name in ["orchestrator-a", "orchestrator-b"] {
        let own = plane.with(&[("INSTANCE_ID", name)]);
        plane.programs.start(name, "arbees-orchestrator", &own).await.unwrap();
    }
    for n in 1..=4 {
        plane.shard(&format!("shard_{n:02}")).await;
    }
    plane.until("200 games confirmed", |s| is(confirmed(s), 200)).await;
    let mut took = Vec::new();
    for kill in 0..kills {
        leader_may_judge().await;
        let state = plane.state().await;
        let (victim, term) = (busiest(&state), state.head.term);
        let games = games_of(&state, &victim);
        plane.programs.process(&victim).unwrap().kill().await;
        plane.until("the shard to be lost", |s| is(well(s, &victim), false)).await;
        // Before, between and after the appends of the moves.
        tokio::time::sleep(Duration::from_millis(kill * 7 % 40)).await;
        let leaders = |(_, e): (String, v1::Event)| match e.payload {
            Some(Payload::LeaderElected(l)) => Some((l.instance, e.occurred_at_us)),
            _ => None,
        };
        let (leader, _) = plane.events().await.into_iter().filter_map(leaders).next_back().unwrap();
        let killed_us = now_us();
        plane.programs.process(&leader).unwrap().kill().await;
        plane.until("the next term", |s| is(s.head.term, term + 1)).await;
        let (_, at_us) = plane.events().await.into_iter().filter_map(leaders).next_back().unwrap();
        took.push(at_us - killed_us);
        plane.until("its games to be watched elsewhere", |s| moved(s, &games, &victim)).await;
        plane.shard(&victim).await;
        let own = plane.with(&[("INSTANCE_ID", &leader)]);
        plane.programs.start(&leader, "arbees-orchestrator", &own).await.unwrap();
        plane.until("the shard to be well again", |s| is(well(s, &victim), true)).await;
    }
    took.sort_unstable();
    let seconds = |us: i64| us as f64 / 1e6;
    println!(
        "{kills} leaders killed in a mass move: takeover after {:.2} s in the middle, {:.2} s at worst",
        seconds(took[took.len() / 2]),
        seconds(took[took.len() - 1])
    );
    assert!(took[took.len() - 1] < 6_000_000, "three times what is promised");
    is_whole(&plane).await;
    plane.verified().await;
    plane.stop(&["shard_lost", "no longer leading", "tail", "nats"]).await;
}

/// One that loses all it is told: its breaker opens, is tried, and closes when it hears again.
#[tokio::test]
async fn a_shard_that_loses_every_command_is_given_nothing_until_it_hears_again() {
    let game = |n: u64| SimGame {
        league: usize::try_from(n % 8).unwrap(),
        event: 700_000_000 + n,
        start: -1,
        // A new one every other second: something to try the breaker with.
        script: vec![(-10, Turn::Vanish), (2 * i64::try_from(n).unwrap() - 20, Turn::Play), (24 * 60, Turn::End)],
    };
    let mut plane = Plane::new("deaf", Sim::scripted(60.0, (0..40).map(game).collect())).await;
    let old = OldShard::watching(&plane.bus(), "old-1", 40, [].into());
    old.is_deaf.store(true, Ordering::Relaxed);
    plane.settings.extend(settings(&[
        ("ASSIGNMENT_CIRCUIT_HALF_OPEN_TIMEOUT_SECS", "3"),
        ("HEARTBEAT_INTERVAL_SECS", "0.5"),
        ("MAX_GAMES", "40"),
    ]));
    plane.orchestrator().await;
    plane.shard("shard_01").await;
    let circuit = |s: &State| {
        let service =
            s.services.iter().find(|(key, _)| key.kind == ServiceKind::Shard && key.instance.as_str() == "old-1");
        service.map(|(_, s)| s.breaker.circuit)
    };
    plane.until("the breaker to open", |s| is(circuit(s), Some(Circuit::Open))).await;
    let failures = plane.count("AssignmentFailed").await;
    assert!(failures >= 3, "{failures}");
    plane.until("its games to be elsewhere", |s| is(games_of(s, "old-1").len(), 0)).await;
    let reopened = || async { is(plane.count("CircuitOpened").await >= 2, true) };
    wait::until("a trial to fail", PATIENCE, reopened).await.unwrap();
    assert!(plane.count("CircuitHalfOpened").await >= 1);
    old.is_deaf.store(false, Ordering::Relaxed);
    plane.until("the breaker to close", |s| is(circuit(s), Some(Circuit::Closed))).await;
    let probe = || async { is(old.count() > 0, true) };
    wait::until("the old shard to watch games", PATIENCE, probe).await.unwrap();
    is_whole(&plane).await;
    plane.stop(&["breaker_opened"]).await;
}

/// A log shard that, by a fault of its own, watches a game that is another's.
#[tokio::test]
async fn a_log_shard_that_watches_anothers_game_is_told_to_stop_until_it_does() {
    let mut plane = Plane::new("zombie", Sim::all_live(60.0, 4, 24 * 60)).await;
    plane.settings.insert("HEARTBEAT_INTERVAL_SECS".into(), "0.5".into());
    plane.orchestrator().await;
    plane.shard("shard_01").await;
    let (state, _) = plane.until("4 games confirmed", |s| is(confirmed(s), 4)).await;
    let (game, epoch) = state.games.iter().map(|(id, g)| (id.clone(), g.owner.as_ref().unwrap().epoch)).next().unwrap();
    let mut commands = plane.bus().subscribe(&["shard:shard_09:command"], &[]);
    let subject = plane.log.names().heartbeat(ServiceKind::Shard, "shard_09");
    let mut told = 0;
    let mut expected = 0;
    for number in 0..40_u64 {
        // It stops when it was told three times: commands get lost.
        let watched = v1::Watched { game: game.to_string(), epoch: epoch.0 };
        let service = v1::Service {
            kind: "shard".into(),
            instance: "shard_09".into(),
            process: "faulty".into(),
            shard_type: "sports".into(),
            on_log: true,
            ..v1::Service::default()
        };
        let beat = v1::Heartbeat {
            service: Some(service),
            status: "healthy".into(),
            checks: vec![v1::Check { name: "redis_ok".into(), ok: true }],
            games: if told < 3 { vec![watched] } else { Vec::new() },
            last_applied: u64::MAX,
            ..v1::Heartbeat::default()
        };
        let event =
            v1::Event { payload: Some(Payload::Heartbeat(beat)), occurred_at_us: now_us(), ..v1::Event::default() };
        let stored = plane.log.beat(subject.clone(), &event, &format!("faulty:{number}"), expected).await;
        let arbees_core::log::Beaten::Stored { sequence } = stored else { panic!("{stored:?}") };
        expected = sequence;
        // A shard beats once a second; what it is told meanwhile is counted.
        let rest = tokio::time::sleep(Duration::from_millis(500));
        tokio::pin!(rest);
        loop {
            tokio::select! {
                () = &mut rest => break,
                Some(message) = commands.next() => {
                    let command: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
                    assert_eq!((command["type"].as_str(), command["game"].as_str()), (Some("remove_game"), Some(game.as_str())));
                    told += 1;
                }
            }
        }
        if told >= 3 && number > 20 {
            break;
        }
    }
    assert_eq!(told, 3, "until it stops, and not after");
    assert_eq!((games_of(&plane.state().await, "shard_01").len(), moves(&plane).await.len()), (4, 0));
    plane.stop(&["shard_lost"]).await;
}

/// A league answers 500 to everybody for longer than a degraded shard keeps its games.
#[tokio::test]
async fn when_a_leagues_data_fail_for_all_nothing_moves_and_people_are_told_once() {
    let mut plane = Plane::new("league", Sim::all_live(60.0, 24, 24 * 60)).await;
    plane.all(3).await;
    plane.until("24 games confirmed", |s| is(confirmed(s), 24)).await;
    plane.feed.set_fault("football/nfl", Fault::Status { status: 500 });
    let ill = |s: &State| s.services.values().filter(|s| s.status == arbees_fleet::Status::Degraded).count();
    let watchers = |s: &State| {
        let nfl = s.games.iter().filter(|(id, _)| id.as_str().starts_with("nfl-"));
        let mut owners: Vec<_> = nfl.filter_map(|(_, g)| Some(g.owner.as_ref()?.shard.clone())).collect();
        owners.sort();
        owners.dedup();
        owners.len()
    };
    plane.until("all who watch it to be degraded", |s| is(ill(s), watchers(s))).await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!((moves(&plane).await.len(), raised(&plane, "external_dependency").await), (0, 1));
    plane.feed.set_fault("football/nfl", Fault::None);
    plane.until("all to be well again", |s| is(ill(s), 0)).await;
    assert_eq!(moves(&plane).await.len(), 0);
    plane.stop(&["poll failed", "breaker opened", "external_dependency", "discovery", "scoreboard"]).await;
}

#[tokio::test]
async fn every_process_killed_in_turn_and_back_within_its_lease_moves_nothing() {
    let mut plane = Plane::new("in-turn", Sim::all_live(60.0, 30, 24 * 60)).await;
    plane.settings.insert("MAX_GAMES".into(), "30".into());
    plane.all(3).await;
    plane.until("30 games confirmed", |s| is(confirmed(s), 30)).await;
    leader_may_judge().await;
    for name in ["shard_01", "projector", "shard_02", "orchestrator", "shard_03"] {
        plane.programs.process(name).unwrap().kill().await;
        match name {
            "projector" => plane.projector().await,
            "orchestrator" => plane.orchestrator().await,
            shard => plane.shard(shard).await,
        }
        // Longer than a lease: whoever was taken for dead would be by then.
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    plane.until("all games watched", |s| is(confirmed(s), 30)).await;
    assert_eq!((moves(&plane).await.len(), plane.count("ServiceLost").await), (0, 0));
    assert_eq!(plane.count("ServiceRestarted").await, 3);
    plane.verified().await;
    plane.stop(&[]).await;
}
