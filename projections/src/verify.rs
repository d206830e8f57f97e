//! Proof that the tables equal the fold of the log, on a live system.
//!
//! Tables and checkpoint are read in one snapshot of the database; the log is then folded from its first message up to that
//! checkpoint and every row compared.

use std::collections::BTreeMap;

use arbees_core::db;
use arbees_core::log::{ALERTS, CONTROL, GAME_STATES, Log, ReadError};
use arbees_fleet::{EpochGate, State};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool, Row as _};

use crate::alerts::{AlertBook, AlertRow};
use crate::checkpoint::unsigned;
use crate::control::ControlFold;
use crate::game_states::{self, StateRow};
use crate::rows::{AssignmentRow, BreakerRow, GameRow, HistoryRow, ServiceRow, clean};

/// Differences that are listed; all are counted.
const LISTED: usize = 20;

/// What was compared, and what differs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// CONTROL up to this sequence.
    pub sequence: u64,
    /// Where CONTROL ended when the comparison began. A projector that runs is a moment behind at most.
    pub log_end: u64,
    /// The fold's hash at that sequence, in hex.
    pub state_hash: String,
    /// Rows compared, by table.
    pub rows: BTreeMap<&'static str, usize>,
    /// Messages of CONTROL that are no valid events.
    pub invalid_messages: u64,
    /// How many differences there are.
    pub differences: usize,
    /// The first of them.
    pub first_differences: Vec<String>,
}

impl Report {
    fn differ(&mut self, what: String) {
        self.differences += 1;
        if self.first_differences.len() < LISTED {
            self.first_differences.push(what);
        }
    }

    fn compare<R: PartialEq + std::fmt::Debug>(
        &mut self,
        table: &'static str,
        mut expected: BTreeMap<String, R>,
        found: Vec<(String, R)>,
    ) {
        self.rows.insert(table, expected.len());
        for (key, row) in found {
            match expected.remove(&key) {
                None => self.differ(format!("{table} {key}: in the table, not in the log")),
                Some(want) if want != row => {
                    self.differ(format!("{table} {key}: the log says {want:?}, the table {row:?}"));
                }
                Some(_) => {}
            }
        }
        for key in expected.keys() {
            self.differ(format!("{table} {key}: in the log, not in the table"));
        }
    }
}

/// Why nothing could be compared.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    #[error("log: {0}")]
    Log(#[from] ReadError),
}

/// The tables in one snapshot.
struct Tables {
    built: i64,
    control: u64,
    states: u64,
    games: Vec<(String, GameRow)>,
    assignments: Vec<(String, AssignmentRow)>,
    history: Vec<(String, HistoryRow)>,
    services: Vec<(String, ServiceRow)>,
    breakers: Vec<(String, BreakerRow)>,
    archive: Vec<(String, ArchiveRow)>,
    dead_letters: Vec<(String, String)>,
    game_states: Vec<(String, StateRow)>,
    alerts_at: u64,
    alerts: Vec<(String, AlertRow)>,
}

/// What is compared of an archived message: subject, type, payload.
type ArchiveRow = (String, String, Vec<u8>);

/// Compares. `progress` is told how many messages have been folded.
pub async fn verify(log: &Log, pool: &PgPool, progress: impl Fn(u64, u64)) -> Result<Report, VerifyError> {
    let (_, log_end) = log.bounds(CONTROL).await?;
    let mut tables = read_tables(pool).await?;
    while tables.built != built(pool).await? {
        // They were built anew while they were read: some of them are the old ones.
        tables = read_tables(pool).await?;
    }
    let mut fold = ControlFold::new(State::default());
    let mut archive = BTreeMap::new();
    let mut reader = log.read(CONTROL, Vec::new(), 1, tables.control).await?;
    while let Some(stored) = reader.next().await? {
        fold.add(&stored);
        let kind = stored.header(arbees_proto::envelope::HEADER_TYPE);
        let row: ArchiveRow = (clean(&stored.subject), clean(kind), stored.payload.to_vec());
        archive.insert(stored.sequence.to_string(), row);
        if stored.sequence % 50_000 == 0 {
            progress(stored.sequence, tables.control);
        }
    }
    let changes = fold.take();
    let state = fold.state();
    let mut report = Report {
        sequence: tables.control,
        log_end,
        state_hash: arbees_proto::envelope::hex(&state.hash()),
        invalid_messages: state.head.skipped,
        ..Report::default()
    };
    let dead = changes.dead.iter().map(|(stored, error)| (stored.sequence.to_string(), error.clone()));
    report.compare("dead_letters", dead.collect(), tables.dead_letters);
    let assignments = changes.assignments.into_iter().filter_map(|(id, row)| Some((id.to_string(), row?)));
    report.compare("games", keyed(changes.games), tables.games);
    report.compare("assignments", assignments.collect(), tables.assignments);
    let history = changes.begun.into_iter().map(|((id, epoch), row)| (format!("{id}@{epoch}"), row));
    report.compare("assignment_history", history.collect(), tables.history);
    let services = changes.services.iter().map(|(key, (row, _))| (key.to_string(), row.clone())).collect();
    report.compare("services", services, tables.services);
    let breakers = changes.services.into_values().filter_map(|(_, row)| row);
    report.compare("circuit_breakers", breakers.map(|r| (r.shard_id.clone(), r)).collect(), tables.breakers);
    report.compare("event_archive", archive, tables.archive);
    let incidents = AlertBook::load(log, tables.alerts_at).await?.take().rows;
    let incidents = incidents.into_iter().map(|row| (row.sequence.to_string(), row)).collect();
    report.compare("alerts", incidents, tables.alerts);
    let mut states = expected_states(log, tables.states).await?;
    // What the stream has let go of meanwhile cannot be compared.
    let (first, _) = log.bounds(GAME_STATES).await?;
    let is_retained = |row: &StateRow| unsigned(row.sequence) >= first;
    states.retain(|_, row| is_retained(row));
    report.compare("game_states", states, tables.game_states.into_iter().filter(|(_, row)| is_retained(row)).collect());
    Ok(report)
}

