//! Shards and leaders that die, freeze and are cut off: who watches the games then, and who has effect.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use arbees_core::log::GAME_STATES;
use arbees_core::time::now_us;
use arbees_proto::{Payload, v1};
use arbees_testkit::feed::Sim;
use arbees_testkit::link::Link;
use arbees_testkit::wait;
use nix::sys::signal::Signal;

use crate::plane::{PATIENCE, Plane, busiest, confirmed, games_of, is, leader_may_judge, moved, moves, well};

/// What is promised after a kill, three times as wide: a busy machine stalls.
const KILL_LIMIT: Duration = Duration::from_secs(9);

/// When each game's newest assignment was reported.
async fn confirmations(plane: &Plane) -> BTreeMap<String, i64> {
    let of = |(_, event): (String, v1::Event)| match event.payload {
        Some(Payload::AssignmentConfirmed(c)) => Some((c.game.unwrap().id, event.occurred_at_us)),
        _ => None,
    };
    plane.events().await.into_iter().filter_map(of).collect()
}

#[tokio::test]
async fn a_killed_shards_games_are_watched_elsewhere_within_seconds_and_no_other_game_moves() {
    let kills: usize = std::env::var("ARBEES_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let mut plane = Plane::new("kill", Sim::all_live(60.0, 60, 24 * 60)).await;
    plane.settings.insert("MAX_GAMES".into(), "40".into());
    plane.all(4).await;
    plane.until("60 games confirmed", |s| is(confirmed(s), 60)).await;
    leader_may_judge().await;
    let (mut took, mut expected_moves) = (Vec::new(), 0);
    for kill in 0..kills {
        // Anywhere between two beats.
        tokio::time::sleep(Duration::from_millis(kill as u64 * 370 % 1_000)).await;
        let state = plane.state().await;
        let victim = busiest(&state);
        let games = games_of(&state, &victim);
        expected_moves += games.len();
        let killed_us = now_us();
        plane.programs.process(&victim).unwrap().kill().await;
        plane.until("its games to be watched elsewhere", |s| moved(s, &games, &victim)).await;
        let confirmed = confirmations(&plane).await;
        let last_us = games.iter().map(|g| confirmed[g] - killed_us).max().unwrap();
        took.push(Duration::from_micros(u64::try_from(last_us).unwrap()));
        plane.shard(&victim).await;
        plane.until("the shard to be well again", |s| is(well(s, &victim), true)).await;
    }
    took.sort();
    let (middle, worst) = (took[took.len() / 2], took[took.len() - 1]);
    println!("{kills} kills: all games watched elsewhere after {middle:.2?} in the middle, {worst:.2?} at worst");
    assert!(worst < KILL_LIMIT, "{took:?}");
    assert_eq!(moves(&plane).await.len(), expected_moves, "a game of another shard moved");
    plane.verified().await;
    plane.stop(&["shard_lost", "poll failed"]).await;
}

/// For how long two shards' states of one game were both taken in, in seconds: from the first one under a newer epoch to the last
/// one under an older, over all games. What a gate drops has no effect.
pub async fn doubled_seconds(plane: &Plane) -> f64 {
    let (_, end) = plane.log.bounds(GAME_STATES).await.unwrap();
    let mut reader = plane.log.read(GAME_STATES, Vec::new(), 1, end).await.unwrap();
    let mut gate = arbees_fleet::EpochGate::default();
    let mut newest: BTreeMap<String, (u64, i64)> = BTreeMap::new();
    let mut doubled_us = 0;
    while let Some(stored) = reader.next().await.unwrap() {
        let Some(Payload::GameStateChanged(s)) = stored.event().unwrap().payload else { continue };
        let at_us = stored.stored_at_ns / 1_000;
        if !gate.admit(&s.game.parse().unwrap(), arbees_proto::Epoch(s.epoch)) {
            continue;
        }
        let (epoch, since_us) = newest.entry(s.game).or_insert((s.epoch, at_us));
        if s.epoch < *epoch {
            doubled_us += at_us - *since_us;
        } else if s.epoch > *epoch {
            (*epoch, *since_us) = (s.epoch, at_us);
        }
    }
    println!("{} messages under an older epoch were dropped", gate.dropped());
    doubled_us as f64 / 1e6
}

/// States of games in the stream that `shard` told, with when they were stored and under which epoch.
async fn told_by(plane: &Plane, shard: &str) -> Vec<(String, u64, i64)> {
    let (_, end) = plane.log.bounds(GAME_STATES).await.unwrap();
    let mut reader = plane.log.read(GAME_STATES, Vec::new(), 1, end).await.unwrap();
    let mut told = Vec::new();
    while let Some(stored) = reader.next().await.unwrap() {
        if let Some(Payload::GameStateChanged(s)) = stored.event().unwrap().payload
            && s.shard == shard
        {
            told.push((s.game, s.epoch, stored.stored_at_ns / 1_000));
        }
    }
    told
}

#[tokio::test]
async fn a_frozen_shard_tells_nothing_when_it_thaws_and_comes_back_empty_and_well() {
    // A fast day: every game changes all the time.
    let mut plane = Plane::new("freeze", Sim::all_live(600.0, 30, 24 * 60)).await;
    plane.settings.insert("MAX_GAMES".into(), "30".into());
    plane.all(3).await;
    plane.until("30 games confirmed", |s| is(confirmed(s), 30)).await;
    leader_may_judge().await;
    let state = plane.state().await;
    let victim = busiest(&state);
    let games = games_of(&state, &victim);
    let frozen_us = now_us();
    plane.programs.process(&victim).unwrap().signal(Signal::SIGSTOP);
    plane.until("its games to be watched elsewhere", |s| moved(s, &games, &victim)).await;
    // For much longer than its lease: how long it is frozen is what is tested.
    tokio::time::sleep(Duration::from_secs(8)).await;
    plane.programs.process(&victim).unwrap().signal(Signal::SIGCONT);
    plane.until("the shard to be well again", |s| is(well(s, &victim), true)).await;
    // A few polls: what it would tell wrongly, it would tell by then.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let state = plane.state().await;
    assert_eq!(games_of(&state, &victim), BTreeSet::new(), "it comes back empty");
    let of_its = |m: &&(String, String, i64)| games.contains(&m.0);
    assert_eq!(moves(&plane).await.iter().filter(of_its).count(), games.len(), "each moved once");
    let late: Vec<_> =
        told_by(&plane, &victim).await.into_iter().filter(|(_, _, at)| *at > frozen_us + 2_000_000).collect();
    println!("{} games moved off a frozen shard; {} of its messages came after its lease", games.len(), late.len());
    assert!(late.len() <= 1, "{late:?}");
    let sql = "SELECT coalesce(sum(dropped), 0)::bigint FROM arbees.game_epochs";
    let probe = || async {
        let pool = plane.pool().await;
        let dropped: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.map_err(|e| e.to_string())?;
        is(usize::try_from(dropped).unwrap(), late.len())
    };
    wait::until("late messages to be dropped and counted", PATIENCE, probe).await.unwrap();
    plane.verified().await;
    plane.stop(&["shard_lost", "not acting", "tail", "older epoch", "nats"]).await;
}

#[tokio::test]
async fn cut_off_from_the_log_moves_once_from_redis_after_ten_seconds_and_redis_for_all_never() {
    let mut plane = Plane::new("cuts", Sim::all_live(60.0, 30, 24 * 60)).await;
    plane.settings.insert("MAX_GAMES".into(), "30".into());
    let (to_nats, to_redis) =
        (Link::to(plane.nats.port()).await.unwrap(), Link::to(plane.valkey.port()).await.unwrap());
    plane.projector().await;
    plane.orchestrator().await;
    let nats_url = format!("nats://127.0.0.1:{}", to_nats.port());
    let redis_url = format!("redis://127.0.0.1:{}", to_redis.port());
    let own = plane.with(&[("SHARD_ID", "shard_01"), ("NATS_URL", &nats_url), ("REDIS_URL", &redis_url)]);
    plane.programs.start("shard_01", "arbees-shard", &own).await.unwrap();
    for name in ["shard_02", "shard_03"] {
        plane.shard(name).await;
    }
    plane.until("30 games confirmed", |s| is(confirmed(s), 30)).await;
    leader_may_judge().await;

    // From the log only: it fences itself, and its games move once.
    let games = games_of(&plane.state().await, "shard_01");
    assert!(!games.is_empty());
    to_nats.cut();
    let (_, took) = plane.until("its games to be watched elsewhere", |s| moved(s, &games, "shard_01")).await;
    println!("cut off from the log: {} games elsewhere after {took:.2?}", games.len());
    to_nats.mend();
    plane.until("the shard to be well again", |s| is(well(s, "shard_01"), true)).await;
    assert_eq!(moves(&plane).await.len(), games.len());

    // Redis for all: nothing moves.
    plane.valkey.pause();
    // Longer than a degraded shard keeps its games: what would move, would move by then.
    tokio::time::sleep(Duration::from_secs(14)).await;
    plane.valkey.resume();
    plane
        .until("all shards to be well again", |s| {
            is(["shard_01", "shard_02", "shard_03"].iter().all(|n| well(s, n)), true)
        })
        .await;
    assert_eq!(moves(&plane).await.len(), games.len(), "nothing moved for Redis");

    // From both: it can neither renew its lease nor hold it.
    leader_may_judge().await;
    // It came back empty: some games, for there to be something to lose.
    plane.programs.process("shard_02").unwrap().kill().await;
    plane.until("it to have games again", |s| is(games_of(s, "shard_01").len() > 3 && confirmed(s) == 30, true)).await;
    plane.shard("shard_02").await;
    plane.until("the other shard to be well again", |s| is(well(s, "shard_02"), true)).await;
    leader_may_judge().await;
    let before = moves(&plane).await.len();
    let games = games_of(&plane.state().await, "shard_01");
    to_nats.cut();
    to_redis.cut();
    let (_, took) = plane.until("its games to be watched elsewhere", |s| moved(s, &games, "shard_01")).await;
    println!("cut off from both: {} games elsewhere after {took:.2?}", games.len());
    to_nats.mend();
    to_redis.mend();
    plane.until("the shard to be well again", |s| is(well(s, "shard_01"), true)).await;
    assert_eq!(moves(&plane).await.len(), before + games.len());
    let doubled = doubled_seconds(&plane).await;
    println!("game-seconds owned by two with effect: {doubled}");
    assert!(doubled == 0.0);
    plane.verified().await;
    plane
        .stop(&[
            "shard_lost",
            "not acting",
            "tail",
            "nats",
            "redis",
            "Redis",
            "subscription",
            "message not sent",
            "older epoch",
        ])
        .await;
}

#[tokio::test]
async fn a_shard_without_redis_is_degraded_and_its_games_move_once_after_ten_seconds() {
    let mut plane = Plane::new("redisless", Sim::all_live(60.0, 30, 24 * 60)).await;
    plane.settings.insert("MAX_GAMES".into(), "30".into());
    let to_redis = Link::to(plane.valkey.port()).await.unwrap();
    plane.orchestrator().await;
    let redis_url = format!("redis://127.0.0.1:{}", to_redis.port());
    let own = plane.with(&[("SHARD_ID", "shard_01"), ("REDIS_URL", &redis_url)]);
    plane.programs.start("shard_01", "arbees-shard", &own).await.unwrap();
    for name in ["shard_02", "shard_03"] {
        plane.shard(name).await;
    }
    plane.until("30 games confirmed", |s| is(confirmed(s), 30)).await;
    let games = games_of(&plane.state().await, "shard_01");
    let cut_us = now_us();
    to_redis.cut();
    plane.until("its games to be watched elsewhere", |s| moved(s, &games, "shard_01")).await;
    let all = moves(&plane).await;
    assert_eq!(all.len(), games.len());
    let first = all.iter().map(|(_, _, at)| at - cut_us).min().unwrap();
    println!("without Redis its {} games moved after {:.1} s", games.len(), first as f64 / 1e6);
    assert!(first >= 10_000_000, "{first} us");
    assert_eq!(plane.count("ServiceLost").await, 0);
    to_redis.mend();
    plane.until("the shard to be well again", |s| is(well(s, "shard_01"), true)).await;
    assert_eq!(moves(&plane).await.len(), games.len());
    plane.stop(&["redis", "Redis", "subscription"]).await;
}

#[tokio::test]
async fn when_two_of_three_freeze_games_trickle_and_all_is_back_by_itself() {
    let mut plane = Plane::new("brake", Sim::all_live(60.0, 30, 24 * 60)).await;
    plane.settings.insert("MAX_GAMES".into(), "30".into());
    plane.all(3).await;
    plane.until("30 games confirmed", |s| is(confirmed(s), 30)).await;
    leader_may_judge().await;
    for name in ["shard_01", "shard_02"] {
        plane.programs.process(name).unwrap().signal(Signal::SIGSTOP);
    }
    plane.until("the brake", |s| is(s.brake_since_us.is_some(), true)).await;
    // The rate is what is tested: one game a second, counted over this time.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let trickled = moves(&plane).await.len();
    for name in ["shard_01", "shard_02"] {
        plane.programs.process(name).unwrap().signal(Signal::SIGCONT);
    }
    plane.until("the brake released", |s| is(s.brake_since_us.is_none(), true)).await;
    plane.until("all games watched", |s| is(confirmed(s), 30)).await;
    println!("{trickled} games moved in the first 4 s, {} in all", moves(&plane).await.len());
    assert!((2..=7).contains(&trickled), "{trickled}");
    assert_eq!(plane.count("BrakeEngaged").await, 1);
    plane.verified().await;
    plane.stop(&["shard_lost", "brake_engaged", "not acting", "tail", "nats", "older epoch"]).await;
}

#[tokio::test]
async fn a_younger_process_with_the_same_name_wins_and_the_older_one_ends_with_4() {
    let mut plane = Plane::new("twins", Sim::all_live(60.0, 10, 24 * 60)).await;
    plane.orchestrator().await;
    plane.shard("shard_01").await;
    plane.until("10 games confirmed", |s| is(confirmed(s), 10)).await;
    let mut alerts = plane.bus().subscribe(&["alerts:critical"], &[]);
    let own = plane.with(&[("SHARD_ID", "shard_01")]);
    plane.programs.start("twin", "arbees-shard", &own).await.unwrap();
    let status = plane.programs.process("shard_01").unwrap().wait(PATIENCE).await.unwrap();
    assert_eq!(status.code(), Some(4));
    let alert = tokio::time::timeout(PATIENCE, alerts.next()).await.unwrap().unwrap();
    let alert: serde_json::Value = serde_json::from_slice(&alert.payload).unwrap();
    assert_eq!(alert["alert_type"], "duplicate_instance");
    plane.until("the restart to be known", |s| is(s.services.values().map(|s| s.restarts).max(), Some(1))).await;
    // That nothing moves is what is tested: what would, would when a lease and its margin are over.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!((plane.count("GameAssigned").await, moves(&plane).await.len()), (10, 0));
    let (old, new) = (told_by(&plane, "shard_01").await, plane.state().await);
    assert!(!old.is_empty() && confirmed(&new) == 10);
    plane.stop(&["duplicate_instance"]).await;
}

#[tokio::test]
async fn a_shard_that_is_asked_to_stop_hands_its_games_over_first() {
    let mut plane = Plane::new("handover", Sim::all_live(60.0, 30, 24 * 60)).await;
    plane.settings.insert("MAX_GAMES".into(), "30".into());
    plane.all(3).await;
    plane.until("30 games confirmed", |s| is(confirmed(s), 30)).await;
    let games = games_of(&plane.state().await, "shard_02");
    let status = plane.programs.stop("shard_02").await.unwrap();
    assert_eq!(status.code(), Some(0));
    let state = plane.state().await;
    assert_eq!(games_of(&state, "shard_02"), BTreeSet::new());
    assert_eq!(plane.last_beat("shard_02").await.map(|b| (b.status, b.games.len())), Some(("stopping".to_owned(), 0)));
    plane.until("its games to be watched elsewhere", |s| moved(s, &games, "shard_02")).await;
    plane
        .until("it to be retired", |s| {
            is(s.services.values().filter(|s| s.status == arbees_fleet::Status::Retired).count(), 1)
        })
        .await;
    assert_eq!((plane.count("ServiceLost").await, moves(&plane).await.len()), (0, games.len()));
    plane.stop(&[]).await;
}

/// Two orchestrators: the leader is killed, then the next one frozen.
#[tokio::test]
async fn a_standby_takes_over_from_a_dead_and_from_a_frozen_leader() {
    let mut plane = Plane::new("standby", Sim::all_live(60.0, 30, 24 * 60)).await;
    plane.settings.insert("MAX_GAMES".into(), "30".into());
    for name in ["orchestrator-a", "orchestrator-b"] {
        let own = plane.with(&[("INSTANCE_ID", name)]);
        plane.programs.start(name, "arbees-orchestrator", &own).await.unwrap();
    }
    for name in ["shard_01", "shard_02"] {
        plane.shard(name).await;
    }
    plane.until("30 games confirmed", |s| is(confirmed(s), 30)).await;
    let terms = |events: &[(String, v1::Event)]| -> Vec<(String, i64)> {
        let of = |(_, e): &(String, v1::Event)| match &e.payload {
            Some(Payload::LeaderElected(l)) => Some((l.instance.clone(), e.occurred_at_us)),
            _ => None,
        };
        events.iter().filter_map(of).collect()
    };
    let (first, _) = terms(&plane.events().await).pop().unwrap();
    let killed_us = now_us();
    plane.programs.process(&first).unwrap().kill().await;
    plane.until("a second term", |s| is(s.head.term, 2)).await;
    let (second, at_us) = terms(&plane.events().await).pop().unwrap();
    println!("takeover {:.2} s after the kill of the leader", (at_us - killed_us) as f64 / 1e6);
    assert!(second != first && at_us - killed_us < 6_000_000);

    let own = plane.with(&[("INSTANCE_ID", &first)]);
    plane.programs.start(&first, "arbees-orchestrator", &own).await.unwrap();
    plane.programs.process(&second).unwrap().signal(Signal::SIGSTOP);
    plane.until("a third term", |s| is(s.head.term, 3)).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    plane.programs.process(&second).unwrap().signal(Signal::SIGCONT);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(terms(&plane.events().await).len(), 3, "the frozen one is a standby now");
    let stopped_us = now_us();
    plane.programs.stop(&first).await.unwrap();
    plane.until("a fourth term", |s| is(s.head.term, 4)).await;
    let (_, at_us) = terms(&plane.events().await).pop().unwrap();
    println!("takeover {:.2} s after the leader was asked to stop", (at_us - stopped_us) as f64 / 1e6);
    assert!(at_us - stopped_us < 3_000_000);
    assert_eq!((plane.count("GameAssigned").await, moves(&plane).await.len()), (30, 0));
    let state = plane.state().await;
    assert_eq!((state.head.skipped, confirmed(&state)), (0, 30));
    plane.stop(&["no longer leading", "tail", "nats"]).await;
}

/// What an operator does from the command line: asked with a token, planned, done, written down.
#[tokio::test]
async fn an_operator_drains_moves_and_pauses_and_is_told_why_not() {
    let mut plane = Plane::new("operator", Sim::all_live(60.0, 12, 24 * 60)).await;
    plane.settings.insert("OPERATOR_TOKEN".into(), "secret".into());
    plane.all(3).await;
    plane.until("12 games confirmed", |s| is(confirmed(s), 12)).await;
    let (nats_url, database_url) = (plane.nats.url(), plane.postgres.url());
    let nowhere = plane.scratch.path().join("nowhere");
    let run = |args: &[&str], token: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_arbees"));
        command.args(args).arg("--data").arg(&nowhere).args(["--operator", "ann"]);
        command.env("NATS_URL", &nats_url).env("DATABASE_URL", &database_url).env("OPERATOR_TOKEN", token);
        let out = command.output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out.status.code(), text)
    };
    let (code, text) = run(&["drain", "shard_01", "--dry-run"], "secret");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("SHARD") && text.contains("4 game(s) would move"), "{text}");
    assert_eq!(plane.count("OperatorVerb").await, 0);
    let (code, text) = run(&["drain", "shard_01"], "secret");
    assert!(code == Some(0) && text.contains("done: 4 game(s) moved"), "{text}");
    plane.until("the drain to be over", |s| is(games_of(s, "shard_01").len(), 0)).await;
    for (args, token, says) in [
        (vec!["drain", "shard_01"], "secret", "drained already"),
        (vec!["drain", "shard_09"], "secret", "there is no shard shard_09"),
        (vec!["move", "nfl-1", "shard_02"], "secret", "there is no game nfl-1"),
        (vec!["pause"], "wrong", "the token is not"),
        (vec!["undrain", "shard_01", "--basis", "3"], "secret", "the log has moved on from 3"),
    ] {
        let (code, text) = run(&args, token);
        assert!(code == Some(1) && text.contains(says), "{args:?}: {text}");
    }
    let (code, text) = run(&["pause", "--json"], "secret");
    assert!(code == Some(0) && text.contains("\"applied\":true"), "{text}");
    assert!(plane.state().await.paused);
    assert_eq!(plane.count("OperatorVerb").await, 2);
    plane.verified().await;
    plane.stop(&[]).await;
}
