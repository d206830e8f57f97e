//! Builds the tables anew beside the live ones, and puts them in their place at once: nobody ever sees half of it.
//!
//! A schema of its own is filled by the projector's own code up to where the live tables are. Then everybody who writes the live
//! tables is kept out, what is missing to exactly there is applied, and the schemas change their names in one transaction.

use std::time::{Duration, Instant};

use arbees_core::db::{self, DbConfig, SCHEMA};
use arbees_core::log::{ALERTS, CONTROL, GAME_STATES, HEARTBEATS, Log, ReadError};
use arbees_fleet::State;
use serde::Serialize;
use sqlx::migrate::MigrateError;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection, PgPool};
use sqlx::{Postgres, Transaction};
use tokio::sync::mpsc;

use crate::alerts::AlertBook;
use crate::checkpoint::{self, ApplyError, signed, unsigned};
use crate::control::ControlFold;
use crate::projector::{Batch, Fold, MAX_MESSAGES, write_batch};

/// Where the new tables are built.
const SHADOW: &str = "arbees_rebuild";
/// What the old ones are called until they are gone.
const OLD: &str = "arbees_old";
/// Messages that may be missing when the live tables are stopped: less than the projector writes at once.
const NEAR: u64 = 500;
/// The lock that only one rebuild at a time can have.
const ONE_REBUILD: i64 = 0x6172_6265_6573;
/// The lock that whoever writes the live tables shares, and that a rebuild has alone while it puts others in their place.
const TABLES_STAY: i64 = ONE_REBUILD + 1;
/// For how long the old tables are tried to be dropped: whoever reads them reads to the end.
const DROP_WITHIN: Duration = Duration::from_secs(60);
/// How often a stream is read again that gave less than it holds.
const READ_AGAIN: u32 = 10;
const STREAMS: [&str; 4] = [CONTROL, HEARTBEATS, GAME_STATES, ALERTS];

/// The tables that can be built anew by themselves, each with the streams that it is made from.
pub const TABLES: [(&str, &[&str]); 12] = [
    ("alert_silences", &[ALERTS]),
    ("alerts", &[ALERTS]),
    ("assignment_history", &[CONTROL]),
    ("assignments", &[CONTROL]),
    ("circuit_breakers", &[CONTROL]),
    ("dead_letters", &STREAMS),
    ("event_archive", &[CONTROL, ALERTS]),
    ("game_epochs", &[GAME_STATES]),
    ("game_states", &[GAME_STATES]),
    ("games", &[CONTROL]),
    ("heartbeats_latest", &[HEARTBEATS]),
    ("services", &[CONTROL]),
];

/// What two streams let go of after a while is taken over from the live tables: rows of sequences from $1 to below $2.
const KEPT: [(&str, &str, &str); 5] = [
    (
        GAME_STATES,
        "game_states",
        "INSERT INTO arbees_rebuild.game_states SELECT * FROM arbees.game_states
         WHERE sequence >= $1 AND sequence < $2 ON CONFLICT DO NOTHING",
    ),
    (
        GAME_STATES,
        "game_epochs",
        "INSERT INTO arbees_rebuild.game_epochs AS g SELECT * FROM arbees.game_epochs WHERE $1::bigint < $2::bigint
         ON CONFLICT (game_id) DO UPDATE SET epoch = greatest(g.epoch, excluded.epoch),
             dropped = greatest(g.dropped, excluded.dropped)",
    ),
    (
        GAME_STATES,
        "dead_letters",
        "INSERT INTO arbees_rebuild.dead_letters SELECT * FROM arbees.dead_letters
         WHERE stream = 'GAME_STATES' AND sequence >= $1 AND sequence < $2 ON CONFLICT DO NOTHING",
    ),
    (
        HEARTBEATS,
        "heartbeats_latest",
        "INSERT INTO arbees_rebuild.heartbeats_latest SELECT * FROM arbees.heartbeats_latest
         WHERE sequence >= $1 AND sequence < $2 ON CONFLICT DO NOTHING",
    ),
    (
        HEARTBEATS,
        "dead_letters",
        "INSERT INTO arbees_rebuild.dead_letters SELECT * FROM arbees.dead_letters
         WHERE stream = 'HEARTBEATS' AND sequence >= $1 AND sequence < $2 ON CONFLICT DO NOTHING",
    ),
];

