//! HEARTBEATS into `heartbeats_latest`: the last beat of each instance in a batch is all that counts.

use std::collections::BTreeMap;

use arbees_core::log::Stored;
use arbees_proto::{Payload, v1};
use serde_json::{Value, json};
use sqlx::{Postgres, Transaction};

use crate::checkpoint::signed;
use crate::letters::{self, DeadLetter};
use crate::rows::{clean, time};

/// Writes the beats among `messages`.
pub async fn write(tx: &mut Transaction<'_, Postgres>, messages: &[Stored]) -> Result<(), sqlx::Error> {
    let mut latest = BTreeMap::new();
    let mut dead: Vec<DeadLetter> = Vec::new();
    for stored in messages {
        match stored.event() {
            Ok(event) => match (&event.payload, event.occurred_at_us) {
                (Some(Payload::Heartbeat(beat)), at) => {
                    latest.insert(stored.subject.clone(), (stored.sequence, at, beat.clone()));
                }
                // The leader's word on a heartbeat subject: what came of it is in CONTROL.
                (Some(Payload::Fence(_)), _) => {}
                _ => dead.push((stored.clone(), "no heartbeat".to_owned())),
            },
            Err(error) => dead.push((stored.clone(), error.to_string())),
        }
    }
    letters::bury(tx, arbees_core::log::HEARTBEATS, &dead).await?;
    for (sequence, at, beat) in latest.values() {
        write_one(tx, *sequence, *at, beat).await?;
    }
    Ok(())
}

async fn write_one(
    tx: &mut Transaction<'_, Postgres>,
    sequence: u64,
    at_us: i64,
    beat: &v1::Heartbeat,
) -> Result<(), sqlx::Error> {
    let Some(service) = &beat.service else { return Ok(()) };
    let object = |pairs: Vec<(String, Value)>| Value::Object(pairs.into_iter().collect()).to_string();
    let checks = beat.checks.iter().map(|c| (clean(&c.name), json!(c.ok))).collect();
    let metrics = beat.metrics.iter().map(|m| (clean(&m.name), json!(m.value))).collect();
    let games = beat.games.iter().map(|w| (clean(&w.game), json!(w.epoch))).collect();
    let sql = "INSERT INTO heartbeats_latest AS h (kind, instance, process_id, status, beat_at, checks, metrics, games,
                   last_applied, sequence)
               VALUES ($1, $2, $3, $4, $5, $6::jsonb, $7::jsonb, $8::jsonb, $9, $10)
               ON CONFLICT (kind, instance) DO UPDATE SET process_id = excluded.process_id, status = excluded.status,
                   beat_at = excluded.beat_at, checks = excluded.checks, metrics = excluded.metrics,
                   games = excluded.games, last_applied = excluded.last_applied, sequence = excluded.sequence
               WHERE h.sequence < excluded.sequence";
    sqlx::query(sql)
        .bind(clean(&service.kind))
        .bind(clean(&service.instance))
        .bind(clean(&service.process))
        .bind(clean(&beat.status))
        .bind(time(at_us))
        .bind(object(checks))
        .bind(object(metrics))
        .bind(object(games))
        .bind(signed(beat.last_applied))
        .bind(signed(sequence))
        .execute(&mut **tx)
        .await
        .map(drop)
}
