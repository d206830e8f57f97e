//! `/metrics`, `/healthz` and `/readyz` of every program of a running plane.

use std::collections::{BTreeMap, BTreeSet};

use arbees_core::log::HEARTBEATS;
use arbees_core::metrics::METRICS;
use arbees_proto::{Payload, ServiceKind};
use arbees_testkit::feed::Sim;
use arbees_testkit::wait;
use serde_json::Value;

use crate::plane::{PATIENCE, Plane, confirmed, is};

/// The names that a program's `/metrics` tells, without what a histogram adds.
fn names(text: &str) -> BTreeSet<&str> {
    let mut all = BTreeSet::new();
    for line in text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        let name = line.split([' ', '{']).next().unwrap_or(line);
        all.insert(["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name));
    }
    all
}

#[tokio::test]
async fn every_program_tells_its_figures_and_how_everything_is_that_it_stands_on() {
    let mut plane = Plane::new("figures", Sim::all_live(600.0, 12, 24 * 600)).await;
    plane.settings.insert("SYSTEM_MONITOR_INTERVAL_SECS".into(), "0.5".into());
    plane.settings.insert("DB_HEALTH_CHECK_INTERVAL_SECS".into(), "0.5".into());
    plane.all(2).await;
    plane.until("12 games confirmed", |s| is(confirmed(s), 12)).await;
    let report = plane.verified().await;
    let known: BTreeSet<&str> = METRICS.iter().map(|(name, ..)| *name).collect();
    let mut told = BTreeSet::new();
    for program in ["orchestrator", "shard_01", "shard_02", "projector"] {
        let (status, text) = plane.programs.get(program, "/metrics").await.unwrap();
        assert_eq!(status, 200);
        let here = names(&text);
        assert_eq!(here.difference(&known).collect::<Vec<_>>(), [] as [&&str; 0], "{program} tells what no list knows");
        assert!(here.contains("arbees_build_info"), "{text}");
        for line in text.lines().filter(|l| l.starts_with("# HELP ")) {
            assert!(line.split_whitespace().count() > 3, "{line} says nothing");
        }
        told.extend(here.into_iter().map(str::to_owned));
    }
    println!("{} of {} figures are told by a quiet plane", told.len(), known.len());
    assert_eq!(plane.metric("orchestrator", "arbees_leader").await, 1.0);
    let deadline = std::time::Instant::now() + PATIENCE;
    while plane.metric("orchestrator", "arbees_games_owned").await != 12.0
        || plane.metric("shard_01", "arbees_shard_games").await + plane.metric("shard_02", "arbees_shard_games").await
            != 12.0
        || plane.metric("projector", "arbees_projector_lag_events").await > 100.0
    {
        assert!(std::time::Instant::now() < deadline, "the figures do not agree with the log");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    // Every event that this leader appended is counted once.
    let counted = plane.metric("orchestrator", "arbees_events_total").await as u64;
    assert!(
        counted + 1 >= report.sequence,
        "{counted} counted, {} in the log; its own election is not",
        report.sequence
    );
    assert_eq!(plane.metric("orchestrator", "arbees_handover_seconds_count").await, 12.0);
    let lease = plane.metric("shard_01", "arbees_lease_seconds").await;
    assert!((0.1..=2.0).contains(&lease), "{lease}");

    let wanted = [
        ("orchestrator", vec!["database", "discovery", "games", "leader", "log", "redis", "shards"]),
        ("shard_01", vec!["log", "recovered", "redis"]),
        ("projector", vec!["ALERTS", "CONTROL", "GAME_STATES", "HEARTBEATS", "database", "log", "CONTROL written"]),
    ];
    for (program, parts) in wanted {
        let mut last = Value::Null;
        let deadline = std::time::Instant::now() + PATIENCE;
        while last["status"] != "ok" || !parts.iter().all(|p| last["parts"][p]["ok"] == true) {
            assert!(std::time::Instant::now() < deadline, "{program}: {last:#}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            last = serde_json::from_str(&plane.programs.get(program, "/healthz").await.unwrap().1).unwrap();
        }
        assert!(last["program"].as_str().unwrap().starts_with("arbees-") && last["started_at"].is_string());
        let (status, body) = plane.programs.get(program, "/readyz").await.unwrap();
        assert_eq!(status, 200, "{body}");
    }
    let subject = plane.log.names().heartbeat(ServiceKind::Orchestrator, "orchestrator-1");
    let checks = || async {
        let stored = plane.log.last_on(HEARTBEATS, &subject).await.map_err(|e| e.to_string())?.ok_or("none")?;
        let Some(Payload::Heartbeat(beat)) = stored.event().map_err(|e| e.to_string())?.payload else {
            return Err("no beat".into());
        };
        let checks: BTreeMap<String, bool> = beat.checks.into_iter().map(|c| (c.name, c.ok)).collect();
        is((checks.get("shards"), checks.get("database")), (Some(&true), Some(&true)))
    };
    wait::until("the summary to be in the heartbeat", PATIENCE, checks).await.unwrap();
    // A part that fails is named by everybody who looks at it.
    plane.postgres.kill().await;
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let told: Value =
            serde_json::from_str(&plane.programs.get("orchestrator", "/healthz").await.unwrap().1).unwrap();
        if told["status"] == "degraded" && told["parts"]["database"]["ok"] == false {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{told:#}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(plane.programs.get("orchestrator", "/readyz").await.unwrap().0, 200, "it does not need the database");
    plane.stop(&["ALERT", "database", "interrupted", "sqlx", "away"]).await;
}
