//! The tables are exact, whatever happens to the projector.

use std::time::{Duration, Instant};

use arbees_core::db;
use arbees_core::log::CONTROL;
use arbees_fleet::append::Outcome;
use arbees_fleet::decide::Now;
use arbees_fleet::{Fleet, SECOND, Settings};
use arbees_proto::subject::Names;
use arbees_proto::{Payload, Sealed, v1};
use arbees_testkit::feed::Sim;
use arbees_testkit::history::History;
use prost::Message as _;
use sqlx::Row as _;
use tokio_util::sync::CancellationToken;

use crate::plane::{PATIENCE, Plane};

const T0: i64 = 1_800_000_000 * SECOND;

/// Fills CONTROL with at least `wanted` events.
pub async fn fill(plane: &Plane, wanted: u64) {
    let mut history = History::new(10, 1_000);
    while history.state().head.sequence < wanted {
        let (expected, events) = history.turn();
        append(plane, expected, &events).await;
    }
}

pub async fn append(plane: &Plane, expected: u64, events: &[Sealed]) {
    let outcome = plane.log.append(expected, events, &CancellationToken::new()).await.unwrap();
    assert!(matches!(outcome, Outcome::Stored { .. }));
}

#[tokio::test]
async fn ten_kills_in_the_middle_of_fifty_thousand_events_leave_exact_tables() {
    let mut plane = Plane::new("kills", Sim::all_live(60.0, 0, 0)).await;
    fill(&plane, 50_000).await;
    let (_, end) = plane.log.bounds(CONTROL).await.unwrap();
    let pool = plane.pool().await;
    let applied = async || -> u64 {
        let sql = "SELECT coalesce(max(sequence), 0) FROM arbees.projection_checkpoints WHERE stream = 'CONTROL'";
        let row = sqlx::query(sql).fetch_one(&pool).await;
        row.map_or(0, |r| u64::try_from(r.get::<i64, _>(0)).unwrap())
    };
    let mut killed_at = Vec::new();
    for kill in 1..=10u64 {
        plane.programs.launch("projector", "arbees-projector", &plane.settings).unwrap();
        let deadline = Instant::now() + PATIENCE;
        // Each kill falls a tenth further on, in the middle of whatever it is doing.
        while applied().await < kill * end / 20 {
            assert!(Instant::now() < deadline, "the projector stands at {} of {end}", applied().await);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        plane.programs.process("projector").unwrap().kill().await;
        killed_at.push(applied().await);
    }
    assert!(killed_at.iter().all(|at| *at < end), "every kill fell in the middle: {killed_at:?}");
    plane.projector().await;
    let begun = Instant::now();
    let report = plane.verified().await;
    println!("{end} events, killed at {killed_at:?}, exact {:.1?} after the last start", begun.elapsed());
    assert_eq!(report.rows["event_archive"], usize::try_from(end).unwrap());
    // The proof can fail: one wrong row is found.
    sqlx::query("UPDATE arbees.assignments SET shard_id = 'shard_99' WHERE game_id = (SELECT min(game_id) FROM arbees.assignments)")
        .execute(&pool)
        .await
        .unwrap();
    let report = arbees_projections::verify::verify(&plane.log, &pool, |_, _| ()).await.unwrap();
    assert_eq!(report.differences, 1, "{:?}", report.first_differences);
    plane.stop(&[]).await;
}

/// Killed when its rows are written and its checkpoint is not: neither is there afterwards.
#[tokio::test]
async fn a_kill_between_rows_and_checkpoint_leaves_neither() {
    let mut plane = Plane::new("between", Sim::all_live(60.0, 0, 0)).await;
    plane.projector().await;
    let mut history = History::new(3, 1_000);
    while history.state().head.sequence < 400 {
        let (expected, events) = history.turn();
        append(&plane, expected, &events).await;
    }
    plane.verified().await;
    let pool = plane.pool().await;
    let mut held = db::begin(&pool).await.unwrap();
    let hold = "SELECT sequence FROM arbees.projection_checkpoints WHERE stream = 'CONTROL' FOR UPDATE";
    let before: i64 = sqlx::query(hold).fetch_one(&mut *held).await.unwrap().get(0);
    let (expected, events) = history.turn();
    append(&plane, expected, &events).await;
    let backends = async |condition: &'static str| -> Result<i64, String> {
        let sql = match condition {
            "waiting" => {
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'arbees-projector' AND wait_event_type = 'Lock'"
            }
            _ => "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'arbees-projector'",
        };
        sqlx::query(sql).fetch_one(&pool).await.map(|r| r.get(0)).map_err(|e| e.to_string())
    };
    let waiting = || async { crate::plane::is(backends("waiting").await?, 1) };
    arbees_testkit::wait::until("the projector to stand before its checkpoint", PATIENCE, waiting).await.unwrap();
    plane.programs.process("projector").unwrap().kill().await;
    held.commit().await.unwrap();
    let gone = || async { crate::plane::is(backends("any").await?, 0) };
    arbees_testkit::wait::until("its connections to be gone", PATIENCE, gone).await.unwrap();
    let sql = "SELECT (SELECT max(sequence) FROM arbees.event_archive), (SELECT max(sequence) FROM arbees.games),
                   (SELECT sequence FROM arbees.projection_checkpoints WHERE stream = 'CONTROL')";
    let row = sqlx::query(sql).fetch_one(&pool).await.unwrap();
    let (archived, touched, checkpoint): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!((archived, checkpoint), (before, before));
    assert!(touched <= before);
    plane.projector().await;
    plane.verified().await;
    plane.stop(&[]).await;
}

