//! The projector: each stream in batches, each batch in one transaction with its checkpoint.
//!
//! A crash anywhere leaves rows and checkpoint as they were, and the batch comes again. Whatever goes wrong, the cure is the
//! same: forget all that is in memory and begin at the checkpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arbees_core::db;
use arbees_core::health::Health;
use arbees_core::log::{ALERTS, CONTROL, GAME_STATES, HEARTBEATS, Log, ReadError, Stored, Tail};
use arbees_core::metrics::{figure, gauge, histogram};
use arbees_core::retry::{GaveUp, Policy};
use arbees_core::time::now_us;
use arbees_core::traces;
use sqlx::{Connection as _, PgPool, Postgres, Transaction};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::alerts::{self, AlertBook, AlertChanges};
use crate::checkpoint::{self, ApplyError};
use crate::control::{Changes, ControlFold};
use crate::{game_states, heartbeats, letters, rebuild};

/// Messages in a batch at most: Postgres gets no faster beyond 1,000 rows a statement, but a game that is touched several times
/// in a batch is written once.
pub(crate) const MAX_MESSAGES: usize = 4_000;
/// Bytes in a batch at most, so that large events can't fill the memory.
const MAX_BYTES: usize = 8 << 20;
/// The parts of health that say whether the database takes what is written: one that only answers is not enough.
pub const WRITES: [(&str, &str); 4] = [
    (CONTROL, "CONTROL written"),
    (HEARTBEATS, "HEARTBEATS written"),
    (GAME_STATES, "GAME_STATES written"),
    (ALERTS, "ALERTS written"),
];

/// The part for `stream`.
fn writes(stream: &str) -> &'static str {
    WRITES.iter().find(|(known, _)| *known == stream).map_or("written", |(_, part)| part)
}

/// How often the lag is told.
const TELL_LAG_EVERY: Duration = Duration::from_secs(1);
/// A transaction is tried again before all is begun anew at the checkpoint.
const WRITE_AGAIN: Policy = db::retry_policy();

/// Why a stream's projection began anew.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("log: {0}")]
    Log(#[from] ReadError),
    #[error("the stream has lost its tail")]
    TailEnded,
    #[error(
        "{stream} ends at {end}, and its tables are at {at}: the log was replaced or has lost its tail; see operations.md"
    )]
    LogBehind { stream: &'static str, end: u64, at: u64 },
}

impl From<sqlx::Error> for Interrupted {
    fn from(error: sqlx::Error) -> Self {
        Self::Apply(ApplyError::Database(error))
    }
}

/// How far one stream's tables are: its sequence, and when that message was stored, in nanoseconds since the Unix epoch.
#[derive(Debug, Default)]
struct Progress {
    at: AtomicU64,
    stored_at_ns: AtomicI64,
}

/// Projects all streams until asked to stop.
pub async fn run(log: &Log, pool: &PgPool, health: &Health, stop: &CancellationToken) {
    let streams = [CONTROL, HEARTBEATS, GAME_STATES, ALERTS].map(|stream| {
        let (log, pool, health, stop) = (log.clone(), pool.clone(), health.clone(), stop.clone());
        // A task of its own: a transaction is never dropped halfway by a select of ours.
        tokio::spawn(async move {
            let progress = Arc::<Progress>::default();
            let telling = tell_lag(log.clone(), stream, progress.clone(), stop.clone());
            tokio::join!(project(&log, &pool, &health, &stop, stream, &progress), telling);
        })
    });
    for task in streams {
        if let Err(error) = task.await {
            tracing::error!(%error, "projection ended");
        }
    }
}

