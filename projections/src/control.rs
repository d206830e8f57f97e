//! CONTROL into `games`, `assignments`, `assignment_history`, `services`, `event_archive` and `dead_letters`.
//!
//! The rows are taken from the folded state, by the same fold as the leader's: there is no second reading of what an event
//! means. What changed in a batch is gathered first, so that a game touched a hundred times is written once.

use std::collections::{BTreeMap, BTreeSet};

use arbees_core::log::Stored;
use arbees_fleet::state::{Game, Owner, Service, ServiceKey};
use arbees_fleet::{State, Touched};
use arbees_proto::{GameId, v1};
use chrono::{DateTime, Utc};
use sqlx::{Postgres, Transaction};

use crate::letters::{self, DeadLetter};
use crate::rows::{AssignmentRow, BreakerRow, GameRow, HistoryRow, ServiceRow, time};

/// The fold, and what it has changed since the last flush.
#[derive(Debug)]
pub struct ControlFold {
    state: State,
    /// Owners as of the last event, to see assignments begin and end.
    owners: BTreeMap<GameId, Owner>,
    changes: Changes,
    /// Whose rows have to be written.
    games: BTreeSet<GameId>,
    services: BTreeSet<ServiceKey>,
}

/// Rows to write.
#[derive(Debug, Default)]
pub struct Changes {
    pub games: BTreeMap<GameId, GameRow>,
    /// None: nobody watches it now.
    pub assignments: BTreeMap<GameId, Option<AssignmentRow>>,
    pub services: BTreeMap<ServiceKey, (ServiceRow, Option<BreakerRow>)>,
    /// Assignments that began in this batch, with whatever else befell them in it.
    pub begun: BTreeMap<(GameId, u64), HistoryRow>,
    /// What befell assignments that began before this batch.
    pub later: BTreeMap<(GameId, u64), Later>,
    pub dead: Vec<DeadLetter>,
}

/// What can befall an assignment after it began.
#[derive(Debug, Default)]
pub struct Later {
    pub confirmed_at: Option<DateTime<Utc>>,
    pub ended: Option<(DateTime<Utc>, String)>,
}

impl ControlFold {
    /// A fold that goes on from `state`.
    #[must_use]
    pub fn new(state: State) -> Self {
        let owner = |(id, g): (&GameId, &Game)| Some((id.clone(), g.owner.clone()?));
        let owners = state.games.iter().filter_map(owner).collect();
        let (games, services) = (BTreeSet::new(), BTreeSet::new());
        Self { state, owners, changes: Changes::default(), games, services }
    }

    /// The state as of the last message.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Folds one message.
    pub fn add(&mut self, stored: &Stored) {
        match self.state.fold(&stored.entry()) {
            Ok((touched, event)) => self.note(touched, &event),
            Err(skip) => self.changes.dead.push((stored.clone(), skip.to_string())),
        }
    }

    /// What all messages since the last call come to.
    pub fn take(&mut self) -> Changes {
        let mut changes = std::mem::take(&mut self.changes);
        for key in std::mem::take(&mut self.services) {
            if let Some(service) = self.state.services.get(&key) {
                changes.note_service(&key, service);
            }
        }
        for id in std::mem::take(&mut self.games) {
            if let Some(game) = self.state.games.get(&id) {
                changes.note(&id, game);
            }
        }
        changes
    }

    fn note(&mut self, touched: Touched, event: &v1::Event) {
        for (id, game) in touched.forgotten {
            // Its last row is written now or never.
            if self.games.remove(&id) {
                self.changes.note(&id, &game);
            }
        }
        for (key, service) in touched.forgotten_services {
            if self.services.remove(&key) {
                self.changes.note_service(&key, &service);
            }
        }
        self.services.extend(touched.service);
        let Some(id) = touched.game else { return };
        let Some(game) = self.state.games.get(&id) else { return };
        let owner = game.owner.clone();
        self.note_history(&id, owner.as_ref(), event);
        match owner {
            Some(owner) => drop(self.owners.insert(id.clone(), owner)),
            None => drop(self.owners.remove(&id)),
        }
        self.games.insert(id);
    }

