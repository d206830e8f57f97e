//! `/healthz` and `/readyz`: that a program lives, and whether each thing it stands on is there.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use tokio_util::sync::CancellationToken;

/// What a program stands on, and what is wrong with it; shared by all its tasks.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, Option<String>>>>);

impl Health {
    /// A program that stands on `parts`, none of which is there yet.
    #[must_use]
    pub fn new(parts: &[&'static str]) -> Self {
        Self(Arc::new(Mutex::new(parts.iter().map(|p| (*p, Some("not reached yet".to_owned()))).collect())))
    }

    /// `part` is there.
    pub fn ok(&self, part: &'static str) {
        self.set(part, None);
    }

    /// `part` is not there, for this reason.
    pub fn failed(&self, part: &'static str, why: impl Into<String>) {
        self.set(part, Some(why.into()));
    }

    fn set(&self, part: &'static str, why: Option<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(part, why);
    }

    /// Whether `part` is there.
    #[must_use]
    pub fn is_ok(&self, part: &str) -> bool {
        self.snapshot().get(part).is_some_and(Option::is_none)
    }

    /// Each part with what is wrong with it.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<&'static str, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves both, and what else the program has to tell, on `listen` until `stop`; returns the address that was bound.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    listen: SocketAddr,
    health: Health,
    more: Router,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let app = Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(ready)).with_state(health);
    let app = app.merge(more);
    let listener = tokio::net::TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let serving = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned());
        if let Err(error) = serving.await {
            tracing::warn!(%error, "health is served no more");
        }
    });
    Ok(address)
}

async fn ready(State(health): State<Health>) -> (StatusCode, Json<serde_json::Value>) {
    let parts = health.snapshot();
    let ready = parts.values().all(Option::is_none);
    let body: BTreeMap<_, _> =
        parts.into_iter().map(|(part, why)| (part, why.unwrap_or_else(|| "ok".to_owned()))).collect();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(serde_json::json!({ "ready": ready, "parts": body })))
}
