//! The projector and a rebuild, each beside bare UNNEST upserts of one table in batches of 1,000.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use arbees_core::config::Env;
use arbees_core::db::{self, DbConfig, migrate};
use arbees_core::health::Health;
use arbees_core::log::CONTROL;
use arbees_projections::{checkpoint, projector, rebuild, verify};
use arbees_testkit::history::History;
use arbees_testkit::servers::{Binaries, Nats};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Executor as _, PgPool};
use tokio_util::sync::CancellationToken;

use crate::{Args, connect, postgres, rates};

const BATCH: u64 = 1_000;

/// Measures both on one Postgres.
pub async fn run(binaries: &Binaries, folder: &Path, args: &Args) -> Result<()> {
    let mut nats = Nats::start(binaries, &folder.join("nats-projected")).await?;
    let log = connect(&nats.url()).await?;
    log.ensure_streams().await?;
    let mut history = History::new(10, 1_000);
    let never = CancellationToken::new();
    while history.state().head.sequence < args.projected {
        let (expected, events) = history.turn();
        log.append(expected, &events, &never).await?;
    }
    let (_, end) = log.bounds(CONTROL).await?;
    let mut server = postgres(binaries, &folder.join("postgres")).await?;
    let pool = PgPoolOptions::new().max_connections(8).connect_with(db::options(&server.url(), db::SCHEMA)?).await?;
    migrate(&pool).await?;

    let raw_time = upserts(&pool, end).await?;
    let stop = CancellationToken::new();
    let begun = Instant::now();
    let projecting = async {
        projector::run(&log, &pool, &Health::new("bench", &[]), &stop).await;
        Ok::<_, anyhow::Error>(())
    };
    let watching = async {
        while checkpoint::load(&pool, CONTROL).await? < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let took = begun.elapsed();
        stop.cancel();
        Ok(took)
    };
    let ((), took) = tokio::try_join!(projecting, watching)?;
    rates("projector, events of CONTROL into 5 tables", end, took, end, raw_time);
    let report = verify::verify(&log, &pool, |_, _| ()).await?;
    if report.differences != 0 {
        bail!("the tables differ: {:?}", report.first_differences);
    }
    // Strangers' tables would be refused: a rebuild takes theirs along.
    pool.execute("DROP TABLE bare, bare_checkpoint").await?;
    let url = server.url();
    let mut env = Env::new(move |name: &str| (name == "DATABASE_URL").then(|| url.clone()));
    let config = DbConfig::read(&mut env);
    let config = env.finish(config)?;
    let rebuilt = rebuild::build(&log, &config, None, |_| ()).await?.swap().await?;
    rates("rebuild of all tables, swapped", rebuilt.messages, Duration::from_secs_f64(rebuilt.seconds), end, raw_time);
    println!("(the live tables stood still for {:.0} ms)", rebuilt.stopped_ms);
    pool.close().await;
    server.stop().await?;
    nats.stop().await
}

/// Upserts of `rows` random keys out of a million into a table that holds them, with a checkpoint in the same transaction.
async fn upserts(pool: &PgPool, rows: u64) -> Result<Duration> {
    pool.execute(
        "CREATE TABLE bare (id bigint PRIMARY KEY, shard text, phase text, seq bigint, at timestamptz);
         CREATE TABLE bare_checkpoint (seq bigint); INSERT INTO bare_checkpoint VALUES (0);
         INSERT INTO bare SELECT i, 'shard_00', 'live', 0, now() FROM generate_series(1, 1000000) i;",
    )
    .await?;
    let begun = Instant::now();
    for batch in 0..rows.div_ceil(BATCH) {
        // Multiplying by an odd number walks over all keys in no order that an index would like.
        let key = |i: u64| i64::try_from((batch * BATCH + i) * 7_919_993 % 1_000_000 + 1).unwrap_or(1);
        let keys: Vec<i64> = (0..BATCH).map(key).collect();
        let mut tx = db::begin(pool).await?;
        let sql =
            "INSERT INTO bare SELECT k, s, p, q, a FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[],
                   $5::timestamptz[]) AS t (k, s, p, q, a) ON CONFLICT (id) DO UPDATE SET shard = excluded.shard,
                   phase = excluded.phase, seq = excluded.seq, at = excluded.at WHERE bare.seq < excluded.seq";
        let n = usize::try_from(BATCH)?;
        sqlx::query(sql)
            .bind(&keys)
            .bind(vec!["shard_01"; n])
            .bind(vec!["suspended"; n])
            .bind(vec![i64::try_from(batch)? + 1; n])
            .bind(vec![chrono::Utc::now(); n])
            .execute(&mut *tx)
            .await?;
        sqlx::query("UPDATE bare_checkpoint SET seq = $1").bind(i64::try_from(batch)?).execute(&mut *tx).await?;
        tx.commit().await?;
    }
    Ok(begun.elapsed())
}