    fn note_history(&mut self, id: &GameId, owner: Option<&Owner>, event: &v1::Event) {
        let reason = event.reason.clone().unwrap_or_default();
        let before = self.owners.get(id);
        let is_same = matches!((before, owner), (Some(b), Some(o)) if b.epoch == o.epoch);
        if let Some(before) = before.filter(|_| !is_same) {
            let ended = (time(event.occurred_at_us), reason.cause.clone());
            self.changes.befall(
                id,
                before.epoch.0,
                |row| {
                    row.ended_at = Some(ended.0);
                    row.end_cause = Some(ended.1.clone());
                },
                |later| later.ended = Some(ended.clone()),
            );
        }
        let Some(owner) = owner else { return };
        if !is_same {
            self.changes.begun.insert((id.clone(), owner.epoch.0), HistoryRow::begun(id, owner, &reason));
        } else if before.is_some_and(|b| b.confirmed_at_us != owner.confirmed_at_us) {
            let at = owner.confirmed_at_us.map(time);
            self.changes.befall(id, owner.epoch.0, |row| row.confirmed_at = at, |later| later.confirmed_at = at);
        }
    }
}

impl Changes {
    fn note(&mut self, id: &GameId, game: &Game) {
        self.games.insert(id.clone(), GameRow::of(id, game));
        let row = game.owner.as_ref().map(|owner| AssignmentRow::of(id, game, owner));
        self.assignments.insert(id.clone(), row);
    }

    fn note_service(&mut self, key: &ServiceKey, service: &Service) {
        let rows = (ServiceRow::of(key, service), BreakerRow::of(key, service));
        self.services.insert(key.clone(), rows);
    }

    fn befall(&mut self, id: &GameId, epoch: u64, row: impl FnOnce(&mut HistoryRow), later: impl FnOnce(&mut Later)) {
        let key = (id.clone(), epoch);
        match self.begun.get_mut(&key) {
            Some(begun) => row(begun),
            None => later(self.later.entry(key).or_default()),
        }
    }

    /// Writes all of it.
    pub async fn write(&self, tx: &mut Transaction<'_, Postgres>) -> Result<(), sqlx::Error> {
        letters::bury(tx, arbees_core::log::CONTROL, &self.dead).await?;
        self.write_games(tx).await?;
        self.write_assignments(tx).await?;
        self.write_begun(tx).await?;
        self.write_later(tx).await?;
        self.write_services(tx).await?;
        self.write_breakers(tx).await
    }

