//! `arbees up` and the commands that look at it, as a person meets them.

use std::process::Output;
use std::time::Duration;

use arbees_testkit::process::Process;
use arbees_testkit::servers::Scratch;
use arbees_testkit::wait;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::process::Command;

use crate::plane::{PATIENCE, is};

fn arbees() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arbees"));
    // What a shell may have set and must not matter.
    command.env("NATS_URL", "nats://127.0.0.1:1").env("DATABASE_URL", "postgres://127.0.0.1:1/none");
    command.env("REDIS_URL", "redis://127.0.0.1:1").env("STREAM_PREFIX", "production");
    command
}

#[tokio::test]
async fn up_starts_everything_and_stops_it_in_order() {
    let scratch = Scratch::new("up").unwrap();
    let data = scratch.path().join("data");
    let log = scratch.path().join("up.log");
    let mut command = arbees();
    command.args(["up", "--plain", "--shards", "2", "--speed", "60", "--data"]).arg(&data);
    let mut up = Process::spawn("up", &mut command, &log).unwrap();
    let printed = || std::fs::read_to_string(&log).unwrap_or_default();
    let ready = || async { if printed().contains("ready in") { Ok(()) } else { Err(printed()) } };
    wait::until("up to be ready", PATIENCE, ready).await.unwrap();
    for part in ["nats ", "redis ", "postgres ", "feed ", "projector ", "orchestrator ", "shard_01 ", "shard_02 "] {
        assert!(printed().contains(&format!("  {part}")), "{part} in {}", printed());
    }
    let look = async |args: &[&str]| -> Output { arbees().args(args).arg("--data").arg(&data).output().await.unwrap() };
    let json = async |args: &[&str]| -> Value {
        let out = look(args).await;
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let watched = || async {
        let status = json(&["status", "--json"]).await;
        is(status["assigned"].as_i64() > Some(0) && status["unconfirmed"] == 0, true).map_err(|_| status.to_string())
    };
    wait::until("games to be watched", PATIENCE, watched).await.unwrap();
    let games = json(&["games", "--json"]).await;
    assert!(games.as_array().unwrap().iter().any(|g| g["shard"].as_str().is_some_and(|s| s.starts_with("shard_"))));
    let shards = json(&["shards", "--json"]).await;
    assert_eq!(shards.as_array().unwrap().len(), 2);
    assert_eq!(shards[0]["status"], "healthy");
    let table = String::from_utf8(look(&["services"]).await.stdout).unwrap();
    assert!(table.starts_with("KIND") && table.contains("orchestrator-1"), "{table}");
    let proof = look(&["verify"]).await;
    assert!(proof.status.success(), "{}", String::from_utf8_lossy(&proof.stderr));
    assert!(String::from_utf8_lossy(&proof.stdout).contains("the tables equal the fold of the log"));

    let again = look(&["up"]).await;
    assert!(String::from_utf8_lossy(&again.stderr).contains("already up"), "a second one is refused");
    let status = up.stop(Signal::SIGINT, Duration::from_secs(40)).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", printed());
    let text = printed();
    let stopped: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("  ")?.strip_suffix(" stopped")).collect();
    assert_eq!(stopped, ["orchestrator", "projector", "shard_01", "shard_02", "feed", "servers"]);
    let after = arbees().arg("status").arg("--data").arg(&data).env_remove("DATABASE_URL").output().await.unwrap();
    assert_eq!(after.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&after.stderr).contains("nothing is up in"), "says what to do");
}

#[tokio::test]
async fn arguments_that_make_no_sense_are_refused_with_what_is_allowed() {
    for (args, says) in [
        (["up", "--feed", "espn"], "allowed are sim, live and dir:PATH"),
        (["up", "--for", "soon"], "numbers with s, m or h"),
        (["up", "--shards", "0"], "1..=200"),
        (["up", "--speed", "0"], "numbers above 0"),
    ] {
        let out = arbees().args(args).output().await.unwrap();
        assert!(!out.status.success());
        assert!(
            String::from_utf8_lossy(&out.stderr).contains(says),
            "{args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
}
