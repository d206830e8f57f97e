//! How far each stream has been applied: read at start, moved by compare-and-set in the transaction of the rows.

use arbees_core::db::DatabaseFailure;
use sqlx::{PgPool, Postgres, Row as _, Transaction};

/// Why a batch was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    #[error("canceled")]
    Canceled,
    #[error("another projector moved the checkpoint of {stream} away from {expected}")]
    Moved { stream: &'static str, expected: u64 },
}

impl DatabaseFailure for ApplyError {
    fn database(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Database(error) => Some(error),
            Self::Moved { .. } | Self::Canceled => None,
        }
    }
}

/// The sequence up to which `stream` is applied; 0 for none of it.
pub async fn load(pool: &PgPool, stream: &'static str) -> Result<u64, sqlx::Error> {
    let sql = "INSERT INTO projection_checkpoints (stream, sequence) VALUES ($1, 0) ON CONFLICT DO NOTHING";
    sqlx::query(sql).bind(stream).execute(pool).await?;
    let sql = "SELECT sequence FROM projection_checkpoints WHERE stream = $1";
    Ok(unsigned(sqlx::query(sql).bind(stream).fetch_one(pool).await?.get(0)))
}

/// Moves the checkpoint on from `from` to `to`, never back.
pub async fn advance(
    tx: &mut Transaction<'_, Postgres>,
    stream: &'static str,
    from: u64,
    to: u64,
) -> Result<(), ApplyError> {
    let sql = "UPDATE projection_checkpoints SET sequence = $3, updated_at = now()
               WHERE stream = $1 AND sequence = $2 AND sequence < $3";
    let moved = sqlx::query(sql).bind(stream).bind(signed(from)).bind(signed(to)).execute(&mut **tx).await?;
    if moved.rows_affected() == 1 { Ok(()) } else { Err(ApplyError::Moved { stream, expected: from }) }
}

/// A sequence or an epoch as Postgres holds it. Both stay far below 2^63.
#[must_use]
pub fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The way back.
#[must_use]
pub fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
