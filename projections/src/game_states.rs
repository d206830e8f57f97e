//! GAME_STATES into `game_states`.

use std::collections::BTreeSet;

use arbees_core::log::Stored;
use arbees_fleet::EpochGate;
use arbees_proto::{Epoch, GameId, Payload};
use chrono::{DateTime, Utc};
use sqlx::{Postgres, Row as _, Transaction};

use crate::checkpoint::{signed, unsigned};
use crate::letters::{self, DeadLetter};
use crate::rows::{clean, time};

/// What a JSON number holds exactly, and so the greatest epoch there can be.
const MAX_EPOCH: u64 = 1 << 53;

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
        let _: GameId = s.game.parse().map_err(|e| format!("{e}"))?;
        if s.epoch > MAX_EPOCH {
            return Err(format!("epoch {} is beyond any: allowed are up to {MAX_EPOCH}", s.epoch));
        }
        if s.home_win_prob.is_some_and(|p| !p.is_finite()) {
            return Err("a win probability that is no number".to_owned());
        }
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

/// The rows that pass, in the stream's order: what an old owner said after a newer one had spoken has no effect.
pub fn admitted(rows: Vec<StateRow>, gate: &mut EpochGate) -> Vec<StateRow> {
    let passes = |row: &StateRow, gate: &mut EpochGate| {
        let id: Result<GameId, _> = row.game_id.parse();
        id.is_ok_and(|id| gate.admit(&id, Epoch(unsigned(row.epoch))))
    };
    rows.into_iter().filter(|row| passes(row, gate)).collect()
}

/// The gate as the rows written so far have left it, for these games.
async fn load_gate(tx: &mut Transaction<'_, Postgres>, rows: &[StateRow]) -> Result<EpochGate, sqlx::Error> {
    let games: BTreeSet<&str> = rows.iter().map(|r| r.game_id.as_str()).collect();
    let games: Vec<&str> = games.into_iter().collect();
    let sql = "SELECT game_id, epoch FROM game_epochs WHERE game_id = ANY($1)";
    let known = sqlx::query(sql).bind(games).fetch_all(&mut **tx).await?;
    let pair = |r: &sqlx::postgres::PgRow| {
        let id: GameId = r.get::<&str, _>(0).parse().ok()?;
        Some((id, Epoch(unsigned(r.get(1)))))
    };
    Ok(EpochGate::new(known.iter().filter_map(pair).collect()))
}

async fn keep_gate(tx: &mut Transaction<'_, Postgres>, gate: &EpochGate) -> Result<(), sqlx::Error> {
    let (games, epochs, dropped): (Vec<_>, Vec<_>, Vec<_>) =
        gate.all().map(|(id, epoch, dropped)| (id.to_string(), signed(epoch.0), signed(dropped))).collect();
    let sql = "INSERT INTO game_epochs AS g (game_id, epoch, dropped)
               SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[])
               ON CONFLICT (game_id) DO UPDATE SET epoch = greatest(g.epoch, excluded.epoch),
                   dropped = g.dropped + excluded.dropped";
    sqlx::query(sql).bind(games).bind(epochs).bind(dropped).execute(&mut **tx).await.map(drop)
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
    let mut gate = load_gate(tx, &rows).await?;
    let rows = admitted(rows, &mut gate);
    if gate.dropped() > 0 {
        tracing::warn!(dropped = gate.dropped(), "states told under an older epoch than the newest were dropped");
    }
    keep_gate(tx, &gate).await?;
    letters::bury(tx, arbees_core::log::GAME_STATES, &dead).await?;
    if rows.is_empty() {
        return Ok(());
    }
    let sql = "INSERT INTO game_states (sequence, game_id, epoch, shard_id, observed_at, status, state, home_team,
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
