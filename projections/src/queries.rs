//! What the tables answer.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row as _};

/// A game with who watches it.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct GameLine {
    pub game: String,
    pub home: String,
    pub away: String,
    pub starts_at: Option<DateTime<Utc>>,
    pub phase: String,
    pub shard: Option<String>,
    pub epoch: Option<i64>,
    pub since: Option<DateTime<Utc>>,
    pub confirmed_at: Option<DateTime<Utc>>,
    pub queued_since: Option<DateTime<Utc>>,
    pub score: Option<String>,
}

/// Which games, and from where on.
#[derive(Clone, Debug, Default)]
pub struct GameFilter {
    pub phase: Option<String>,
    pub league: Option<String>,
    pub shard: Option<String>,
    /// Those that are over and owned by nobody, too.
    pub all: bool,
    /// Only ids that begin so.
    pub prefix: String,
    /// Only ids after this one.
    pub after: String,
    pub limit: i64,
}

const GAME_COLUMNS: &str =
    "SELECT g.game_id, g.home_team, g.away_team, g.starts_at, g.phase, a.shard_id, a.epoch, a.assigned_at,
         a.confirmed_at, g.queued_since_at, s.score
     FROM arbees.games g
     LEFT JOIN arbees.assignments a USING (game_id)
     LEFT JOIN LATERAL (
         SELECT s.away_score || '-' || s.home_score AS score FROM arbees.game_states s
         WHERE s.game_id = g.game_id ORDER BY s.sequence DESC LIMIT 1) s ON true";

/// A page of games, in the order of their ids.
pub async fn games_page(pool: &PgPool, filter: &GameFilter) -> Result<Vec<GameLine>, sqlx::Error> {
    let sql = format!(
        "{GAME_COLUMNS}
         WHERE g.game_id > $1 AND ($2::text IS NULL OR g.phase = $2) AND ($3::text IS NULL OR g.league = $3)
             AND ($4::text IS NULL OR a.shard_id = $4)
             AND starts_with(g.game_id, $7)
             AND ($5 OR a.game_id IS NOT NULL OR g.phase IN ('scheduled', 'live', 'suspended'))
         ORDER BY g.game_id LIMIT $6"
    );
    let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(&filter.after).bind(&filter.phase).bind(&filter.league);
    let rows =
        query.bind(&filter.shard).bind(filter.all).bind(filter.limit).bind(&filter.prefix).fetch_all(pool).await?;
    Ok(rows.iter().map(game_line).collect())
}

/// How far CONTROL is applied.
pub async fn sequence(pool: &PgPool) -> Result<u64, sqlx::Error> {
    let sql = "SELECT coalesce((SELECT sequence FROM arbees.projection_checkpoints WHERE stream = 'CONTROL'), 0)";
    Ok(crate::checkpoint::unsigned(sqlx::query(sql).fetch_one(pool).await?.get(0)))
}

fn game_line(r: &PgRow) -> GameLine {
    GameLine {
        game: r.get(0),
        home: r.get(1),
        away: r.get(2),
        starts_at: r.get(3),
        phase: r.get(4),
        shard: r.get(5),
        epoch: r.get(6),
        since: r.get(7),
        confirmed_at: r.get(8),
        queued_since: r.get(9),
        score: r.get(10),
    }
}

/// Games: those not over unless `all`, live ones first.
pub async fn games(pool: &PgPool, all: bool) -> Result<Vec<GameLine>, sqlx::Error> {
    let sql = format!(
        "{GAME_COLUMNS}
         WHERE $1 OR a.game_id IS NOT NULL OR g.phase IN ('scheduled', 'live', 'suspended')
         ORDER BY g.phase <> 'live', g.starts_at, g.game_id"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(all).fetch_all(pool).await?;
    Ok(rows.iter().map(game_line).collect())
}

/// A service with its last beat.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ServiceLine {
    pub kind: String,
    pub instance: String,
    pub status: Option<String>,
    pub last_beat: Option<DateTime<Utc>>,
    /// Seconds since then.
    pub silent_for: Option<f64>,
    pub games: i64,
    pub max_games: Option<i32>,
    pub on_log: bool,
    pub version: Option<String>,
    pub restarts: Option<i32>,
    /// Shards only: closed, open or half_open.
    pub breaker: Option<String>,
}

