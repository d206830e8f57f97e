//! GAME_STATES into `game_states`.

use arbees_core::log::Stored;
use arbees_proto::Payload;
use chrono::{DateTime, Utc};
use sqlx::{Postgres, Transaction};

use crate::checkpoint::signed;
use crate::letters::{self, DeadLetter};
use crate::rows::{clean, time};

/// A row of `game_states`.
#[derive(Clone, Debug, PartialEq)]
pub struct StateRow {
    pub sequence: i64,
    pub game_id: String,
    pub epoch: i64,
    pub shard_id: String,
    pub observed_at: DateTime<Utc>,
    pub status: String,
    pub state: String,
    pub home_team: String,
    pub away_team: String,
    pub home_score: Option<i32>,
    pub away_score: Option<i32>,
    pub period: Option<i32>,
    pub clock: Option<String>,
    pub possession: Option<String>,
    pub home_win_prob: Option<f64>,
}

impl StateRow {
    /// The row of a message.
    ///
    /// # Errors
    /// Why it is no game state.
    pub fn of(stored: &Stored) -> Result<Self, String> {
        let event = stored.event().map_err(|e| e.to_string())?;
        let Some(Payload::GameStateChanged(s)) = event.payload else { return Err("no game state".to_owned()) };
        let number = |n: Option<u32>| n.and_then(|n| i32::try_from(n).ok());
        Ok(Self {
            sequence: signed(stored.sequence),
            game_id: clean(&s.game),
            epoch: signed(s.epoch),
            shard_id: clean(&s.shard),
            observed_at: time(event.occurred_at_us),
            status: clean(&s.status),
            state: clean(&s.state),
            home_team: clean(&s.home_team),
            away_team: clean(&s.away_team),
            home_score: number(s.home_score),
            away_score: number(s.away_score),
            period: number(s.period),
            clock: s.clock.as_deref().map(clean),
            possession: s.possession.as_deref().map(clean),
            home_win_prob: s.home_win_prob,
        })
    }
}

/// Writes the states among `messages`.
pub async fn write(tx: &mut Transaction<'_, Postgres>, messages: &[Stored]) -> Result<(), sqlx::Error> {
    let mut rows: Vec<StateRow> = Vec::new();
    let mut dead: Vec<DeadLetter> = Vec::new();
    for stored in messages {
        match StateRow::of(stored) {
            Ok(row) => rows.push(row),
            Err(error) => dead.push((stored.clone(), error)),
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
    sqlx::query(sql)
        .bind(rows.iter().map(|r| r.sequence).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.game_id.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.epoch).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.shard_id.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.observed_at).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.status.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.state.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.home_team.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.away_team.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.home_score).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.away_score).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.period).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.clock.as_deref()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.possession.as_deref()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.home_win_prob).collect::<Vec<_>>())
        .execute(&mut **tx)
        .await
        .map(drop)
}
