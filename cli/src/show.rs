//! What is so, from the tables.

use std::time::Duration;

use anyhow::{Context as _, Result};
use arbees_core::config::process_env;
use arbees_core::db::{self, DbConfig};
use arbees_core::exit::{Exit, whole};
use arbees_projections::queries::{self, GameLine, ServiceLine};
use chrono::{DateTime, Local, Utc};
use serde::Serialize;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::{Look, addresses, table};

/// A person is waiting: a database that does not answer within this is said to be away.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A pool for the tables at `url`.
pub async fn connect(url: &str) -> Result<PgPool> {
    let options = db::options(url, db::SCHEMA)?.application_name("arbees");
    let pool = PgPoolOptions::new().max_connections(2).acquire_timeout(ANSWER_WITHIN);
    pool.connect_with(options).await.context("the database is away")
}

pub async fn pool(look: &Look) -> Result<PgPool> {
    connect(&addresses::find(look)?.database_url).await
}

pub fn print_json<T: Serialize>(value: &T) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

pub fn clock(at: Option<DateTime<Utc>>) -> String {
    at.map_or_else(|| "-".to_owned(), |t| t.with_timezone(&Local).format("%m-%d %H:%M:%S").to_string())
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

/// `arbees migrate`
pub async fn migrate() -> Result<(), Exit> {
    let mut env = process_env();
    let config = DbConfig::read(&mut env);
    let config = env.finish(config).map_err(Exit::Config)?;
    let pool = config.pool("arbees-migrate").map_err(|e| Exit::Failed(e.to_string()))?;
    db::migrate(&pool).await.map_err(|e| Exit::Ground(format!("schema arbees: {}", whole(&e))))?;
    println!("schema arbees is up to date");
    Ok(())
}

/// `arbees status`
pub async fn status(look: &Look) -> Result<()> {
    let summary = queries::summary(&pool(look).await?).await?;
    if look.json {
        return print_json(&summary);
    }
    let lines = [
        ("games live", summary.live),
        ("games scheduled", summary.scheduled),
        ("games suspended", summary.suspended),
        ("games over", summary.over),
        ("assigned", summary.assigned),
        ("not yet confirmed", summary.unconfirmed),
        ("waiting for a shard", summary.queued),
        ("shards", summary.shards),
        ("services", summary.services),
        ("game states", summary.game_states),
        ("dead letters", summary.dead_letters),
        ("alerts open", summary.open_alerts),
        ("log applied up to", summary.sequence),
    ];
    for (name, value) in lines {
        println!("{name:<20} {value:>8}");
    }
    if let Some(url) = crate::addresses::find(look)?.dashboard() {
        println!("\ndashboard            {url}");
    }
    Ok(())
}

/// `arbees games`
pub async fn games(look: &Look, all: bool) -> Result<()> {
    let games = queries::games(&pool(look).await?, all).await?;
    let row = |g: &GameLine| {
        let shard = match (&g.shard, g.queued_since) {
            (Some(shard), _) if g.confirmed_at.is_none() => format!("{shard} (not yet confirmed)"),
            (Some(shard), _) => shard.clone(),
            (None, Some(since)) => format!("waits since {}", clock(Some(since))),
            (None, None) => "-".to_owned(),
        };
        let teams = format!("{} at {}", g.away, g.home);
        vec![
            g.game.clone(),
            teams,
            g.phase.clone(),
            or_dash(g.score.as_ref()),
            clock(g.starts_at),
            shard,
            clock(g.since),
        ]
    };
    let rows: Vec<_> = games.iter().map(row).collect();
    table::show(look, &["GAME", "TEAMS", "PHASE", "SCORE", "STARTS", "SHARD", "SINCE"], &rows, &games)
}

/// `arbees shards` and `arbees services`
pub async fn services(look: &Look, kind: Option<&str>) -> Result<()> {
    let services = queries::services(&pool(look).await?, kind).await?;
    let row = |s: &ServiceLine| {
        let load = s.max_games.filter(|_| s.kind == "shard").map(|most| format!("{}/{most}", s.games));
        let silent = s.silent_for.map(|t| format!("{t:.1} s"));
        let medium = if s.on_log { "log" } else { "redis" };
        vec![
            s.kind.clone(),
            s.instance.clone(),
            or_dash(s.status.as_ref()),
            or_dash(silent),
            or_dash(load),
            medium.to_owned(),
            or_dash(s.version.as_ref()),
            or_dash(s.restarts),
        ]
    };
    let rows: Vec<_> = services.iter().map(row).collect();
    let header = ["KIND", "NAME", "STATUS", "SILENT FOR", "GAMES", "BEATS ON", "VERSION", "RESTARTS"];
    table::show(look, &header, &rows, &services)
}
