//! GAME_STATES into `game_states`.

use arbees_core::log::Stored;
use arbees_proto::{Payload, v1};
use chrono::{DateTime, Utc};
use sqlx::{Postgres, Transaction};

use crate::checkpoint::signed;
use crate::letters::{self, DeadLetter};
use crate::rows::time;

type Row = (i64, DateTime<Utc>, v1::GameStateChanged);

/// Writes the states among `messages`.
pub async fn write(tx: &mut Transaction<'_, Postgres>, messages: &[Stored]) -> Result<(), sqlx::Error> {
    let mut rows: Vec<Row> = Vec::new();
    let mut dead: Vec<DeadLetter> = Vec::new();
    for stored in messages {
        match stored.event().map(|e| (e.occurred_at_us, e.payload)) {
            Ok((at, Some(Payload::GameStateChanged(state)))) => rows.push((signed(stored.sequence), time(at), state)),
            Ok(_) => dead.push((stored.clone(), "no game state".to_owned())),
            Err(error) => dead.push((stored.clone(), error.to_string())),
        }
    }
    letters::bury(tx, arbees_core::log::GAME_STATES, &dead).await?;
    if rows.is_empty() {
        return Ok(());
    }
    let sql =
        "INSERT INTO arbees.game_states (sequence, game_id, epoch, shard_id, observed_at, status, state, home_team,
                   away_team, home_score, away_score, period, clock, possession, home_win_prob)
               SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::timestamptz[], $6::text[],
                   $7::text[], $8::text[], $9::text[], $10::integer[], $11::integer[], $12::integer[], $13::text[],
                   $14::text[], $15::double precision[])
               ON CONFLICT (sequence) DO NOTHING";
    let number = |n: Option<u32>| n.and_then(|n| i32::try_from(n).ok());
    sqlx::query(sql)
        .bind(rows.iter().map(|r| r.0).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.2.game.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| signed(r.2.epoch)).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.2.shard.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.1).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.2.status.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.2.state.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.2.home_team.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.2.away_team.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| number(r.2.home_score)).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| number(r.2.away_score)).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| number(r.2.period)).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.2.clock.as_deref()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.2.possession.as_deref()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.2.home_win_prob).collect::<Vec<_>>())
        .execute(&mut **tx)
        .await
        .map(drop)
}
