//! The query API: what is so, from the tables; what was so and why, from the log. JSON, versioned, read only; and the dashboard
//! that is drawn from it.
//!
//! Answers from the tables carry `X-Arbees-Sequence`, up to which CONTROL is in them at least; `?min_sequence=` waits for it.

mod live;
mod openapi;
mod past;
mod problem;
mod tables;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arbees_core::db;
use arbees_core::log::Log;
use arbees_core::metrics::histogram;
use arbees_core::retry::GaveUp;
use arbees_core::time::{now_us, rfc3339};
use axum::Router;
use axum::extract::{MatchedPath, Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::get;
use sqlx::PgPool;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use problem::Problem;

/// Requests that are answered at a time. More are refused: whoever polls comes again.
const AT_ONCE: usize = 32;
/// Requests about the past at a time: each may fold the log.
const FOLDS_AT_ONCE: usize = 4;
/// Listeners to what is new.
const LISTENERS: usize = 64;
/// A database that does not answer within this is away.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What answers stand on. It is served from the start on, and says so while the ground is not reached.
#[derive(Clone, Debug)]
pub struct Api(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ground: OnceLock<(Log, PgPool)>,
    token: Option<blake3::Hash>,
    at_once: Semaphore,
    folds: Semaphore,
    listeners: Arc<Semaphore>,
    /// Since when the database does not answer.
    away_since_us: Mutex<Option<i64>>,
}

impl Api {
    /// An API that asks for `token`, if there is one.
    #[must_use]
    pub fn new(token: Option<&str>) -> Self {
        Self(Arc::new(Inner {
            ground: OnceLock::new(),
            token: token.map(|t| blake3::hash(t.as_bytes())),
            at_once: Semaphore::new(AT_ONCE),
            folds: Semaphore::new(FOLDS_AT_ONCE),
            listeners: Arc::new(Semaphore::new(LISTENERS)),
            away_since_us: Mutex::new(None),
        }))
    }

    /// Log and database are there.
    pub fn stand_on(&self, log: Log, pool: PgPool) {
        // Told once, at start.
        let _ = self.0.ground.set((log, pool));
    }

    /// All routes.
    pub fn router(&self) -> Router {
        let asked = Router::new()
            .route("/v1/status", get(tables::status))
            .route("/v1/games", get(tables::games))
            .route("/v1/assignments", get(tables::assignments))
            .route("/v1/shards", get(tables::shards))
            .route("/v1/services", get(tables::services))
            .route("/v1/alerts", get(tables::alerts))
            .route_layer(axum::middleware::from_fn_with_state(self.clone(), bounded));
        let past = Router::new()
            .route("/v1/history/{of}/{id}", get(past::history))
            .route("/v1/explain/game/{id}", get(past::explain))
            .route("/v1/state", get(past::state))
            .route("/v1/sla", get(past::sla));
        Router::new()
            .merge(asked)
            .merge(past)
            .route("/v1/events", get(live::events))
            .route("/v1/openapi.json", get(openapi::document))
            .route("/v1/{*unknown}", get(unknown))
            .route_layer(axum::middleware::from_fn_with_state(self.clone(), allowed))
            .route("/runbook/{kind}", get(runbook))
            .route("/", get(dashboard))
            .route_layer(axum::middleware::from_fn(measured))
            .with_state(self.clone())
    }

    fn ground(&self) -> Result<&(Log, PgPool), Problem> {
        self.0
            .ground
            .get()
            .ok_or_else(|| Problem::away("the projector is starting: log or database are not reached yet"))
    }

    fn log(&self) -> Result<&Log, Problem> {
        Ok(&self.ground()?.0)
    }

    /// Asks the database, within a limit, again when that may help, and remembers since when it does not answer.
    async fn ask<T, Op, Fut>(&self, op: Op) -> Result<T, Problem>
    where
        Op: FnMut() -> Fut,
        Fut: Future<Output = Result<T, sqlx::Error>>,
    {
        let (policy, never) = (db::retry_policy(), CancellationToken::new());
        let asking = db::retrying("query", &policy, &never, op);
        let why = match tokio::time::timeout(ANSWER_WITHIN, asking).await {
            Ok(Ok(answer)) => {
                *self.away() = None;
                return Ok(answer);
            }
            // It answers, and refuses this question.
            Ok(Err(GaveUp::Permanent(sqlx::Error::Database(_)))) => {
                return Err(Problem::bad("the database refuses this question"));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", ANSWER_WITHIN.as_secs()),
        };
        let since = rfc3339(*self.away().get_or_insert_with(now_us));
        Err(Problem::away(format!("the database is away since {since}: {why}")))
    }

    fn away(&self) -> std::sync::MutexGuard<'_, Option<i64>> {
        self.0.away_since_us.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The dashboard: one page, nothing else is fetched for it but what this API answers.
async fn dashboard() -> Response {
    let mut page = Html(include_str!("dashboard.html")).into_response();
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";
    page.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    page
}

/// What an alert means and what to do, out of the manual.
async fn runbook(Path(kind): Path<String>) -> Result<String, Problem> {
    let manual = include_str!("../../../docs/operations.md");
    let section = manual.split("\n### ").skip(1).find_map(|s| s.strip_prefix(kind.as_str())?.strip_prefix('\n'));
    let none = || Problem::new(StatusCode::NOT_FOUND, format!("the manual has no heading {kind}"));
    let text = section.and_then(|s| s.split("\n## ").next()).ok_or_else(none)?;
    Ok(format!("{kind}\n\n{}\n", text.trim()))
}

async fn unknown(request: Request) -> Problem {
    let path = request.uri().path().to_owned();
    Problem::new(StatusCode::NOT_FOUND, format!("there is nothing at {path}; /v1/openapi.json says what is"))
}

#[derive(serde::Deserialize)]
struct Token {
    token: Option<String>,
}

/// Whoever asks needs the token, if there is one.
async fn allowed(State(api): State<Api>, request: Request, next: Next) -> Response {
    let Some(token) = &api.0.token else { return next.run(request).await };
    let bearer = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
    // A browser's event source can send no headers.
    let query = Query::<Token>::try_from_uri(request.uri()).ok().and_then(|Query(t)| t.token);
    // Hashes are compared, so that the time it takes tells nothing of the token.
    match bearer.or(query.as_deref()).map(|given| blake3::hash(given.as_bytes())) {
        Some(given) if given == *token => next.run(request).await,
        _ => {
            let why = "API_READ_TOKEN is set: send it as Authorization: Bearer, or as ?token=";
            Problem::new(StatusCode::UNAUTHORIZED, why).into_response()
        }
    }
}

/// How long it took to answer, by route: its pattern, and not what somebody filled in.
async fn measured(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|p| p.as_str().to_owned()).unwrap_or_default();
    let began = Instant::now();
    let response = next.run(request).await;
    histogram!("arbees_api_request_seconds", "path" => route).record(began.elapsed());
    response
}

/// So many at a time, and no more.
async fn bounded(State(api): State<Api>, request: Request, next: Next) -> Response {
    let Ok(_permit) = api.0.at_once.try_acquire() else {
        let why = format!("{AT_ONCE} requests are being answered: try again");
        return Problem::new(StatusCode::TOO_MANY_REQUESTS, why).into_response();
    };
    next.run(request).await
}