    async fn write_games(&self, tx: &mut Transaction<'_, Postgres>) -> Result<(), sqlx::Error> {
        if self.games.is_empty() {
            return Ok(());
        }
        let rows: Vec<&GameRow> = self.games.values().collect();
        let sql = "INSERT INTO games AS g (game_id, league, event_id, home_team, away_team, starts_at, phase,
                       phase_since_at, status, markets, queued_since_at, sequence, pinned_to)
                   SELECT a, b, c, d, e, f, h, i, j, k::jsonb, l, m, n
                   FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[],
                       $8::timestamptz[], $9::text[], $10::text[], $11::timestamptz[], $12::bigint[], $13::text[])
                       AS t (a, b, c, d, e, f, h, i, j, k, l, m, n)
                   ON CONFLICT (game_id) DO UPDATE SET home_team = excluded.home_team, away_team = excluded.away_team,
                       starts_at = excluded.starts_at, phase = excluded.phase, phase_since_at = excluded.phase_since_at,
                       status = excluded.status, markets = excluded.markets,
                       queued_since_at = excluded.queued_since_at, sequence = excluded.sequence,
                       pinned_to = excluded.pinned_to
                   WHERE g.sequence < excluded.sequence";
        sqlx::query(sql)
            .bind(column(&rows, |r| r.game_id.as_str()))
            .bind(column(&rows, |r| r.league.as_str()))
            .bind(column(&rows, |r| r.event_id.as_str()))
            .bind(column(&rows, |r| r.home_team.as_str()))
            .bind(column(&rows, |r| r.away_team.as_str()))
            .bind(column(&rows, |r| r.starts_at))
            .bind(column(&rows, |r| r.phase.as_str()))
            .bind(column(&rows, |r| r.phase_since_at))
            .bind(column(&rows, |r| r.status.as_str()))
            .bind(column(&rows, |r| r.markets.to_string()))
            .bind(column(&rows, |r| r.queued_since_at))
            .bind(column(&rows, |r| r.sequence))
            .bind(column(&rows, |r| r.pinned_to.as_deref()))
            .execute(&mut **tx)
            .await
            .map(drop)
    }

    async fn write_assignments(&self, tx: &mut Transaction<'_, Postgres>) -> Result<(), sqlx::Error> {
        let gone: Vec<&str> =
            self.assignments.iter().filter(|(_, row)| row.is_none()).map(|(id, _)| id.as_str()).collect();
        if !gone.is_empty() {
            let sql = "DELETE FROM assignments WHERE game_id = ANY($1)";
            sqlx::query(sql).bind(gone).execute(&mut **tx).await?;
        }
        let rows: Vec<&AssignmentRow> = self.assignments.values().flatten().collect();
        if rows.is_empty() {
            return Ok(());
        }
        let sql = "INSERT INTO assignments AS a (game_id, shard_id, epoch, assigned_at, confirmed_at, sequence)
                   SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::timestamptz[], $5::timestamptz[], $6::bigint[])
                   ON CONFLICT (game_id) DO UPDATE SET shard_id = excluded.shard_id, epoch = excluded.epoch,
                       assigned_at = excluded.assigned_at, confirmed_at = excluded.confirmed_at,
                       sequence = excluded.sequence
                   WHERE a.sequence < excluded.sequence";
        sqlx::query(sql)
            .bind(column(&rows, |r| r.game_id.as_str()))
            .bind(column(&rows, |r| r.shard_id.as_str()))
            .bind(column(&rows, |r| r.epoch))
            .bind(column(&rows, |r| r.assigned_at))
            .bind(column(&rows, |r| r.confirmed_at))
            .bind(column(&rows, |r| r.sequence))
            .execute(&mut **tx)
            .await
            .map(drop)
    }

    async fn write_begun(&self, tx: &mut Transaction<'_, Postgres>) -> Result<(), sqlx::Error> {
        if self.begun.is_empty() {
            return Ok(());
        }
        let rows: Vec<&HistoryRow> = self.begun.values().collect();
        let sql = "INSERT INTO assignment_history (game_id, epoch, shard_id, assigned_at, cause, rule, candidates,
                       rejections, confirmed_at, ended_at, end_cause)
                   SELECT a, b, c, d, e, f, g::json, h::json, i, j, k
                   FROM unnest($1::text[], $2::bigint[], $3::text[], $4::timestamptz[], $5::text[], $6::text[], $7::text[],
                       $8::text[], $9::timestamptz[], $10::timestamptz[], $11::text[])
                       AS t (a, b, c, d, e, f, g, h, i, j, k)
                   ON CONFLICT (game_id, epoch) DO NOTHING";
        sqlx::query(sql)
            .bind(column(&rows, |r| r.game_id.as_str()))
            .bind(column(&rows, |r| r.epoch))
            .bind(column(&rows, |r| r.shard_id.as_str()))
            .bind(column(&rows, |r| r.assigned_at))
            .bind(column(&rows, |r| r.cause.as_str()))
            .bind(column(&rows, |r| r.rule.as_str()))
            .bind(column(&rows, |r| r.candidates.to_string()))
            .bind(column(&rows, |r| r.rejections.to_string()))
            .bind(column(&rows, |r| r.confirmed_at))
            .bind(column(&rows, |r| r.ended_at))
            .bind(column(&rows, |r| r.end_cause.as_deref()))
            .execute(&mut **tx)
            .await
            .map(drop)
    }

    async fn write_later(&self, tx: &mut Transaction<'_, Postgres>) -> Result<(), sqlx::Error> {
        if self.later.is_empty() {
            return Ok(());
        }
        let rows: Vec<(&(GameId, u64), &Later)> = self.later.iter().collect();
        let sql = "UPDATE assignment_history h SET confirmed_at = coalesce(t.confirmed_at, h.confirmed_at),
                       ended_at = coalesce(t.ended_at, h.ended_at), end_cause = coalesce(t.end_cause, h.end_cause)
                   FROM unnest($1::text[], $2::bigint[], $3::timestamptz[], $4::timestamptz[], $5::text[])
                       AS t (game_id, epoch, confirmed_at, ended_at, end_cause)
                   WHERE h.game_id = t.game_id AND h.epoch = t.epoch";
        sqlx::query(sql)
            .bind(column(&rows, |(key, _)| key.0.as_str()))
            .bind(column(&rows, |(key, _)| crate::checkpoint::signed(key.1)))
            .bind(column(&rows, |(_, later)| later.confirmed_at))
            .bind(column(&rows, |(_, later)| later.ended.as_ref().map(|e| e.0)))
            .bind(column(&rows, |(_, later)| later.ended.as_ref().map(|e| e.1.as_str())))
            .execute(&mut **tx)
            .await
            .map(drop)
    }

    async fn write_services(&self, tx: &mut Transaction<'_, Postgres>) -> Result<(), sqlx::Error> {
        if self.services.is_empty() {
            return Ok(());
        }
        let rows: Vec<&ServiceRow> = self.services.values().map(|(row, _)| row).collect();
        let sql = "INSERT INTO services AS s (kind, instance, process_id, started_at, version, shard_type, max_games,
                       on_log, registered_at, restarts, sequence, status, status_since_at, failed_checks, drain)
                   SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::text[],
                       $7::integer[], $8::boolean[], $9::timestamptz[], $10::integer[], $11::bigint[], $12::text[],
                       $13::timestamptz[], $14::text[], $15::text[])
                   ON CONFLICT (kind, instance) DO UPDATE SET process_id = excluded.process_id,
                       started_at = excluded.started_at, version = excluded.version, shard_type = excluded.shard_type,
                       max_games = excluded.max_games, on_log = excluded.on_log,
                       registered_at = excluded.registered_at, restarts = excluded.restarts, sequence = excluded.sequence,
                       status = excluded.status, status_since_at = excluded.status_since_at,
                       failed_checks = excluded.failed_checks, drain = excluded.drain
                   WHERE s.sequence < excluded.sequence";
        sqlx::query(sql)
            .bind(column(&rows, |r| r.kind.as_str()))
            .bind(column(&rows, |r| r.instance.as_str()))
            .bind(column(&rows, |r| r.process_id.as_str()))
            .bind(column(&rows, |r| r.started_at))
            .bind(column(&rows, |r| r.version.as_str()))
            .bind(column(&rows, |r| r.shard_type.as_str()))
            .bind(column(&rows, |r| r.max_games))
            .bind(column(&rows, |r| r.on_log))
            .bind(column(&rows, |r| r.registered_at))
            .bind(column(&rows, |r| r.restarts))
            .bind(column(&rows, |r| r.sequence))
            .bind(column(&rows, |r| r.status.as_str()))
            .bind(column(&rows, |r| r.status_since_at))
            .bind(column(&rows, |r| r.failed_checks.as_str()))
            .bind(column(&rows, |r| r.drain.as_str()))
            .execute(&mut **tx)
            .await
            .map(drop)
    }

    async fn write_breakers(&self, tx: &mut Transaction<'_, Postgres>) -> Result<(), sqlx::Error> {
        let rows: Vec<&BreakerRow> = self.services.values().filter_map(|(_, row)| row.as_ref()).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let sql = "INSERT INTO circuit_breakers AS b (shard_id, state, failures, successes, opened_at, sequence)
                   SELECT * FROM unnest($1::text[], $2::text[], $3::integer[], $4::integer[], $5::timestamptz[], $6::bigint[])
                   ON CONFLICT (shard_id) DO UPDATE SET state = excluded.state, failures = excluded.failures,
                       successes = excluded.successes, opened_at = excluded.opened_at, sequence = excluded.sequence
                   WHERE b.sequence < excluded.sequence";
        sqlx::query(sql)
            .bind(column(&rows, |r| r.shard_id.as_str()))
            .bind(column(&rows, |r| r.state.as_str()))
            .bind(column(&rows, |r| r.failures))
            .bind(column(&rows, |r| r.successes))
            .bind(column(&rows, |r| r.opened_at))
            .bind(column(&rows, |r| r.sequence))
            .execute(&mut **tx)
            .await
            .map(drop)
    }
}

/// One column of `rows`, for `unnest`.
fn column<'a, R, T>(rows: &'a [R], of: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(of).collect()
}
