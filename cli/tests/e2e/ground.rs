//! Wrong configuration, wrong ground, and ground that is merely away.

use std::time::Duration;

use arbees_testkit::programs::Programs;
use arbees_testkit::servers::{Nats, Scratch};

use crate::plane::{PATIENCE, binaries, programs_folder, settings};

/// Starts `file` with `pairs`, waits until it ends, and returns its exit code and last words.
async fn ends(file: &str, pairs: &[(&str, &str)]) -> (Option<i32>, String) {
    let scratch = Scratch::new("ends").unwrap();
    let mut programs = Programs::new(&programs_folder(), scratch.path(), false);
    programs.launch("it", file, &settings(pairs)).unwrap();
    let process = programs.process("it").unwrap();
    let status = process.wait(Duration::from_secs(20)).await.unwrap();
    (status.code(), process.last_words())
}

#[tokio::test]
async fn wrong_configuration_prints_every_error_at_once_and_exits_2() {
    // An address where nobody listens: had it connected before it read, it would wait there.
    let wrong = [
        ("NATS_URL", "nats://127.0.0.1:1"),
        ("LOG_HEARTBEAT_MS", "often"),
        ("HEARTBEAT_INTERVAL_SECS", "0"),
        ("ESPN_BASE_URL", "espn"),
        ("DB_POOL_MAX_CONNECTIONS", "-1"),
        ("DATABASE_URL", "mysql://user:secret@host/db"),
        ("STREAM_PREFIX", "a b"),
        ("POLL_INTERVAL", "60"),
        ("SHARD_ID", "a.b"),
    ];
    let expected: [(&str, &[&str]); 3] = [
        ("arbees-orchestrator", &["LOG_HEARTBEAT_MS", "HEARTBEAT_INTERVAL_SECS", "ESPN_BASE_URL", "STREAM_PREFIX"]),
        ("arbees-shard", &["LOG_HEARTBEAT_MS", "POLL_INTERVAL", "SHARD_ID", "ESPN_BASE_URL"]),
        ("arbees-projector", &["DB_POOL_MAX_CONNECTIONS", "DATABASE_URL", "STREAM_PREFIX"]),
    ];
    for (file, names) in expected {
        let (code, words) = ends(file, &wrong).await;
        assert_eq!(code, Some(2), "{file}: {words}");
        for name in names {
            assert!(words.contains(name) && words.contains("allowed"), "{file}: {name} in {words}");
        }
        assert!(!words.contains("secret"), "{words}");
    }
}

#[tokio::test]
async fn wrong_ground_exits_3_with_one_clear_message() {
    let scratch = Scratch::new("ground").unwrap();
    let old = Nats::start_old(&scratch.path().join("old"), &|line| println!("{line}")).await.unwrap();
    for file in ["arbees-orchestrator", "arbees-shard", "arbees-projector"] {
        let (code, words) = ends(file, &[("NATS_URL", &old.url()), ("SHARD_ID", "s1")]).await;
        assert_eq!(code, Some(3), "{file}: {words}");
        let told = words.matches("NATS server 2.12.1 is too old: at least 2.14.4 is needed").count();
        assert_eq!(told, 1, "{words}");
    }
    let nats = Nats::start(&binaries(), &scratch.path().join("nats")).await.unwrap();
    let client = async_nats::connect(nats.url()).await.unwrap();
    let body = r#"{"name":"CONTROL","subjects":["arbees.control.>"],"max_msgs":10,"num_replicas":1}"#;
    client.request("$JS.API.STREAM.CREATE.CONTROL", body.into()).await.unwrap();
    let (code, words) = ends("arbees-shard", &[("NATS_URL", &nats.url()), ("SHARD_ID", "s1")]).await;
    assert_eq!(code, Some(3), "{words}");
    assert!(words.contains("max_msgs: needed -1, found 10") && words.contains("allow_atomic"), "{words}");
}

#[tokio::test]
async fn ground_that_is_away_is_said_once_and_waited_for() {
    let scratch = Scratch::new("away").unwrap();
    let mut nats = Nats::start(&binaries(), &scratch.path().join("nats")).await.unwrap();
    nats.kill().await;
    let mut programs = Programs::new(&programs_folder(), &scratch.path().join("logs"), false);
    let own = settings(&[("NATS_URL", &nats.url()), ("SHARD_ID", "s1"), ("REDIS_URL", "redis://127.0.0.1:1")]);
    programs.launch("s1", "arbees-shard", &own).unwrap();
    let mut ready = async || programs.get("s1", "/readyz").await.map_err(|e| e.to_string());
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut refusals = 0;
    while refusals < 10 {
        if let Ok((status, body)) = ready().await {
            assert_eq!(status, 503, "{body}");
            assert!(body.contains("\"log\":\"not reached yet\""), "{body}");
            refusals += 1;
        }
        assert!(std::time::Instant::now() < deadline, "it never answered");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    nats.start_again().await.unwrap();
    while ready().await.map(|(status, _)| status) != Ok(200) {
        assert!(std::time::Instant::now() < deadline, "never ready: {:?}", ready().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    nats.kill().await;
    while ready().await.map(|(status, _)| status) != Ok(503) {
        assert!(std::time::Instant::now() < deadline, "still ready without its log: {:?}", ready().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let log = std::fs::read_to_string(scratch.path().join("logs/s1.log")).unwrap();
    assert_eq!(log.matches("away, trying again what=\"nats\"").count(), 1, "said once:\n{log}");
    programs.stop_all(|_| ()).await.unwrap();
}
