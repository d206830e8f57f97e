//! Messages as they are: all of CONTROL in the archive, what is no valid event in the dead letters.

use arbees_core::db;
use arbees_core::log::{GAME_STATES, HEARTBEATS, Stored};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Postgres, Row as _, Transaction};

use crate::checkpoint::{signed, unsigned};
use crate::game_states::StateRow;
use crate::rebuild;
use crate::rows::clean;

/// Archives `messages` of `stream`. By COPY, which is twice as fast as any INSERT; that none of them is there yet is certain,
/// because the checkpoint moves in the same transaction.
pub async fn archive(tx: &mut Transaction<'_, Postgres>, stream: &str, messages: &[Stored]) -> Result<(), sqlx::Error> {
    let sql = "COPY event_archive (stream, sequence, subject, event_type, headers, payload, stored_at)
               FROM STDIN (FORMAT binary)";
    let mut rows = CopyRows::new(7);
    for message in messages {
        rows.begin();
        rows.field(stream.as_bytes());
        rows.field(&signed(message.sequence).to_be_bytes());
        rows.field(clean(&message.subject).as_bytes());
        rows.field(clean(message.header(arbees_proto::envelope::HEADER_TYPE)).as_bytes());
        rows.field(headers_json(message).as_bytes());
        rows.field(&message.payload);
        rows.field(&(message.stored_at_ns / 1_000 - POSTGRES_EPOCH_US).to_be_bytes());
    }
    let mut copy = (**tx).copy_in_raw(sql).await?;
    copy.send(rows.finish()).await?;
    copy.finish().await.map(drop)
}

/// 2000-01-01, from where Postgres counts time, in microseconds since the Unix epoch.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// Rows in Postgres' binary COPY format (PostgreSQL documentation, COPY, "Binary Format").
struct CopyRows {
    bytes: Vec<u8>,
    columns: i16,
}

impl CopyRows {
    fn new(columns: i16) -> Self {
        // The signature, no flags, no header extension.
        let mut bytes = b"PGCOPY\n\xff\r\n\0".to_vec();
        bytes.extend([0; 8]);
        Self { bytes, columns }
    }

    fn begin(&mut self) {
        self.bytes.extend(self.columns.to_be_bytes());
    }

    fn field(&mut self, value: &[u8]) {
        // A message is far below 2 GiB: the server takes 1 MiB.
        self.bytes.extend(i32::try_from(value.len()).unwrap_or(0).to_be_bytes());
        self.bytes.extend(value);
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.extend((-1i16).to_be_bytes());
        self.bytes
    }
}

/// A message that is no valid event, and why.
pub type DeadLetter = (Stored, String);

/// Puts `letters` of `stream` aside.
pub async fn bury(tx: &mut Transaction<'_, Postgres>, stream: &str, letters: &[DeadLetter]) -> Result<(), sqlx::Error> {
    for (message, error) in letters {
        tracing::error!(stream, sequence = message.sequence, error, "message is no valid event, put aside");
        let sql = "INSERT INTO dead_letters (stream, sequence, subject, headers, payload, error)
                   VALUES ($1, $2, $3, $4::jsonb, $5, $6) ON CONFLICT DO NOTHING";
        sqlx::query(sql)
            .bind(stream)
            .bind(signed(message.sequence))
            .bind(clean(&message.subject))
            .bind(headers_json(message))
            .bind(message.payload.as_ref())
            .bind(clean(error))
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}

/// A message that was put aside.
#[derive(Clone, Debug, Serialize)]
pub struct Letter {
    pub stream: String,
    pub sequence: i64,
    pub subject: String,
    pub error: String,
    /// As JSON.
    pub headers: String,
    /// Byte by byte, in hexadecimal.
    pub payload: String,
}

/// All that was put aside, or only of `stream`, or only the message at `sequence` there.
///
/// # Errors
/// When the database cannot be asked.
pub async fn all(pool: &PgPool, stream: Option<&str>, sequence: Option<i64>) -> Result<Vec<Letter>, sqlx::Error> {
    let sql = "SELECT stream, sequence, subject, error, headers::text, encode(payload, 'hex') FROM dead_letters
               WHERE ($1::text IS NULL OR stream = $1) AND ($2::bigint IS NULL OR sequence = $2) ORDER BY stream, sequence";
    let rows = sqlx::query(sql).bind(stream).bind(sequence).fetch_all(pool).await?;
    let letter = |r: PgRow| Letter {
        stream: r.get(0),
        sequence: r.get(1),
        subject: r.get(2),
        error: r.get(3),
        headers: r.get(4),
        payload: r.get(5),
    };
    Ok(rows.into_iter().map(letter).collect())
}

/// What became of a message that was tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Retried {
    /// It is in the tables now.
    Applied,
    /// It is no valid event to this program, either.
    StillInvalid,
    /// What follows from it depends on all that came before: only a rebuild takes it in.
    NeedsRebuild,
}

/// Tries a message again, as a newer program may read what an older one could not.
///
/// # Errors
/// When the database cannot be asked.
pub async fn retry(pool: &PgPool, letter: &Letter) -> Result<Retried, sqlx::Error> {
    let stream = match letter.stream.as_str() {
        GAME_STATES => GAME_STATES,
        HEARTBEATS => HEARTBEATS,
        _ => return Ok(Retried::NeedsRebuild),
    };
    let mut tx = db::begin(pool).await?;
    rebuild::keep_tables(&mut tx).await?;
    // The projector of this stream waits meanwhile.
    let hold = "SELECT sequence FROM projection_checkpoints WHERE stream = $1 FOR UPDATE";
    sqlx::query(hold).bind(stream).execute(&mut *tx).await?;
    let sql = "DELETE FROM dead_letters WHERE stream = $1 AND sequence = $2 RETURNING subject, headers::text, payload";
    let taken = sqlx::query(sql).bind(stream).bind(letter.sequence).fetch_optional(&mut *tx).await?;
    let Some(row) = taken else { return Ok(Retried::Applied) };
    let headers = serde_json::from_str(row.get(1)).unwrap_or_default();
    let message = [Stored::archived(unsigned(letter.sequence), 0, row.get(0), &headers, row.get(2))];
    if let Ok(row) = StateRow::of(&message[0])
        && stream == GAME_STATES
    {
        // What came after it was let in or dropped without it.
        let sql = "SELECT EXISTS (SELECT 1 FROM game_states WHERE game_id = $1 AND sequence > $2)
                       OR EXISTS (SELECT 1 FROM game_epochs WHERE game_id = $1 AND epoch > $3)";
        let asked = sqlx::query_scalar(sql).bind(&row.game_id).bind(row.sequence).bind(row.epoch);
        if asked.fetch_one(&mut *tx).await? {
            tx.rollback().await?;
            return Ok(Retried::NeedsRebuild);
        }
    }
    match stream {
        GAME_STATES => crate::game_states::write(&mut tx, &message).await?,
        _ => crate::heartbeats::write(&mut tx, &message).await?,
    }
    // What is still no valid event has been put aside again.
    let sql = "SELECT count(*) FROM dead_letters WHERE stream = $1 AND sequence = $2";
    let aside: i64 = sqlx::query_scalar(sql).bind(stream).bind(letter.sequence).fetch_one(&mut *tx).await?;
    tx.commit().await?;
    Ok(if aside == 0 { Retried::Applied } else { Retried::StillInvalid })
}

fn headers_json(message: &Stored) -> String {
    let headers = message.all_headers().into_iter().map(|(name, value)| (clean(&name), clean(&value).into()));
    serde_json::Value::Object(headers.collect()).to_string()
}
