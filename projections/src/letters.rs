//! Messages as they are: all of CONTROL in the archive, what is no valid event in the dead letters.

use arbees_core::log::Stored;
use sqlx::{Postgres, Transaction};

use crate::checkpoint::signed;
use crate::rows::clean;

/// Archives `messages` of `stream`. By COPY, which is twice as fast as any INSERT; that none of them is there yet is certain,
/// because the checkpoint moves in the same transaction.
pub async fn archive(tx: &mut Transaction<'_, Postgres>, stream: &str, messages: &[Stored]) -> Result<(), sqlx::Error> {
    let sql = "COPY arbees.event_archive (stream, sequence, subject, event_type, headers, payload, stored_at)
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
        let sql = "INSERT INTO arbees.dead_letters (stream, sequence, subject, headers, payload, error)
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

fn headers_json(message: &Stored) -> String {
    let headers = message.all_headers().into_iter().map(|(name, value)| (clean(&name), clean(&value).into()));
    serde_json::Value::Object(headers.collect()).to_string()
}
