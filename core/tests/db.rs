//! The database: what is tried again, and that nobody who is dropped halfway leaves a transaction behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arbees_core::config::Env;
use arbees_core::db::{self, DbConfig};
use arbees_core::retry::GaveUp;
use arbees_testkit::link::Link;
use arbees_testkit::servers::{Binaries, Postgres, Scratch};
use arbees_testkit::wait;
use sqlx::{Connection as _, Executor as _, PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);

async fn postgres(scratch: &Scratch) -> Postgres {
    let binaries = Binaries::find(&|line| println!("{line}")).unwrap();
    Postgres::start(&binaries, scratch.path()).await.unwrap()
}

fn config(url: &str) -> DbConfig {
    let url = url.to_owned();
    let mut env = Env::new(move |name: &str| match name {
        "DATABASE_URL" => Some(url.clone()),
        "DB_POOL_MAX_CONNECTIONS" => Some("8".to_owned()),
        "DB_POOL_MIN_CONNECTIONS" => Some("0".to_owned()),
        "DB_POOL_ACQUIRE_TIMEOUT_SECS" => Some("2".to_owned()),
        _ => None,
    });
    let config = DbConfig::read(&mut env);
    env.finish(config).unwrap()
}

async fn in_transaction(pool: &PgPool) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn whoever_is_dropped_at_any_moment_leaves_no_transaction_behind_and_no_half_of_one() {
    let scratch = Scratch::new("aborts").unwrap();
    let postgres = postgres(&scratch).await;
    let pool = config(&postgres.url()).pool_in("test", "public").unwrap();
    let watching = PgPool::connect(&postgres.url()).await.unwrap();
    watching.execute("CREATE TABLE pairs (n int, half int)").await.unwrap();
    // How many got into the middle, so that being dropped there is seen to have happened.
    let begun = Arc::new(AtomicU32::new(0));
    let work = |n: i32| {
        let (pool, begun) = (pool.clone(), begun.clone());
        async move {
            let mut tx = db::begin(&pool).await?;
            sqlx::query("INSERT INTO pairs VALUES ($1, 1)").bind(n).execute(&mut *tx).await?;
            begun.fetch_add(1, Ordering::Relaxed);
            // A moment between two statements, so that many aborts fall there.
            tx.execute("SELECT pg_sleep(0.002)").await?;
            sqlx::query("INSERT INTO pairs VALUES ($1, 2)").bind(n).execute(&mut *tx).await?;
            tx.commit().await
        }
    };
    let eight = async |from: i32| {
        let done = futures::future::join_all((from..from + 8).map(&work)).await;
        done.into_iter().for_each(|one: Result<(), sqlx::Error>| one.unwrap());
    };
    // How long it takes here, over connections that stand: the aborts are spread over twice that.
    eight(-16).await;
    let since = Instant::now();
    eight(-8).await;
    let whole = since.elapsed();
    watching.execute("DELETE FROM pairs").await.unwrap();
    begun.store(0, Ordering::Relaxed);
    let mut tasks = Vec::new();
    for n in 0..400 {
        let task = tokio::spawn(work(n));
        let abort = task.abort_handle();
        let after = whole.mul_f64(f64::from(n * 977 % 400) / 200.0);
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            abort.abort();
        });
        tasks.push(task);
        if n % 8 == 7 {
            futures::future::join_all(tasks.drain(..)).await;
        }
    }
    let none = || async { if in_transaction(&watching).await == 0 { Ok(()) } else { Err("idle in transaction") } };
    wait::until("every transaction to be over", PATIENCE, none).await.unwrap();
    let sql = "SELECT count(*) FROM (SELECT n FROM pairs GROUP BY n HAVING count(*) <> 2) halves";
    let halves: i64 = sqlx::query_scalar(sql).fetch_one(&watching).await.unwrap();
    let wholes: i64 = sqlx::query_scalar("SELECT count(DISTINCT n) FROM pairs").fetch_one(&watching).await.unwrap();
    let middle = i64::from(begun.load(Ordering::Relaxed)) - wholes;
    println!("400 dropped within {:.1?}: {middle} in the middle, {wholes} whole, {halves} half", whole * 2);
    assert_eq!(halves, 0, "a half was kept");
    assert!(middle > 0, "nobody was dropped in the middle: nothing was tested");
    // The pool is as good as before.
    eight(1_000).await;
    // What it looks for is seen: a transaction that was begun behind the pool's back.
    pool.acquire().await.unwrap().execute("BEGIN").await.unwrap();
    assert_eq!(in_transaction(&watching).await, 1);
}

