//! The feed over HTTP: `/{sport}/{league}/scoreboard`, `/{sport}/{league}/summary?event=ID`, and `POST /faults/{sport}/{league}`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Fault, Show};

/// A running feed. Ends when dropped.
#[derive(Debug)]
pub struct Feed {
    address: SocketAddr,
    faults: Faults,
    _stop: DropGuard,
}

type Faults = Arc<Mutex<BTreeMap<String, Fault>>>;

#[derive(Clone)]
struct App {
    show: Arc<dyn Show>,
    faults: Faults,
}

impl Feed {
    /// Serves `show` on `listen`, where it begins now.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn serve(listen: SocketAddr, mut show: impl Show) -> Result<Self> {
        show.begin();
        let faults = Faults::default();
        let app = Router::new()
            .route("/{sport}/{league}/scoreboard", get(scoreboard))
            .route("/{sport}/{league}/summary", get(summary))
            .route("/faults/{sport}/{league}", post(set_fault))
            .with_state(App { show: Arc::new(show), faults: faults.clone() });
        let listener = tokio::net::TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(async move { axum::serve(listener, app).with_graceful_shutdown(stopped).await });
        Ok(Self { address, faults, _stop: stop.drop_guard() })
    }

    /// The base URL for `ESPN_BASE_URL`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Spoils the answers of the league at `path` from now on.
    pub fn set_fault(&self, path: &str, fault: Fault) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), fault);
    }
}

async fn scoreboard(
    State(app): State<App>,
    Path((sport, league)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let path = format!("{sport}/{league}");
    let body = app.show.scoreboard(&path).unwrap_or_else(|| Bytes::from_static(b"{\"events\":[]}"));
    app.answer(&path, Some(body), &headers).await
}

async fn summary(
    State(app): State<App>,
    Path((sport, league)): Path<(String, String)>,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let path = format!("{sport}/{league}");
    let body = query.get("event").and_then(|event| app.show.summary(&path, event));
    app.answer(&path, body, &headers).await
}

async fn set_fault(
    State(app): State<App>,
    Path((sport, league)): Path<(String, String)>,
    Json(fault): Json<Fault>,
) -> &'static str {
    app.faults.lock().unwrap_or_else(PoisonError::into_inner).insert(format!("{sport}/{league}"), fault);
    "set\n"
}

impl App {
    async fn answer(&self, path: &str, body: Option<Bytes>, headers: &HeaderMap) -> Response {
        let fault = self.faults.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied();
        let fault = fault.unwrap_or_default();
        match fault {
            Fault::Status { status } => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                return (status, error_body(status)).into_response();
            }
            Fault::Delay { ms } => tokio::time::sleep(Duration::from_millis(ms)).await,
            _ => {}
        }
        let Some(body) = body else {
            return (StatusCode::NOT_FOUND, error_body(StatusCode::NOT_FOUND)).into_response();
        };
        let body = fault.spoil(body);
        let etag = format!("\"{}\"", &blake3::hash(&body).to_hex()[..16]);
        if headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == etag.as_bytes()) {
            return StatusCode::NOT_MODIFIED.into_response();
        }
        let etag = HeaderValue::from_str(&etag).unwrap_or_else(|_| HeaderValue::from_static("\"\""));
        ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json")), (header::ETAG, etag)], body)
            .into_response()
    }
}

fn error_body(status: StatusCode) -> String {
    serde_json::json!({ "error": { "code": status.as_u16(), "message": status.canonical_reason() } }).to_string()
}