fn keyed<K: ToString, R>(rows: BTreeMap<K, R>) -> BTreeMap<String, R> {
    rows.into_iter().map(|(key, row)| (key.to_string(), row)).collect()
}

async fn expected_states(log: &Log, last: u64) -> Result<BTreeMap<String, StateRow>, ReadError> {
    let mut rows = Vec::new();
    let mut reader = log.read(GAME_STATES, Vec::new(), 1, last).await?;
    while let Some(stored) = reader.next().await? {
        rows.extend(StateRow::of(&stored));
    }
    let rows = game_states::admitted(rows, &mut EpochGate::default());
    Ok(rows.into_iter().map(|row| (row.sequence.to_string(), row)).collect())
}

/// What tells these tables from others of their names: a rebuild puts others in their place.
async fn built(pool: &PgPool) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT 'games'::regclass::oid::bigint").fetch_one(pool).await
}

async fn read_tables(pool: &PgPool) -> Result<Tables, sqlx::Error> {
    let built = built(pool).await?;
    let mut tx = db::begin(pool).await?;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY").execute(&mut *tx).await?;
    let checkpoint = "SELECT coalesce(max(sequence), 0) FROM projection_checkpoints WHERE stream = $1";
    let control = unsigned(sqlx::query(checkpoint).bind(CONTROL).fetch_one(&mut *tx).await?.get(0));
    let states = unsigned(sqlx::query(checkpoint).bind(GAME_STATES).fetch_one(&mut *tx).await?.get(0));
    let alerts_at = unsigned(sqlx::query(checkpoint).bind(ALERTS).fetch_one(&mut *tx).await?.get(0));
    let tables = Tables {
        built,
        alerts_at,
        alerts: read(&mut tx, INCIDENTS, |r| {
            let row = alert_row(r);
            (row.sequence.to_string(), row)
        })
        .await?,
        control,
        states,
        games: read(&mut tx, GAMES, |r| (r.get(0), game_row(r))).await?,
        assignments: read(&mut tx, ASSIGNMENTS, |r| (r.get(0), assignment_row(r))).await?,
        history: read(&mut tx, HISTORY, |r| {
            let row = history_row(r);
            (format!("{}@{}", row.game_id, row.epoch), row)
        })
        .await?,
        services: read(&mut tx, SERVICES, |r| {
            let row = service_row(r);
            (format!("{}/{}", row.kind, row.instance), row)
        })
        .await?,
        breakers: read(&mut tx, BREAKERS, |r| (r.get(0), breaker_row(r))).await?,
        archive: read(&mut tx, ARCHIVE, |r| (r.get::<i64, _>(0).to_string(), (r.get(1), r.get(2), r.get(3)))).await?,
        dead_letters: read(&mut tx, DEAD, |r| (r.get::<i64, _>(0).to_string(), r.get(1))).await?,
        game_states: read(&mut tx, STATES, |r| {
            let row = state_row(r);
            (row.sequence.to_string(), row)
        })
        .await?,
    };
    tx.commit().await?;
    Ok(tables)
}

const GAMES: &str =
    "SELECT game_id, league, event_id, home_team, away_team, starts_at, phase, phase_since_at, status, markets,
    queued_since_at, pinned_to, sequence FROM games";
const ASSIGNMENTS: &str = "SELECT game_id, shard_id, epoch, assigned_at, confirmed_at, sequence FROM assignments";
const HISTORY: &str = "SELECT game_id, epoch, shard_id, assigned_at, cause, rule, candidates, rejections, confirmed_at,
    ended_at, end_cause FROM assignment_history";
