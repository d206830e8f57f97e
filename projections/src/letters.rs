//! Messages as they are: all of CONTROL in the archive, what is no valid event in the dead letters.

use arbees_core::log::Stored;
use sqlx::{Postgres, Transaction};

use crate::checkpoint::signed;
use crate::rows::{clean, time};

/// Archives `messages` of `stream`.
pub async fn archive(tx: &mut Transaction<'_, Postgres>, stream: &str, messages: &[Stored]) -> Result<(), sqlx::Error> {
    if messages.is_empty() {
        return Ok(());
    }
    let sql = "INSERT INTO arbees.event_archive (stream, sequence, subject, event_type, headers, payload, stored_at)
               SELECT $1, s, sub, typ, hdr::jsonb, pay, at
               FROM unnest($2::bigint[], $3::text[], $4::text[], $5::text[], $6::bytea[], $7::timestamptz[])
                    AS t (s, sub, typ, hdr, pay, at)
               ON CONFLICT (stream, sequence) DO NOTHING";
    let at = |m: &Stored| time(m.stored_at_ns / 1_000);
    sqlx::query(sql)
        .bind(stream)
        .bind(messages.iter().map(|m| signed(m.sequence)).collect::<Vec<_>>())
        .bind(messages.iter().map(|m| clean(&m.subject)).collect::<Vec<_>>())
        .bind(messages.iter().map(|m| clean(m.header(arbees_proto::envelope::HEADER_TYPE))).collect::<Vec<_>>())
        .bind(messages.iter().map(headers_json).collect::<Vec<_>>())
        .bind(messages.iter().map(|m| m.payload.as_ref()).collect::<Vec<_>>())
        .bind(messages.iter().map(at).collect::<Vec<_>>())
        .execute(&mut **tx)
        .await
        .map(drop)
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