/// Whoever may read or write the old tables may read or write the new ones.
const GRANTS: &str = "DO $$
DECLARE g record;
BEGIN
    FOR g IN SELECT c.relname AS name, x.privilege_type AS what, x.grantee AS who
             FROM pg_class c, aclexplode(c.relacl) x
             WHERE c.relnamespace = 'arbees'::regnamespace AND x.grantee <> c.relowner LOOP
        IF to_regclass(format('arbees_rebuild.%I', g.name)) IS NOT NULL THEN
            EXECUTE format('GRANT %s ON arbees_rebuild.%I TO %s', g.what, g.name,
                CASE WHEN g.who = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.who)) END);
        END IF;
    END LOOP;
    FOR g IN SELECT x.privilege_type AS what, x.grantee AS who
             FROM pg_namespace n, aclexplode(n.nspacl) x WHERE n.nspname = 'arbees' AND x.grantee <> n.nspowner LOOP
        EXECUTE format('GRANT %s ON SCHEMA arbees_rebuild TO %s', g.what,
            CASE WHEN g.who = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.who)) END);
    END LOOP;
END $$";

/// What would be gone with the old tables, and is not made anew: relations of others in the schema, and views elsewhere.
const STRANGERS: &str = "SELECT c.relname::text FROM pg_class c
        WHERE c.relnamespace = 'arbees'::regnamespace AND c.relkind IN ('r', 'v', 'm', 'p', 'f', 'S')
            AND to_regclass(format('arbees_rebuild.%I', c.relname)) IS NULL
    UNION SELECT v.oid::regclass::text FROM pg_depend d
        JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class v ON v.oid = r.ev_class JOIN pg_class t ON t.oid = d.refobjid
        WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
            AND t.relnamespace = 'arbees'::regnamespace AND v.relnamespace <> t.relnamespace
    ORDER BY 1";