const SERVICES: &str =
    "SELECT kind, instance, process_id, started_at, version, shard_type, max_games, on_log, registered_at,
    restarts, status, status_since_at, failed_checks, drain, sequence FROM services";
const BREAKERS: &str = "SELECT shard_id, state, failures, successes, opened_at, sequence FROM circuit_breakers";
const ARCHIVE: &str = "SELECT sequence, subject, event_type, payload FROM event_archive WHERE stream = 'CONTROL'";
const DEAD: &str = "SELECT sequence, error FROM dead_letters WHERE stream = 'CONTROL'";
const INCIDENTS: &str =
    "SELECT sequence, incident, kind, severity, summary, raised_at, times, resolved_at, first_delivered_at, delivered_to,
    failed_on, suppressed, acknowledged_at, acknowledged_by, is_false_alarm, changed_sequence FROM alerts";
const STATES: &str =
    "SELECT sequence, game_id, epoch, shard_id, observed_at, status, state, home_team, away_team, home_score,
    away_score, period, clock, possession, home_win_prob FROM game_states";

async fn read<T>(
    connection: &mut PgConnection,
    sql: &'static str,
    row: impl Fn(&PgRow) -> T,
) -> Result<Vec<T>, sqlx::Error> {
    Ok(sqlx::query(sql).fetch_all(connection).await?.iter().map(row).collect())
}

fn game_row(r: &PgRow) -> GameRow {
    GameRow {
        game_id: r.get(0),
        league: r.get(1),
        event_id: r.get(2),
        home_team: r.get(3),
        away_team: r.get(4),
        starts_at: r.get(5),
        phase: r.get(6),
        phase_since_at: r.get(7),
        status: r.get(8),
        markets: r.get(9),
        queued_since_at: r.get(10),
        pinned_to: r.get(11),
        sequence: r.get(12),
    }
}

fn assignment_row(r: &PgRow) -> AssignmentRow {
    AssignmentRow {
        game_id: r.get(0),
        shard_id: r.get(1),
        epoch: r.get(2),
        assigned_at: r.get(3),
        confirmed_at: r.get(4),
        sequence: r.get(5),
    }
}

fn history_row(r: &PgRow) -> HistoryRow {
    HistoryRow {
        game_id: r.get(0),
        epoch: r.get(1),
        shard_id: r.get(2),
        assigned_at: r.get(3),
        cause: r.get(4),
        rule: r.get(5),
        candidates: r.get(6),
        rejections: r.get(7),
        confirmed_at: r.get(8),
        ended_at: r.get(9),
        end_cause: r.get(10),
    }
}

fn service_row(r: &PgRow) -> ServiceRow {
    ServiceRow {
        kind: r.get(0),
        instance: r.get(1),
        process_id: r.get(2),
        started_at: r.get(3),
        version: r.get(4),
        shard_type: r.get(5),
        max_games: r.get(6),
        on_log: r.get(7),
        registered_at: r.get(8),
        restarts: r.get(9),
        status: r.get(10),
        status_since_at: r.get(11),
        failed_checks: r.get(12),
        drain: r.get(13),
        sequence: r.get(14),
    }
}

fn breaker_row(r: &PgRow) -> BreakerRow {
    BreakerRow {
        shard_id: r.get(0),
        state: r.get(1),
        failures: r.get(2),
        successes: r.get(3),
        opened_at: r.get(4),
        sequence: r.get(5),
    }
}

fn alert_row(r: &PgRow) -> AlertRow {
    let names = |text: String| text.split(',').filter(|n| !n.is_empty()).map(ToOwned::to_owned).collect();
    AlertRow {
        sequence: unsigned(r.get(0)),
        incident: r.get(1),
        kind: r.get(2),
        severity: r.get(3),
        summary: r.get(4),
        raised_at: r.get(5),
        times: r.get(6),
        resolved_at: r.get(7),
        first_delivered_at: r.get(8),
        delivered_to: names(r.get(9)),
        failed_on: names(r.get(10)),
        suppressed: r.get(11),
        acknowledged_at: r.get(12),
        acknowledged_by: r.get(13),
        is_false_alarm: r.get(14),
        changed_sequence: unsigned(r.get(15)),
    }
}

fn state_row(r: &PgRow) -> StateRow {
    StateRow {
        sequence: r.get(0),
        game_id: r.get(1),
        epoch: r.get(2),
        shard_id: r.get(3),
        observed_at: r.get(4),
        status: r.get(5),
        state: r.get(6),
        home_team: r.get(7),
        away_team: r.get(8),
        home_score: r.get(9),
        away_score: r.get(10),
        period: r.get(11),
        clock: r.get(12),
        possession: r.get(13),
        home_win_prob: r.get(14),
    }
}