/// Tells how far the tables are behind the stream, in messages, and how old what they have is while they are behind.
async fn tell_lag(log: Log, stream: &'static str, progress: Arc<Progress>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(TELL_LAG_EVERY)).await.is_some() {
        let Ok((_, end)) = log.bounds(stream).await else { continue };
        let behind = end.saturating_sub(progress.at.load(Ordering::Relaxed));
        let since_ns = now_us() * 1_000 - progress.stored_at_ns.load(Ordering::Relaxed);
        let seconds = if behind == 0 { 0.0 } else { Duration::from_nanos(since_ns.unsigned_abs()).as_secs_f64() };
        gauge!("arbees_projector_lag_events", "stream" => stream).set(figure(usize::try_from(behind).unwrap_or(0)));
        gauge!("arbees_projector_lag_seconds", "stream" => stream).set(seconds);
    }
}

async fn project(
    log: &Log,
    pool: &PgPool,
    health: &Health,
    stop: &CancellationToken,
    stream: &'static str,
    progress: &Progress,
) {
    let mut delays = Policy::patient().delays();
    let mut is_away = false;
    while !stop.is_cancelled() {
        let attempt = Projection { log, pool, health, stop, stream, progress };
        let Err(error) = attempt.follow(&mut delays, &mut is_away).await else { return };
        if stop.is_cancelled() {
            return;
        }
        if !is_away {
            tracing::warn!(stream, %error, "projection interrupted, beginning again at the checkpoint");
            is_away = true;
        }
        health.failed(stream, error.to_string());
        delays.wait(stop).await;
    }
}

struct Projection<'a> {
    log: &'a Log,
    pool: &'a PgPool,
    health: &'a Health,
    stop: &'a CancellationToken,
    stream: &'static str,
    progress: &'a Progress,
}

impl Projection<'_> {
    async fn follow(&self, delays: &mut arbees_core::retry::Delays, is_away: &mut bool) -> Result<(), Interrupted> {
        let loading = self.stop.run_until_cancelled(checkpoint::load(self.pool, self.stream)).await;
        let mut at = loading.ok_or(ApplyError::Canceled)??;
        let (_, end) = self.log.bounds(self.stream).await?;
        if end < at {
            return Err(Interrupted::LogBehind { stream: self.stream, end, at });
        }
        self.health.ok(self.stream);
        self.progress.at.store(at, Ordering::Relaxed);
        self.progress.stored_at_ns.store(now_us() * 1_000, Ordering::Relaxed);
        let fold = match self.stream {
            CONTROL => Fold::Control(Box::new(ControlFold::new(self.log.fold(Some(at)).await?))),
            ALERTS => Fold::Alerts(self.alerts_before(at).await?),
            _ => Fold::None,
        };
        let tail = self.log.tail(self.stream, Vec::new(), at + 1);
        tracing::info!(stream = self.stream, from = at + 1, "projecting");
        // The next batch is folded while the database works on this one.
        let (gathered, mut batches) = mpsc::channel(1);
        tokio::spawn(gather(tail, fold, gathered));
        loop {
            let batch = tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                batch = batches.recv() => batch,
            };
            // Only a stream that has lost its tail ends one: the next attempt finds out.
            let Some(batch) = batch else { return Err(Interrupted::TailEnded) };
            at = self.write_surely(&batch, at).await?;
            let stored_at_ns = batch.messages.last().map_or(0, |m| m.stored_at_ns);
            self.progress.stored_at_ns.store(stored_at_ns, Ordering::Relaxed);
            self.progress.at.store(at, Ordering::Relaxed);
            if self.stream == CONTROL {
                batch.messages.iter().for_each(|m| traces::took("project", m, "projector"));
            }
            self.health.ok(self.stream);
            delays.reset();
            if std::mem::take(is_away) {
                tracing::info!(stream = self.stream, sequence = at, "projecting again");
            }
        }
    }

    /// The incidents up to `at`, all of which the tables have.
    async fn alerts_before(&self, at: u64) -> Result<AlertBook, ReadError> {
        let mut book = AlertBook::load(self.log, at).await?;
        drop(book.take());
        Ok(book)
    }

    /// Writes a batch, again when that may help. An answer that was lost after the commit shows as a checkpoint that moved:
    /// then all begins at the checkpoint.
    async fn write_surely(&self, batch: &Batch, at: u64) -> Result<u64, Interrupted> {
        let began = Instant::now();
        let writing = db::retrying(self.stream, &WRITE_AGAIN, self.stop, || self.write(batch, at));
        let to = writing.await.map_err(|gave_up| {
            let story = gave_up.to_string();
            match gave_up {
                GaveUp::Canceled => Interrupted::TailEnded,
                GaveUp::Permanent(error) | GaveUp::Exhausted { last: error, .. } => {
                    if matches!(error, ApplyError::Database(_)) {
                        self.health.failed(writes(self.stream), story);
                    }
                    Interrupted::Apply(error)
                }
            }
        })?;
        self.health.ok(writes(self.stream));
        histogram!("arbees_projector_write_seconds", "stream" => self.stream).record(began.elapsed());
        histogram!("arbees_projector_batch_events", "stream" => self.stream).record(figure(batch.messages.len()));
        Ok(to)
    }

    async fn write(&self, batch: &Batch, at: u64) -> Result<u64, ApplyError> {
        // To wait for a connection may be given up at any moment; a transaction may not.
        let connection = self.stop.run_until_cancelled(self.pool.acquire()).await;
        let mut connection = connection.ok_or(ApplyError::Canceled)??;
        let mut tx = connection.begin().await?;
        rebuild::keep_tables(&mut tx).await?;
        let to = write_batch(&mut tx, self.stream, batch, at).await?;
        tx.commit().await?;
        Ok(to)
    }
}