#[tokio::test]
async fn a_strangers_message_goes_aside_and_stops_nothing() {
    let mut plane = Plane::new("poison", Sim::all_live(60.0, 0, 0)).await;
    plane.projector().await;
    fill(&plane, 200).await;
    let client = async_nats::connect(plane.nats.url()).await.unwrap();
    let stream = async_nats::jetstream::new(client);
    for (subject, payload) in
        [("arbees.control.leader", "hello"), ("arbees.heartbeat.shard.x", "\u{0}"), ("arbees.game_state.nfl-1", "")]
    {
        stream.publish(subject, payload.into()).await.unwrap().await.unwrap();
    }
    // These decode, and hold what Postgres takes in no text and no time.
    let nul = || "nul \0 and \\u0000".to_owned();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Odd", "\\u0000");
    let service = v1::Service { kind: "shard".into(), instance: nul(), process: nul(), ..v1::Service::default() };
    let checks = vec![v1::Check { name: nul(), ok: true }];
    let beat = v1::Heartbeat { service: Some(service), status: nul(), checks, ..v1::Heartbeat::default() };
    let told = v1::GameStateChanged { game: "nfl-1".into(), clock: Some(nul()), ..v1::GameStateChanged::default() };
    for (subject, payload) in [
        ("arbees.heartbeat.shard.nul", Payload::Heartbeat(beat)),
        ("arbees.game_state.nul", Payload::GameStateChanged(told)),
    ] {
        let event = v1::Event { occurred_at_us: i64::MIN, payload: Some(payload), ..v1::Event::default() };
        let sent = stream.publish_with_headers(subject, headers.clone(), event.encode_to_vec().into());
        sent.await.unwrap().await.unwrap();
    }
    // The leader folds past it and goes on.
    let state = plane.state().await;
    assert_eq!(state.head.skipped, 1);
    let now = Now { wall_us: T0, steady_us: T0 };
    let me = v1::Producer { service: "orchestrator".into(), instance: "o2".into(), process: "p2".into() };
    let mut fleet = Fleet::new(state, Settings::default(), Names::new(""), me, now);
    fleet.take_office(now, 0);
    let events = fleet.end_turn().events;
    append(&plane, fleet.state().head.sequence - 1, &events).await;
    let pool = plane.pool().await;
    let (_, end) = plane.log.bounds(CONTROL).await.unwrap();
    let probe = || async {
        let sql = "SELECT (SELECT count(*) FROM arbees.dead_letters), (SELECT sequence FROM arbees.projection_checkpoints WHERE stream = 'CONTROL')";
        let row = sqlx::query(sql).fetch_one(&pool).await.map_err(|e| e.to_string())?;
        let seen: (i64, i64) = (row.get(0), row.get(1));
        crate::plane::is(seen, (3, i64::try_from(end).unwrap()))
    };
    let odd = || async {
        let sql = "SELECT (SELECT count(*) FROM arbees.game_states WHERE clock LIKE 'nul  and%'),
                       (SELECT count(*) FROM arbees.heartbeats_latest WHERE instance LIKE 'nul  and%')";
        let row = sqlx::query(sql).fetch_one(&pool).await.map_err(|e| e.to_string())?;
        crate::plane::is((row.get::<i64, _>(0), row.get::<i64, _>(1)), (1, 1))
    };
    arbees_testkit::wait::until("the odd ones in their tables", PATIENCE, odd).await.unwrap();
    arbees_testkit::wait::until("three dead letters and the end of the log", PATIENCE, probe).await.unwrap();
    let report = arbees_projections::verify::verify(&plane.log, &pool, |_, _| ()).await.unwrap();
    assert_eq!((report.differences, report.invalid_messages), (0, 1), "{:?}", report.first_differences);
    plane.stop(&["no valid event", "skipped"]).await;
}