/// Why the tables were not built anew. The live ones are as they were.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error("{0:?} is no table that is built from the log: allowed are {list}", list = names())]
    Table(String),
    #[error("another rebuild is running")]
    Busy,
    #[error("the tables of {0} were never filled, or know more than the log: build all of them anew, without --table")]
    Beyond(&'static str),
    #[error("with the old tables these would be gone, too: {}; drop them first, or name one --table after the other", .0.join(", "))]
    Strangers(Vec<String>),
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    #[error("schema {SHADOW}: {0}")]
    Migrate(#[from] MigrateError),
    #[error("log: {0}")]
    Log(#[from] ReadError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("the last step ended early: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

fn names() -> String {
    TABLES.map(|(name, _)| name).join(" ")
}

/// Whoever writes the live tables says so first: as long as its transaction lasts, none are put in their place.
///
/// # Errors
/// When the database is away.
pub async fn keep_tables(tx: &mut Transaction<'_, Postgres>) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_advisory_xact_lock_shared($1)").bind(TABLES_STAY).execute(&mut **tx).await.map(drop)
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub stream: &'static str,
    /// The sequence of that stream that is applied, and the last that is to be.
    pub done: u64,
    pub of: u64,
    /// Messages applied a second, all streams together.
    pub rate: f64,
}

/// What was done.
#[derive(Clone, Debug, Serialize)]
pub struct Rebuilt {
    /// Messages applied.
    pub messages: u64,
    pub seconds: f64,
    /// For how long the live tables stood still.
    pub stopped_ms: f64,
    /// Where CONTROL's tables are.
    pub sequence: u64,
}

/// Tables that are built, and are to be put in the place of the live ones.
#[derive(Debug)]
pub struct Built {
    /// Holds the lock for as long as it lives.
    live: PgConnection,
    building: Vec<Building>,
    table: Option<String>,
    begun: Instant,
}

/// Builds all tables anew, or only `table`, to close behind the live ones. `on` hears how far it is. May be dropped before it is
/// done: what it has built is dropped by the next one.
///
/// # Errors
/// [`RebuildError`].
pub async fn build(
    log: &Log,
    config: &DbConfig,
    table: Option<&str>,
    mut on: impl FnMut(Progress) + Send,
) -> Result<Built, RebuildError> {
    let streams = match table {
        None => &STREAMS,
        Some(name) => {
            let known = TABLES.iter().find(|(known, _)| *known == name);
            known.ok_or_else(|| RebuildError::Table(name.to_owned()))?.1
        }
    };
    let begun = Instant::now();
    let mut live = db::options(&config.url, SCHEMA)?.application_name("arbees-rebuild").connect().await?;
    let lock = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(ONE_REBUILD);
    if !lock.fetch_one(&mut live).await? {
        return Err(RebuildError::Busy);
    }
    drop_schema(&mut live, SHADOW).await?;
    drop_schema(&mut live, OLD).await?;
    let few = DbConfig { max_connections: 2, min_connections: 0, ..config.clone() };
    let shadow = few.pool_in("arbees-rebuild", SHADOW)?;
    db::migrate_in(&shadow, SHADOW).await?;
    if table.is_none() {
        refuse_strangers(&mut live).await?;
    }
    let mut building = Vec::new();
    for stream in streams {
        let next = Building::new(log, &shadow, stream).await?;
        if table.is_some() {
            next.refuse_beyond(&mut live).await?;
        }
        next.keep(&mut live, table, 0, next.first).await?;
        building.push(next);
    }
    let mut messages = 0;
    loop {
        let mut is_near = true;
        for next in &mut building {
            let (stream, to) = (next.stream, next.live_at(&mut live).await?);
            if to.saturating_sub(next.at) <= NEAR {
                continue;
            }
            is_near = false;
            let applying = next.apply(to, |at, count| {
                messages += count;
                #[allow(clippy::cast_precision_loss)]
                let rate = messages as f64 / begun.elapsed().as_secs_f64();
                on(Progress { stream, done: at, of: to, rate });
            });
            applying.await?;
        }
        if is_near {
            return Ok(Built { live, building, table: table.map(str::to_owned), begun });
        }
    }
}

impl Built {
    /// Stops the live tables, applies what is missing to exactly where they are, and puts the new ones in their place.
    ///
    /// # Errors
    /// [`RebuildError`].
    pub async fn swap(mut self) -> Result<Rebuilt, RebuildError> {
        let stopping = Instant::now();
        let mut tx = self.live.begin().await?;
        // Whoever writes the live tables now gets through first, and whoever wants to waits from here on.
        sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(TABLES_STAY).execute(&mut *tx).await?;
        if self.table.is_none() {
            refuse_strangers(&mut tx).await?;
        }
        for next in &mut self.building {
            let (to, first) = (next.live_at(&mut tx).await?, next.first);
            next.apply(to, |_, _| ()).await?;
            // What the stream has let go of meanwhile, before it was read.
            let (now_first, _) = next.log.bounds(next.stream).await?;
            next.keep(&mut tx, self.table.as_deref(), first, now_first).await?;
        }
        match &self.table {
            None => {
                tx.execute(GRANTS).await?;
                let sql = format!("ALTER SCHEMA {SCHEMA} RENAME TO {OLD}; ALTER SCHEMA {SHADOW} RENAME TO {SCHEMA}");
                tx.execute(AssertSqlSafe(sql)).await?;
            }
            Some(table) => {
                // Readers go on, and see the old rows until all is done.
                let sql = format!(
                    "DELETE FROM {SCHEMA}.{table}; INSERT INTO {SCHEMA}.{table} SELECT * FROM {SHADOW}.{table}"
                );
                tx.execute(AssertSqlSafe(sql)).await?;
            }
        }
        let at = "SELECT coalesce(max(sequence), 0) FROM arbees.projection_checkpoints WHERE stream = $1";
        let sequence = unsigned(sqlx::query_scalar(at).bind(CONTROL).fetch_one(&mut *tx).await?);
        tx.commit().await?;
        let stopped = stopping.elapsed();
        drop_leftover(&mut self.live, if self.table.is_some() { SHADOW } else { OLD }).await?;
        let messages = self.building.iter().map(|b| b.applied).sum();
        let seconds = self.begun.elapsed().as_secs_f64();
        Ok(Rebuilt { messages, seconds, stopped_ms: stopped.as_secs_f64() * 1e3, sequence })
    }
}

async fn drop_schema(connection: &mut PgConnection, schema: &str) -> Result<(), sqlx::Error> {
    connection.execute(AssertSqlSafe(format!("DROP SCHEMA IF EXISTS {schema} CASCADE"))).await.map(drop)
}

/// Drops what is not needed any more, as soon as nobody reads there.
async fn drop_leftover(live: &mut PgConnection, schema: &str) -> Result<(), sqlx::Error> {
    let deadline = Instant::now() + DROP_WITHIN;
    live.execute("SET lock_timeout = '2s'").await?;
    loop {
        match drop_schema(live, schema).await {
            Ok(()) => return Ok(()),
            Err(error) if db::is_retryable(&error) && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => {
                tracing::warn!(schema, %error, "not dropped; the next rebuild does");
                return Ok(());
            }
        }
    }
}

async fn refuse_strangers(live: &mut PgConnection) -> Result<(), RebuildError> {
    let strangers: Vec<String> = sqlx::query_scalar(STRANGERS).fetch_all(live).await?;
    if strangers.is_empty() { Ok(()) } else { Err(RebuildError::Strangers(strangers)) }
}

/// One stream's tables in the making.
#[derive(Debug)]
struct Building {
    log: Log,
    shadow: PgPool,
    stream: &'static str,
    /// The first sequence that the stream had at the beginning.
    first: u64,
    at: u64,
    /// Messages applied.
    applied: u64,
    fold: Fold,
}

impl Building {
    async fn new(log: &Log, shadow: &PgPool, stream: &'static str) -> Result<Self, RebuildError> {
        let (first, _) = log.bounds(stream).await?;
        let fold = match stream {
            CONTROL => Fold::Control(Box::new(ControlFold::new(State::default()))),
            ALERTS => Fold::Alerts(AlertBook::default()),
            _ => Fold::None,
        };
        let at = checkpoint::load(shadow, stream).await?;
        Ok(Self { log: log.clone(), shadow: shadow.clone(), stream, first, at, applied: 0, fold })
    }

    async fn checkpoint(&self, live: &mut PgConnection) -> Result<Option<u64>, RebuildError> {
        let sql = "SELECT sequence FROM arbees.projection_checkpoints WHERE stream = $1";
        let at: Option<i64> = sqlx::query_scalar(sql).bind(self.stream).fetch_optional(&mut *live).await?;
        Ok(at.map(unsigned))
    }

    /// Where the live tables are; where the stream ends if they were never filled, or are beyond it.
    async fn live_at(&self, live: &mut PgConnection) -> Result<u64, RebuildError> {
        let (_, end) = self.log.bounds(self.stream).await?;
        Ok(self.checkpoint(live).await?.map_or(end, |at| at.min(end)))
    }

    /// One table alone must end where all others of its stream do.
    async fn refuse_beyond(&self, live: &mut PgConnection) -> Result<(), RebuildError> {
        let (_, end) = self.log.bounds(self.stream).await?;
        let is_beyond = self.checkpoint(live).await?.is_none_or(|at| at > end);
        if is_beyond { Err(RebuildError::Beyond(self.stream)) } else { Ok(()) }
    }

    /// Takes over from the live tables what the stream has let go of: from one sequence to below another.
    async fn keep(
        &self,
        live: &mut PgConnection,
        table: Option<&str>,
        from: u64,
        below: u64,
    ) -> Result<(), RebuildError> {
        for (stream, kept, sql) in KEPT {
            if stream == self.stream && table.is_none_or(|wanted| wanted == kept) && from < below && below > 1 {
                sqlx::query(sql).bind(signed(from)).bind(signed(below)).execute(&mut *live).await?;
            }
        }
        Ok(())
    }

    /// Applies what comes next up to `to`; `on` hears where it is, and how many messages that took.
    async fn apply(&mut self, to: u64, mut on: impl FnMut(u64, u64)) -> Result<(), RebuildError> {
        let mut tries = 0;
        while self.at < to {
            self.read_on(to, &mut on).await?;
            let (first, _) = self.log.bounds(self.stream).await?;
            if self.at < to && first > to {
                // The stream holds nothing more up to there.
                let mut tx = db::begin(&self.shadow).await?;
                checkpoint::advance(&mut tx, self.stream, self.at, to).await?;
                tx.commit().await?;
                self.at = to;
            } else if self.at < to {
                // A replica that lags has answered.
                tries += 1;
                if tries == READ_AGAIN {
                    let why = format!("it should reach to {to}");
                    let stream = self.stream.to_owned();
                    return Err(ReadError::Interrupted { stream, at: self.at, why }.into());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    async fn read_on(&mut self, to: u64, on: &mut impl FnMut(u64, u64)) -> Result<(), RebuildError> {
        // The next messages are read while these are written.
        let (sender, mut batches) = mpsc::channel(2);
        let mut reader = self.log.read(self.stream, Vec::new(), self.at + 1, to).await?;
        let reading = tokio::spawn(async move {
            let mut messages = Vec::new();
            while let Some(stored) = reader.next().await? {
                messages.push(stored);
                if messages.len() == MAX_MESSAGES && sender.send(std::mem::take(&mut messages)).await.is_err() {
                    return Ok(());
                }
            }
            if !messages.is_empty() {
                // Nobody listens only when writing has failed, which is told there.
                let _ = sender.send(messages).await;
            }
            Ok::<(), ReadError>(())
        });
        while let Some(messages) = batches.recv().await {
            let (changes, count) = (self.fold.add(&messages), messages.len() as u64);
            let mut tx = db::begin(&self.shadow).await?;
            self.at = write_batch(&mut tx, self.stream, &Batch { messages, changes }, self.at).await?;
            tx.commit().await?;
            self.applied += count;
            on(self.at, count);
        }
        Ok(reading.await??)
    }
}