/// Services, or only those of one kind.
pub async fn services(pool: &PgPool, kind: Option<&str>) -> Result<Vec<ServiceLine>, sqlx::Error> {
    let sql =
        "SELECT coalesce(s.kind, h.kind), coalesce(s.instance, h.instance), coalesce(s.status, h.status), h.beat_at,
                   extract(epoch FROM now() - h.beat_at)::double precision,
                   (SELECT count(*) FROM arbees.assignments a WHERE a.shard_id = s.instance AND s.kind = 'shard'),
                   s.max_games, coalesce(s.on_log, true), s.version, s.restarts,
                   (SELECT b.state FROM arbees.circuit_breakers b WHERE b.shard_id = s.instance AND s.kind = 'shard')
               FROM arbees.services s FULL JOIN arbees.heartbeats_latest h USING (kind, instance)
               WHERE $1::text IS NULL OR coalesce(s.kind, h.kind) = $1
               ORDER BY 1, 2";
    let rows = sqlx::query(sql).bind(kind).fetch_all(pool).await?;
    let line = |r: &sqlx::postgres::PgRow| ServiceLine {
        kind: r.get(0),
        instance: r.get(1),
        status: r.get(2),
        last_beat: r.get(3),
        silent_for: r.get(4),
        games: r.get(5),
        max_games: r.get(6),
        on_log: r.get(7),
        version: r.get(8),
        restarts: r.get(9),
        breaker: r.get(10),
    };
    Ok(rows.iter().map(line).collect())
}

/// An incident.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct AlertLine {
    pub incident: String,
    pub kind: String,
    pub severity: String,
    pub summary: String,
    pub raised_at: DateTime<Utc>,
    pub resolved_at: Option<DateTime<Utc>>,
    pub first_delivered_at: Option<DateTime<Utc>>,
    pub delivered_to: String,
    pub failed_on: String,
    pub suppressed: String,
    pub acknowledged_by: Option<String>,
    pub is_false_alarm: bool,
    pub times: i32,
}

/// Incidents that last; with `all` the newest thousand, those that are over among them.
pub async fn alerts(pool: &PgPool, all: bool) -> Result<Vec<AlertLine>, sqlx::Error> {
    let sql =
        "SELECT incident, kind, severity, summary, raised_at, resolved_at, first_delivered_at, delivered_to, failed_on,
                   suppressed, acknowledged_by, is_false_alarm, times
               FROM arbees.alerts WHERE $1 OR resolved_at IS NULL ORDER BY sequence DESC LIMIT 1000";
    let rows = sqlx::query(sql).bind(all).fetch_all(pool).await?;
    let line = |r: &sqlx::postgres::PgRow| AlertLine {
        incident: r.get(0),
        kind: r.get(1),
        severity: r.get(2),
        summary: r.get(3),
        raised_at: r.get(4),
        resolved_at: r.get(5),
        first_delivered_at: r.get(6),
        delivered_to: r.get(7),
        failed_on: r.get(8),
        suppressed: r.get(9),
        acknowledged_by: r.get(10),
        is_false_alarm: r.get(11),
        times: r.get(12),
    };
    Ok(rows.iter().map(line).collect())
}

/// The fleet in a few numbers.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Summary {
    pub live: i64,
    pub scheduled: i64,
    pub suspended: i64,
    pub over: i64,
    pub assigned: i64,
    pub unconfirmed: i64,
    pub queued: i64,
    pub shards: i64,
    pub services: i64,
    /// GAME_STATES is applied up to here.
    pub game_states: i64,
    pub dead_letters: i64,
    pub open_alerts: i64,
    /// CONTROL is applied up to here.
    pub sequence: i64,
}

/// Counts everything once, in one moment.
pub async fn summary(pool: &PgPool) -> Result<Summary, sqlx::Error> {
    let sql = "SELECT
                   (SELECT count(*) FROM arbees.games WHERE phase = 'live'),
                   (SELECT count(*) FROM arbees.games WHERE phase = 'scheduled'),
                   (SELECT count(*) FROM arbees.games WHERE phase = 'suspended'),
                   (SELECT count(*) FROM arbees.games WHERE phase IN ('postponed', 'canceled', 'finished')),
                   (SELECT count(*) FROM arbees.assignments),
                   (SELECT count(*) FROM arbees.assignments WHERE confirmed_at IS NULL),
                   (SELECT count(*) FROM arbees.games WHERE queued_since_at IS NOT NULL),
                   (SELECT count(*) FROM arbees.services WHERE kind = 'shard'),
                   (SELECT count(*) FROM arbees.services),
                   coalesce((SELECT sequence FROM arbees.projection_checkpoints WHERE stream = 'GAME_STATES'), 0),
                   (SELECT count(*) FROM arbees.dead_letters),
                   coalesce((SELECT sequence FROM arbees.projection_checkpoints WHERE stream = 'CONTROL'), 0),
                   (SELECT count(*) FROM arbees.alerts WHERE resolved_at IS NULL)";
    let r = sqlx::query(sql).fetch_one(pool).await?;
    Ok(Summary {
        live: r.get(0),
        scheduled: r.get(1),
        suspended: r.get(2),
        over: r.get(3),
        assigned: r.get(4),
        unconfirmed: r.get(5),
        queued: r.get(6),
        shards: r.get(7),
        services: r.get(8),
        game_states: r.get(9),
        dead_letters: r.get(10),
        sequence: r.get(11),
        open_alerts: r.get(12),
    })
}