#[tokio::test]
async fn whoever_is_dropped_while_it_begins_leaves_no_transaction_behind() {
    let scratch = Scratch::new("beginnings").unwrap();
    let postgres = postgres(&scratch).await;
    let watching = PgPool::connect(&postgres.url()).await.unwrap();
    let link = Link::to(postgres.port()).await.unwrap();
    let url = postgres.url().replace(&format!(":{}", postgres.port()), &format!(":{}", link.port()));
    let pool = config(&url).pool_in("test", "public").unwrap();
    futures::future::join_all((0..8).map(|_| db::begin(&pool))).await.into_iter().for_each(|r| drop(r.unwrap()));
    // A way of 20 ms each way: to begin takes two questions and their answers, 80 ms.
    link.slow(Duration::from_millis(20));
    let mut given_up = 0;
    for round in 0..20 {
        let patience = Duration::from_millis(round * 5);
        let eight = (0..8).map(|_| tokio::time::timeout(patience, db::begin(&pool)));
        given_up += futures::future::join_all(eight).await.iter().filter(|one| one.is_err()).count();
    }
    link.mend();
    // Each connection that is left is back in the pool.
    let back = || async {
        let (idle, all) = (pool.num_idle(), pool.size() as usize);
        if idle == all { Ok(()) } else { Err((idle, all)) }
    };
    wait::until("every connection to be back", PATIENCE, back).await.unwrap();
    println!("160 asked to begin, {given_up} of them were dropped meanwhile");
    // 128 of them waited for less than 80 ms, and cannot have begun.
    assert!(given_up >= 128, "only {given_up}");
    assert_eq!(in_transaction(&watching).await, 0);
}

#[tokio::test]
async fn a_deadlock_is_tried_again_and_both_get_through() {
    let scratch = Scratch::new("deadlock").unwrap();
    let postgres = postgres(&scratch).await;
    let pool = config(&postgres.url()).pool_in("test", "public").unwrap();
    pool.execute("CREATE TABLE two (id int PRIMARY KEY, n int); INSERT INTO two VALUES (1, 0), (2, 0)").await.unwrap();
    let tries = AtomicU32::new(0);
    let met = tokio::sync::Barrier::new(2);
    let never = CancellationToken::new();
    let policy = db::retry_policy();
    let raise = async |first: i32, second: i32| {
        let mut has_met = false;
        let once = || {
            tries.fetch_add(1, Ordering::Relaxed);
            let waits = !std::mem::replace(&mut has_met, true);
            let (pool, met) = (&pool, &met);
            async move {
                let mut tx = db::begin(pool).await?;
                let sql = "UPDATE two SET n = n + 1 WHERE id = $1";
                sqlx::query(sql).bind(first).execute(&mut *tx).await?;
                if waits {
                    // Both hold their first row now.
                    met.wait().await;
                }
                sqlx::query(sql).bind(second).execute(&mut *tx).await?;
                tx.commit().await
            }
        };
        db::retrying("raise", &policy, &never, once).await
    };
    let (one, other) = tokio::join!(raise(1, 2), raise(2, 1));
    one.unwrap();
    other.unwrap();
    let sum: i64 = sqlx::query_scalar("SELECT sum(n) FROM two").fetch_one(&pool).await.unwrap();
    let tries = tries.into_inner();
    println!("a deadlock: {tries} tries for two transactions");
    assert_eq!((sum, tries), (4, 3));
}

#[tokio::test]
async fn too_many_clients_and_a_server_that_is_away_are_waited_for_and_given_up_with_the_story() {
    let scratch = Scratch::new("clients").unwrap();
    let mut postgres = postgres(&scratch).await;
    let config = config(&postgres.url());
    let pool = config.pool_in("test", "public").unwrap();
    let never = CancellationToken::new();
    let ask = async || {
        let asking = || sqlx::query_scalar::<_, i32>("SELECT 1").fetch_one(&pool);
        db::retrying("ask", &db::retry_policy(), &never, asking).await
    };
    assert_eq!(ask().await.unwrap(), 1);
    pool.close().await;
    let pool = config.pool_in("test", "public").unwrap();
    let mut guests = Vec::new();
    while let Ok(guest) = PgConnection::connect(&postgres.url()).await {
        guests.push(guest);
    }
    let ask = async || {
        let asking = || sqlx::query_scalar::<_, i32>("SELECT 1").fetch_one(&pool);
        db::retrying("ask", &db::retry_policy(), &never, asking).await
    };
    let leaving = async {
        tokio::time::sleep(Duration::from_millis(250)).await;
        for guest in guests.drain(..) {
            guest.close().await.unwrap();
        }
    };
    let begun = Instant::now();
    let (answer, ()) = tokio::join!(ask(), leaving);
    assert_eq!(answer.unwrap(), 1);
    println!("no room for a client for 0.25 s: answered after {:.1?}", begun.elapsed());
    postgres.kill().await;
    let begun = Instant::now();
    let error = ask().await.unwrap_err();
    assert!(matches!(error, GaveUp::Exhausted { tries: 4, .. }), "{error}");
    println!("a server that is away: after {:.1?}: {error}", begun.elapsed());
    postgres.start_again().await.unwrap();
    assert_eq!(ask().await.unwrap(), 1, "the same pool");
}
