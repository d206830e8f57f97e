//! The projector: each stream in batches, each batch in one transaction with its checkpoint.
//!
//! A crash anywhere leaves rows and checkpoint as they were, and the batch comes again. Whatever goes wrong, the cure is the
//! same: forget all that is in memory and begin at the checkpoint.

use arbees_core::health::Health;
use arbees_core::log::{ALERTS, CONTROL, GAME_STATES, HEARTBEATS, Log, ReadError, Stored, Tail};
use arbees_core::retry::Policy;
use sqlx::PgPool;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::alerts::{self, AlertBook, AlertChanges};
use crate::checkpoint::{self, ApplyError};
use crate::control::{Changes, ControlFold};
use crate::{game_states, heartbeats, letters};

/// Messages in a batch at most: Postgres gets no faster beyond 1,000 rows a statement, but a game that is touched several times
/// in a batch is written once.
const MAX_MESSAGES: usize = 4_000;
/// Bytes in a batch at most, so that large events can't fill the memory.
const MAX_BYTES: usize = 8 << 20;

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

/// Projects all streams until asked to stop.
pub async fn run(log: &Log, pool: &PgPool, health: &Health, stop: &CancellationToken) {
    let streams = [CONTROL, HEARTBEATS, GAME_STATES, ALERTS].map(|stream| {
        let (log, pool, health, stop) = (log.clone(), pool.clone(), health.clone(), stop.clone());
        // A task of its own: a transaction is never dropped halfway by a select of ours.
        tokio::spawn(async move { project(&log, &pool, &health, &stop, stream).await })
    });
    for task in streams {
        if let Err(error) = task.await {
            tracing::error!(%error, "projection ended");
        }
    }
}

async fn project(log: &Log, pool: &PgPool, health: &Health, stop: &CancellationToken, stream: &'static str) {
    let mut delays = Policy::patient().delays();
    let mut is_away = false;
    while !stop.is_cancelled() {
        let attempt = Projection { log, pool, health, stop, stream };
        let Err(error) = attempt.follow(&mut delays, &mut is_away).await else { return };
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
}

impl Projection<'_> {
    async fn follow(&self, delays: &mut arbees_core::retry::Delays, is_away: &mut bool) -> Result<(), Interrupted> {
        let mut at = checkpoint::load(self.pool, self.stream).await?;
        let (_, end) = self.log.bounds(self.stream).await?;
        if end < at {
            return Err(Interrupted::LogBehind { stream: self.stream, end, at });
        }
        self.health.ok(self.stream);
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
            at = self.write(&batch, at).await?;
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

    async fn write(&self, batch: &Batch, at: u64) -> Result<u64, Interrupted> {
        let to = batch.messages.last().map_or(at, |m| m.sequence);
        let mut tx = self.pool.begin().await?;
        match (self.stream, &batch.changes) {
            (_, Changed::Control(changes)) => {
                letters::archive(&mut tx, CONTROL, &batch.messages).await?;
                changes.write(&mut tx).await?;
            }
            (_, Changed::Alerts(changes)) => alerts::write(&mut tx, &batch.messages, changes).await?,
            (HEARTBEATS, Changed::Rows) => heartbeats::write(&mut tx, &batch.messages).await?,
            (_, Changed::Rows) => game_states::write(&mut tx, &batch.messages).await?,
        }
        checkpoint::advance(&mut tx, self.stream, at, to).await?;
        tx.commit().await?;
        Ok(to)
    }
}

/// What is written in one transaction.
struct Batch {
    messages: Vec<Stored>,
    changes: Changed,
}

/// What the messages come to.
enum Changed {
    Control(Changes),
    Alerts(AlertChanges),
    /// Each message is a row of its own.
    Rows,
}

/// What is folded while the database works.
enum Fold {
    Control(Box<ControlFold>),
    Alerts(AlertBook),
    None,
}

impl Fold {
    fn add(&mut self, messages: &[Stored]) -> Changed {
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
