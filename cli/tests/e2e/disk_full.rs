//! A full disk under NATS, under Postgres, and where the file of alerts lies.

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use arbees_testkit::feed::Sim;
use arbees_testkit::receiver::Receiver;
use arbees_testkit::servers::{Nats, Postgres, Scratch, SmallDisk};
use arbees_testkit::wait;

use crate::alerts::{raised, settled};
use crate::plane::{PATIENCE, Plane, binaries, confirmed, is, leader_may_judge, moves, row};

/// A disk of a few megabytes, where this machine lets anybody mount one; else it is said loudly.
async fn disk(scratch: &Scratch, megabytes: u32) -> Option<SmallDisk> {
    let disk = SmallDisk::new(&scratch.path().join("disk"), megabytes).await.unwrap();
    if disk.is_none() {
        println!("NOT TESTED: this machine lets nobody mount a file system, so no disk can be filled");
    }
    disk
}

#[tokio::test]
async fn a_full_disk_under_nats_is_told_of_and_everything_resumes_with_it() {
    let scratch = Scratch::new("nats-full").unwrap();
    let Some(disk) = disk(&scratch, 64).await else { return };
    let nats = Nats::start_on(&disk, &binaries(), &scratch.path().join("nats")).await.unwrap();
    let postgres = Postgres::start(&binaries(), &scratch.path().join("postgres")).await.unwrap();
    let receiver = Receiver::start().await.unwrap();
    let mut plane = Plane::over(scratch, nats, postgres, Sim::all_live(600.0, 24, 24 * 600)).await;
    plane.settings.insert("CUSTOM_WEBHOOK_URL".into(), format!("{}/hook", receiver.url()));
    plane.all(2).await;
    plane.until("24 games confirmed", |s| is(confirmed(s), 24)).await;
    leader_may_judge().await;
    let begun = Instant::now();
    disk.fill().unwrap();
    let told = |what: &'static str| {
        let of = |r: &arbees_testkit::receiver::Received| r.body.contains("log_unavailable") && r.body.contains(what);
        receiver.received("/hook").iter().filter(|r| of(r)).count()
    };
    let probe = || async { is(told("\"raised\""), 1) };
    wait::until("people to be told", PATIENCE, probe).await.unwrap();
    let detected = begun.elapsed();
    let (_, health) = plane.programs.get("orchestrator", "/healthz").await.unwrap();
    assert!(health.contains("no answer from NATS"), "{health}");
    let begun = Instant::now();
    disk.free().unwrap();
    // A server whose write was cut short takes nothing more until it is started again (ADR 6).
    plane.nats.stop().await.unwrap();
    plane.nats.start_again().await.unwrap();
    let probe = || async { is(told("\"resolved\""), 1) };
    wait::until("the end to be told", PATIENCE, probe).await.unwrap();
    plane.until("24 games confirmed", |s| is(confirmed(s), 24)).await;
    let before = plane.metric("shard_01", "arbees_states_published_total").await;
    let deadline = Instant::now() + PATIENCE;
    while plane.metric("shard_01", "arbees_states_published_total").await <= before {
        assert!(Instant::now() < deadline, "no state flows");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    row("a full disk under NATS", detected, begun.elapsed(), 0, told("\"raised\""));
    assert_eq!((moves(&plane).await.len(), plane.count("ServiceLost").await), (0, 0));
    plane.verified().await;
    let said = ["append", "tail", "nats", "not acting", "no longer leading", "ALERT", "log", "interrupted", "away"];
    plane.stop(&said).await;
}

#[tokio::test]
async fn a_full_disk_under_postgres_stops_only_the_tables_and_they_catch_up() {
    let scratch = Scratch::new("postgres-full").unwrap();
    let Some(disk) = disk(&scratch, 220).await else { return };
    let nats = Nats::start(&binaries(), &scratch.path().join("nats")).await.unwrap();
    let postgres = Postgres::start_on(&disk, &binaries(), &scratch.path().join("postgres")).await.unwrap();
    let mut plane = Plane::over(scratch, nats, postgres, Sim::all_live(600.0, 40, 24 * 600)).await;
    plane.settings.insert("DB_HEALTH_CHECK_INTERVAL_SECS".into(), "1".into());
    plane.settings.insert("MAX_GAMES".into(), "40".into());
    plane.all(2).await;
    plane.until("40 games confirmed", |s| is(confirmed(s), 40)).await;
    plane.verified().await;
    let begun = Instant::now();
    disk.fill().unwrap();
    let probe = || async { is(raised(&plane, "database_connectivity").await, 1) };
    wait::until("people to be told", PATIENCE, probe).await.unwrap();
    let detected = begun.elapsed();
    let begun = Instant::now();
    disk.free().unwrap();
    let over = || async { is(settled(&plane, "database_connectivity").await, 1) };
    wait::until("the end to be told", PATIENCE, over).await.unwrap();
    plane.verified().await;
    row("a full disk under Postgres", detected, begun.elapsed(), 0, raised(&plane, "database_connectivity").await);
    assert_eq!((moves(&plane).await.len(), plane.count("ServiceLost").await), (0, 0));
    plane.stop(&["ALERT", "interrupted", "database", "sqlx", "away, trying again"]).await;
}

/// The file takes nothing: said once, all others are told, and it goes on when there is room.
#[tokio::test]
async fn a_full_disk_under_the_file_of_alerts_keeps_nobody_else_from_being_told() {
    let receiver = Receiver::start().await.unwrap();
    let mut plane = Plane::new("file-full", Sim::all_live(60.0, 12, 24 * 60)).await;
    let file = plane.scratch.path().join("alerts-link.log");
    // Whatever is written there fails for want of room.
    symlink("/dev/full", &file).unwrap();
    plane.settings.insert("ALERT_LOG_PATH".into(), file.to_string_lossy().into_owned());
    plane.settings.insert("CUSTOM_WEBHOOK_URL".into(), format!("{}/hook", receiver.url()));
    plane.all(2).await;
    plane.until("12 games confirmed", |s| is(confirmed(s), 12)).await;
    leader_may_judge().await;
    let begun = Instant::now();
    plane.programs.process("shard_01").unwrap().kill().await;
    let told = || async { is(receiver.received("/hook").is_empty(), false) };
    wait::until("the webhook to be told", PATIENCE, told).await.unwrap();
    let detected = begun.elapsed();
    let log = plane.programs.logs().join("orchestrator.log");
    let said = || async {
        let text = std::fs::read_to_string(&log).unwrap();
        is(text.lines().filter(|l| l.contains("alert not delivered") && l.contains("No space left")).count(), 1)
    };
    wait::until("the file to be named", PATIENCE, said).await.unwrap();
    let begun = Instant::now();
    let real = plane.scratch.path().join("alerts-real.log");
    std::fs::remove_file(&file).unwrap();
    symlink(&real, &file).unwrap();
    let caught_up = || async {
        let text = std::fs::read_to_string(&real).unwrap_or_default();
        is(text.contains("shard_lost"), true)
    };
    wait::until("the file to catch up", PATIENCE, caught_up).await.unwrap();
    row("a full disk under the file of alerts", detected, begun.elapsed(), 0, receiver.received("/hook").len());
    for line in std::fs::read_to_string(&real).unwrap().lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
    plane.stop(&["ALERT", "shard_lost", "alert not delivered", "tail", "nats"]).await;
}
