//! What is so, from the tables.

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgPool;

use super::Api;
use super::problem::{Problem, Search};
use crate::queries::{self, GameFilter, GameLine};

/// How far CONTROL is in the tables.
const SEQUENCE: HeaderName = HeaderName::from_static("x-arbees-sequence");
/// How long `min_sequence` waits.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Lines of a page: by default, and at most.
const PAGE: i64 = 100;
const LARGEST_PAGE: i64 = 1_000;

/// What any question may say.
#[derive(Debug, Deserialize)]
pub struct Asked {
    min_sequence: Option<u64>,
    phase: Option<String>,
    league: Option<String>,
    shard: Option<String>,
    #[serde(default)]
    all: bool,
    prefix: Option<String>,
    after: Option<String>,
    limit: Option<i64>,
}

fn read(Search(asked): Search<Asked>) -> Result<Asked, Problem> {
    let texts = [&asked.phase, &asked.league, &asked.shard, &asked.prefix, &asked.after];
    if texts.into_iter().flatten().any(|text| text.contains('\0')) {
        return Err(Problem::bad("a text holds a zero byte: allowed are all others"));
    }
    match asked.limit {
        Some(limit) if !(1..=LARGEST_PAGE).contains(&limit) => {
            Err(Problem::bad(format!("limit is {limit}: allowed are 1 to {LARGEST_PAGE}")))
        }
        _ => Ok(asked),
    }
}

/// Waits until the tables have what was asked for; how far they are.
async fn reached(api: &Api, pool: &PgPool, asked: &Asked) -> Result<u64, Problem> {
    let begun = tokio::time::Instant::now();
    loop {
        let at = api.ask(|| queries::sequence(pool)).await?;
        match asked.min_sequence {
            Some(least) if at < least && begun.elapsed() < PATIENCE => tokio::time::sleep(LOOK_EVERY).await,
            Some(least) if at < least => {
                let why = format!("the tables are at {at}, and were not at {least} within {} s", PATIENCE.as_secs());
                return Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, why));
            }
            _ => return Ok(at),
        }
    }
}

/// `value`, tagged: whoever has it already is told just that.
fn answer<T: Serialize>(headers: &HeaderMap, at: u64, value: &T) -> Result<Response, Problem> {
    let body = serde_json::to_vec(value).map_err(|e| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    let tag = format!("\"{}\"", &blake3::hash(&body).to_hex()[..16]);
    let is_known =
        headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()).is_some_and(|had| had.contains(&tag));
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, "application/json")], body).into_response()
    };
    let own = response.headers_mut();
    own.insert(SEQUENCE, HeaderValue::from(at));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        own.insert(header::ETAG, tag);
    }
    Ok(response)
}

pub async fn status(State(api): State<Api>, headers: HeaderMap, question: Search<Asked>) -> Result<Response, Problem> {
    let pool = &api.ground()?.1;
    let at = reached(&api, pool, &read(question)?).await?;
    let summary = api.ask(|| queries::summary(pool)).await?;
    let (_, end) = api.log()?.bounds(arbees_core::log::CONTROL).await.unwrap_or((0, 0));
    let log = json!({ "end": end, "is_connected": api.log()?.is_connected(), "behind": end.saturating_sub(at) });
    answer(&headers, at, &json!({ "fleet": summary, "log": log }))
}

/// A page of games, and after which the next one begins.
async fn page(api: &Api, pool: &PgPool, filter: &GameFilter) -> Result<(Vec<GameLine>, Option<String>), Problem> {
    let games = api.ask(|| queries::games_page(pool, filter)).await?;
    let is_full = i64::try_from(games.len()).is_ok_and(|n| n == filter.limit);
    let next = games.last().filter(|_| is_full).map(|g| g.game.clone());
    Ok((games, next))
}

pub async fn games(State(api): State<Api>, headers: HeaderMap, question: Search<Asked>) -> Result<Response, Problem> {
    let pool = &api.ground()?.1;
    let asked = read(question)?;
    let at = reached(&api, pool, &asked).await?;
    let filter = GameFilter {
        phase: asked.phase,
        league: asked.league,
        shard: asked.shard,
        all: asked.all,
        prefix: asked.prefix.unwrap_or_default(),
        after: asked.after.unwrap_or_default(),
        limit: asked.limit.unwrap_or(PAGE),
    };
    let (games, next) = page(&api, pool, &filter).await?;
    answer(&headers, at, &json!({ "games": games, "next_after": next }))
}

pub async fn assignments(
    State(api): State<Api>,
    headers: HeaderMap,
    question: Search<Asked>,
) -> Result<Response, Problem> {
    let pool = &api.ground()?.1;
    let asked = read(question)?;
    let at = reached(&api, pool, &asked).await?;
    let limit = asked.limit.unwrap_or(PAGE);
    let filter = GameFilter { shard: asked.shard, after: asked.after.unwrap_or_default(), limit, ..Default::default() };
    let (games, next) = page(&api, pool, &filter).await?;
    let line = |g: &GameLine| json!({ "game": g.game, "shard": g.shard, "epoch": g.epoch, "since": g.since, "confirmed_at": g.confirmed_at });
    let owned: Vec<_> = games.iter().filter(|g| g.shard.is_some()).map(line).collect();
    answer(&headers, at, &json!({ "assignments": owned, "next_after": next }))
}

pub async fn shards(api: State<Api>, headers: HeaderMap, question: Search<Asked>) -> Result<Response, Problem> {
    of_kind(&api, &headers, question, Some("shard")).await
}

pub async fn services(api: State<Api>, headers: HeaderMap, question: Search<Asked>) -> Result<Response, Problem> {
    of_kind(&api, &headers, question, None).await
}

async fn of_kind(
    api: &Api,
    headers: &HeaderMap,
    question: Search<Asked>,
    kind: Option<&str>,
) -> Result<Response, Problem> {
    let pool = &api.ground()?.1;
    let at = reached(api, pool, &read(question)?).await?;
    let services = api.ask(|| queries::services(pool, kind)).await?;
    answer(headers, at, &json!({ "services": services }))
}

pub async fn alerts(State(api): State<Api>, headers: HeaderMap, question: Search<Asked>) -> Result<Response, Problem> {
    let pool = &api.ground()?.1;
    let asked = read(question)?;
    let at = reached(&api, pool, &asked).await?;
    let alerts = api.ask(|| queries::alerts(pool, asked.all)).await?;
    answer(&headers, at, &json!({ "alerts": alerts }))
}
