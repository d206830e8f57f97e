//! The tables built anew beside the live ones, while events and queries flow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arbees_core::log::{GAME_STATES, Log};
use arbees_fleet::append::Outcome;
use arbees_proto::{Payload, v1};
use arbees_testkit::feed::Sim;
use arbees_testkit::history::History;
use arbees_testkit::wait;
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use crate::plane::{PATIENCE, Plane, is};

/// How many events there are: `ARBEES_REBUILD_EVENTS`, or so many.
const EVENTS: u64 = 60_000;

async fn append_turn(log: &Log, history: &mut History) {
    let (expected, events) = history.turn();
    let outcome = log.append(expected, &events, &CancellationToken::new()).await.unwrap();
    assert!(matches!(outcome, Outcome::Stored { .. }));
}

#[tokio::test]
async fn tables_are_built_anew_while_events_and_queries_flow_and_nobody_sees_half_of_them() {
    let wanted = std::env::var("ARBEES_REBUILD_EVENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(EVENTS);
    let mut plane = Plane::new("rebuild", Sim::all_live(60.0, 0, 0)).await;
    plane.projector().await;
    let mut history = History::new(10, 1_000);
    while history.state().head.sequence < wanted {
        append_turn(&plane.log, &mut history).await;
    }
    plane.verified().await;
    let pool = plane.pool().await;
    // Something is wrong that only a rebuild mends.
    let spoil =
        "UPDATE arbees.games SET home_team = 'spoiled' WHERE game_id IN (SELECT game_id FROM arbees.games LIMIT 7)";
    sqlx::query(spoil).execute(&pool).await.unwrap();

    // Events go on, and so do questions, of which none may fail or see less than before.
    let is_over = Arc::new(AtomicBool::new(false));
    let (log, over) = (plane.log.clone(), is_over.clone());
    let appending = tokio::spawn(async move {
        let mut count = 0u64;
        while !over.load(Ordering::Relaxed) {
            append_turn(&log, &mut history).await;
            count += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        (history, count)
    });
    let (asked, over) = (pool.clone(), is_over.clone());
    let asking = tokio::spawn(async move {
        let (mut most, mut games, mut times) = (0, 1, 0u64);
        while !over.load(Ordering::Relaxed) {
            let known: i64 = sqlx::query_scalar("SELECT count(*) FROM arbees.games").fetch_one(&asked).await.unwrap();
            assert!(known >= games, "only {known} of {games} games were seen");
            games = known;
            let sql = "SELECT max(sequence) FROM arbees.event_archive WHERE stream = 'CONTROL'";
            let end: i64 = sqlx::query_scalar(sql).fetch_one(&asked).await.unwrap();
            assert!(end >= most, "the archive went back from {most} to {end}");
            most = end;
            times += 1;
        }
        times
    });
    arbees_core::install_tls();
    let port = plane.programs.all().find(|(name, ..)| *name == "projector").unwrap().1;
    let over = is_over.clone();
    let browsing = tokio::spawn(async move {
        let mut times = 0u64;
        while !over.load(Ordering::Relaxed) {
            let answer = reqwest::get(format!("http://127.0.0.1:{port}/v1/games?limit=10")).await.unwrap();
            assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
            times += 1;
        }
        times
    });

    // One is killed halfway: nothing has changed.
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_arbees"));
    command.args(["projections", "rebuild"]).envs(&plane.settings).current_dir(plane.scratch.path());
    let mut halfway = command.kill_on_drop(true).spawn().unwrap();
    let begun = || async {
        let sql = "SELECT count(*) FROM information_schema.schemata WHERE schema_name = 'arbees_rebuild'";
        let n: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.map_err(|e| e.to_string())?;
        is(n, 1)
    };
    wait::until("the rebuild to have begun", PATIENCE, begun).await.unwrap();
    // It stays where it is, so that what comes next meets it.
    let id = nix::unistd::Pid::from_raw(i32::try_from(halfway.id().unwrap()).unwrap());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let (code, text) = plane.arbees(&["projections", "rebuild"]).await;
    assert!(code == Some(1) && text.contains("another rebuild is running"), "{text}");
    halfway.kill().await.unwrap();
    let wrong = async || -> i64 {
        let sql = "SELECT count(*) FROM arbees.games WHERE home_team = 'spoiled'";
        sqlx::query_scalar(sql).fetch_one(&pool).await.unwrap()
    };
    assert!(wrong().await > 0, "still as it was");

    let started = Instant::now();
    let rebuilt = loop {
        let (code, text) = plane.arbees(&["projections", "rebuild"]).await;
        // The killed one's session may hold its lock for a moment.
        if code == Some(0) || !text.contains("another rebuild") || started.elapsed() > PATIENCE {
            assert_eq!(code, Some(0), "{text}");
            break text;
        }
    };
    println!("{}", rebuilt.trim());
    assert_eq!(wrong().await, 0);
    // A view of somebody's own would be gone with the old tables: it is refused, and named.
    sqlx::query("CREATE VIEW public.mine AS SELECT game_id FROM arbees.games").execute(&pool).await.unwrap();
    let (code, text) = plane.arbees(&["projections", "rebuild"]).await;
    assert!(code == Some(1) && text.contains("would be gone, too: public.mine"), "{text}");
    sqlx::query("DROP VIEW public.mine").execute(&pool).await.unwrap();
    let (code, text) = plane.arbees(&["projections", "rebuild", "--table", "nonsense"]).await;
    assert!(code == Some(1) && text.contains("allowed are alert_silences"), "{text}");
    sqlx::query(spoil).execute(&pool).await.unwrap();
    let (code, text) = plane.arbees(&["projections", "rebuild", "--table", "games"]).await;
    assert_eq!(code, Some(0), "{text}");
    println!("{}", text.trim());
    is_over.store(true, Ordering::Relaxed);
    let (_, appended) = appending.await.unwrap();
    // Nothing comes after it that could mend what the swap did.
    let (code, text) = plane.arbees(&["projections", "rebuild"]).await;
    assert_eq!(code, Some(0), "{text}");
    let (asked, browsed) = (asking.await.unwrap(), browsing.await.unwrap());
    println!("meanwhile {appended} batches of events came in, and {asked} + {browsed} questions were answered");
    plane.verified().await;
    let may: bool = sqlx::query_scalar("SELECT has_table_privilege('arbees_reader', 'arbees.games', 'SELECT')")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert!(may, "readers may read the new tables");
    let left: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM information_schema.schemata WHERE schema_name IN ('arbees_rebuild', 'arbees_old')",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(left, 0, "nothing is left behind");
    plane.stop(&["projection interrupted", "another projector moved", "ALERT", "pg_advisory_xact_lock_shared"]).await;
}

/// A message that an older program could not read is taken in when this one can.
#[tokio::test]
async fn what_was_put_aside_is_listed_shown_and_tried_again() {
    let mut plane = Plane::new("letters", Sim::all_live(60.0, 0, 0)).await;
    plane.projector().await;
    let nats = async_nats::connect(plane.nats.url()).await.unwrap();
    let subject = plane.log.names().game_state(&"nfl-1".parse().unwrap());
    nats.publish(subject.clone(), "no event".into()).await.unwrap();
    let stored = || async { is(plane.log.bounds(GAME_STATES).await.map_err(|e| e.to_string())?.1, 1) };
    wait::until("it to be stored", PATIENCE, stored).await.unwrap();
    let state = v1::GameStateChanged { game: "nfl-1".into(), shard: "shard_01".into(), epoch: 7, ..Default::default() };
    let producer = v1::Producer { service: "shard".into(), instance: "shard_01".into(), process: "p".into() };
    let event = v1::Event {
        producer: Some(producer),
        id: vec![1; 16],
        occurred_at_us: 1_800_000_000_000_000,
        schema_version: arbees_proto::envelope::SCHEMA_VERSION,
        payload: Some(Payload::GameStateChanged(state)),
        ..v1::Event::default()
    };
    plane.log.publish(subject, &event, "a").await.unwrap();
    let pool = plane.pool().await;
    let applied = || async {
        let sql = "SELECT coalesce(max(sequence), 0) FROM arbees.projection_checkpoints WHERE stream = $1";
        let at: i64 = sqlx::query_scalar(sql).bind(GAME_STATES).fetch_one(&pool).await.map_err(|e| e.to_string())?;
        is(at, 2)
    };
    wait::until("both to be applied", PATIENCE, applied).await.unwrap();
    // As if an older program had put the second one aside.
    let aside = "INSERT INTO arbees.dead_letters (stream, sequence, subject, headers, payload, error)
                 SELECT 'GAME_STATES', 2, 'arbees.game_state.nfl-1', '{}', $1, 'unknown to an older program'";
    sqlx::query(aside).bind(event.encode_to_vec()).execute(&pool).await.unwrap();
    sqlx::query("DELETE FROM arbees.game_states").execute(&pool).await.unwrap();
    let (code, text) = plane.arbees(&["projections", "dead-letters"]).await;
    assert!(code == Some(0) && text.contains("unknown to an older program") && text.lines().count() == 3, "{text}");
    let (_, text) = plane.arbees(&["projections", "dead-letters", "--stream", "GAME_STATES", "--sequence", "1"]).await;
    assert!(text.contains("payload  6e6f206576656e74"), "{text}");
    let (code, text) = plane.arbees(&["projections", "retry"]).await;
    assert!(code == Some(0) && text.contains("in the tables now") && text.contains("still no valid event"), "{text}");
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM arbees.game_states").fetch_one(&pool).await.unwrap();
    let (_, text) = plane.arbees(&["projections", "dead-letters", "--json"]).await;
    assert!(rows == 1 && text.matches("\"sequence\"").count() == 1, "{rows} {text}");
    plane.stop(&["put aside", "ALERT"]).await;
}
