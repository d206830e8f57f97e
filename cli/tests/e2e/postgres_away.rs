//! Postgres stopped while events flow, out of connections, and in a deadlock: only the tables notice, and they are exact afterwards.

use std::time::{Duration, Instant};

use arbees_core::db;
use arbees_testkit::feed::Sim;
use arbees_testkit::history::History;
use arbees_testkit::wait;
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::alerts::{raised, settled};
use crate::plane::{PATIENCE, Plane, is, row};
use crate::projector::append;

const KIND: &str = "database_connectivity";
const SAID: [&str; 6] = ["ALERT", "projection interrupted", "database", "sqlx", "away, trying again", "deadlock"];

/// For how long it is stopped: `ARBEES_POSTGRES_AWAY_SECS`, or so many seconds.
const AWAY_SECS: u64 = 20;

#[tokio::test]
async fn postgres_stopped_while_a_hundred_thousand_events_flow_leaves_exact_tables() {
    let away = std::env::var("ARBEES_POSTGRES_AWAY_SECS").ok().and_then(|s| s.parse().ok()).unwrap_or(AWAY_SECS);
    let away = Duration::from_secs(away);
    let mut plane = Plane::new("postgres-away", Sim::all_live(60.0, 0, 0)).await;
    plane.settings.insert("DB_HEALTH_CHECK_INTERVAL_SECS".into(), "1".into());
    plane.projector().await;
    let mut history = History::new(10, 1_000);
    let mut fill = async |plane: &Plane, to: u64| {
        while history.state().head.sequence < to {
            let (expected, events) = history.turn();
            append(plane, expected, &events).await;
        }
    };
    fill(&plane, 20_000).await;
    let begun = Instant::now();
    plane.postgres.stop().await.unwrap();
    fill(&plane, 60_000).await;
    let probe = || async { is(raised(&plane, KIND).await, 1) };
    wait::until("people to be told", PATIENCE, probe).await.unwrap();
    let detected = begun.elapsed();
    arbees_core::install_tls();
    let port = plane.programs.all().find(|(name, ..)| *name == "projector").unwrap().1;
    let answer = reqwest::get(format!("http://127.0.0.1:{port}/v1/games")).await.unwrap();
    let (status, problem) = (answer.status().as_u16(), answer.text().await.unwrap());
    assert!(status == 503 && problem.contains("away since"), "{status} {problem}");
    tokio::time::sleep(away.saturating_sub(begun.elapsed())).await;
    let (lasted, begun) = (begun.elapsed(), Instant::now());
    plane.postgres.start_again().await.unwrap();
    fill(&plane, 100_000).await;
    plane.verified().await;
    let recovered = begun.elapsed();
    let probe = || async { is((raised(&plane, KIND).await, settled(&plane, KIND).await), (1, 1)) };
    wait::until("the end to be told", PATIENCE, probe).await.unwrap();
    row(&format!("Postgres stopped for {lasted:.0?}, 100,000 events"), detected, recovered, 0, 1);
    assert!(plane.metric("projector", "arbees_database_retries_total").await > 0.0, "retries are seen in figures");

    // Out of connections, with the projector's own cut off.
    let mut guests = Vec::new();
    while let Ok(guest) = PgConnection::connect(&plane.postgres.url()).await {
        guests.push(guest);
    }
    let first = guests.first_mut().unwrap();
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'arbees-%'";
    let cut: i64 = sqlx::query_scalar(sql).fetch_one(first).await.unwrap();
    // Who cut them off takes their places, before they do.
    while let Ok(guest) = PgConnection::connect(&plane.postgres.url()).await {
        guests.push(guest);
    }
    fill(&plane, 101_000).await;
    // Longer than all tries of a transaction.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'arbees-projector'";
    let inside: i64 = sqlx::query_scalar(sql).fetch_one(guests.first_mut().unwrap()).await.unwrap();
    assert_eq!(inside, 0, "it has no room");
    let begun = Instant::now();
    for guest in guests {
        guest.close().await.unwrap();
    }
    plane.verified().await;
    row(&format!("Postgres full of clients, {cut} connections cut"), Duration::ZERO, begun.elapsed(), 0, 0);

    // A deadlock of the projector's transaction with another one, which the server ends.
    let retries = plane.metric("projector", "arbees_database_retries_total").await;
    let pool = plane.pool().await;
    let mut other = db::begin(&pool).await.unwrap();
    // Whoever waits for a second looks for deadlocks first; this one never does.
    other.execute("SET LOCAL deadlock_timeout = '10min'").await.unwrap();
    let hold = "SELECT 1 FROM arbees.projection_checkpoints WHERE stream = 'CONTROL' FOR UPDATE";
    other.execute(hold).await.unwrap();
    // One turn: the projector looks for deadlocks once, a second after it begins to wait.
    let end = plane.log.bounds(arbees_core::log::CONTROL).await.unwrap().1;
    fill(&plane, end + 1).await;
    let waits = || async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'arbees-projector' AND wait_event_type = 'Lock'";
        let n: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.map_err(|e| e.to_string())?;
        is(n, 1)
    };
    wait::until("the projector to wait for its checkpoint", PATIENCE, waits).await.unwrap();
    let begun = Instant::now();
    // It has written all of these.
    other.execute("UPDATE arbees.games SET phase = phase").await.unwrap();
    other.rollback().await.unwrap();
    plane.verified().await;
    row("a deadlock with the projector", Duration::ZERO, begun.elapsed(), 0, 0);
    assert!(plane.metric("projector", "arbees_database_retries_total").await > retries, "it was tried again");
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    let open: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.unwrap();
    assert_eq!(open, 0);
    plane.stop(&SAID).await;
}