/// Writes a batch of `stream`, whose tables are at `at`, and its checkpoint.
pub(crate) async fn write_batch(
    tx: &mut Transaction<'_, Postgres>,
    stream: &'static str,
    batch: &Batch,
    at: u64,
) -> Result<u64, ApplyError> {
    let to = batch.messages.last().map_or(at, |m| m.sequence);
    match (stream, &batch.changes) {
        (_, Changed::Control(changes)) => {
            letters::archive(tx, CONTROL, &batch.messages).await?;
            changes.write(tx).await?;
        }
        (_, Changed::Alerts(changes)) => alerts::write(tx, &batch.messages, changes).await?,
        (HEARTBEATS, Changed::Rows) => heartbeats::write(tx, &batch.messages).await?,
        (_, Changed::Rows) => game_states::write(tx, &batch.messages).await?,
    }
    checkpoint::advance(tx, stream, at, to).await?;
    Ok(to)
}

/// What is written in one transaction.
pub(crate) struct Batch {
    pub messages: Vec<Stored>,
    pub changes: Changed,
}

/// What the messages come to.
pub(crate) enum Changed {
    Control(Changes),
    Alerts(AlertChanges),
    /// Each message is a row of its own.
    Rows,
}

/// What is folded while the database works.
#[derive(Debug)]
pub(crate) enum Fold {
    Control(Box<ControlFold>),
    Alerts(AlertBook),
    None,
}

impl Fold {
    pub fn add(&mut self, messages: &[Stored]) -> Changed {
        match self {
            Self::Control(fold) => {
                messages.iter().for_each(|stored| fold.add(stored));
                Changed::Control(fold.take())
            }
            Self::Alerts(book) => {
                messages.iter().for_each(|stored| book.add(stored));
                Changed::Alerts(book.take())
            }
            Self::None => Changed::Rows,
        }
    }
}

/// Gathers what is ready into batches, folded where the stream is CONTROL, until nobody takes them.
async fn gather(mut tail: Tail, mut fold: Fold, to: mpsc::Sender<Batch>) {
    loop {
        let first = tokio::select! {
            () = to.closed() => return,
            first = tail.next() => first,
        };
        let Some(first) = first else { return };
        let mut bytes = first.payload.len();
        let mut messages = vec![first];
        while messages.len() < MAX_MESSAGES
            && bytes < MAX_BYTES
            && let Some(next) = tail.ready()
        {
            bytes += next.payload.len();
            messages.push(next);
        }
        let changes = fold.add(&messages);
        if to.send(Batch { messages, changes }).await.is_err() {
            return;
        }
    }
}
