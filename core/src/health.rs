//! `/healthz` and `/readyz`: that a program lives, and how each thing is that it stands on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arbees_proto::v1;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::time::{now_us, rfc3339};

/// How one part is.
#[derive(Clone, Debug, Default)]
struct Part {
    /// What is wrong with it; none: nothing.
    why: Option<String>,
    /// What else is to be said of it.
    detail: String,
    /// Since when it is as it is.
    since_us: i64,
    /// Without it the program is not ready.
    is_essential: bool,
}

/// What a program stands on, and what is wrong with it; shared by all its tasks.
#[derive(Clone, Debug)]
pub struct Health {
    program: &'static str,
    started_us: i64,
    parts: Arc<Mutex<BTreeMap<&'static str, Part>>>,
}

impl Health {
    /// A program that stands on `parts`, none of which is there yet.
    #[must_use]
    pub fn new(program: &'static str, parts: &[&'static str]) -> Self {
        let health = Self { program, started_us: now_us(), parts: Arc::default() };
        for part in parts {
            health.change(part, |p| {
                p.is_essential = true;
                p.why = Some("not reached yet".to_owned());
            });
        }
        health
    }

    /// `part` is there.
    pub fn ok(&self, part: &'static str) {
        self.set(part, None);
    }

    /// `part` is not there, for this reason.
    pub fn failed(&self, part: &'static str, why: impl Into<String>) {
        self.set(part, Some(why.into()));
    }

    /// Says more of `part`, whether it is there or not.
    pub fn detail(&self, part: &'static str, detail: String) {
        self.change(part, |p| p.detail = detail);
    }

    fn set(&self, part: &'static str, why: Option<String>) {
        self.change(part, |p| p.why = why);
    }

    fn change(&self, part: &'static str, how: impl FnOnce(&mut Part)) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let part = parts.entry(part).or_default();
        let was_ok = part.why.is_none();
        how(part);
        if part.since_us == 0 || was_ok != part.why.is_none() {
            part.since_us = now_us();
        }
    }

    /// Whether `part` is there.
    #[must_use]
    pub fn is_ok(&self, part: &str) -> bool {
        self.snapshot().get(part).is_some_and(|p| p.why.is_none())
    }

    /// What is wrong with `part`, if anything is.
    #[must_use]
    pub fn why(&self, part: &str) -> Option<String> {
        self.snapshot().remove(part)?.why
    }

    /// Each part as a heartbeat tells of it.
    #[must_use]
    pub fn checks(&self) -> Vec<v1::Check> {
        let check = |(name, part): (&str, Part)| v1::Check { name: name.to_owned(), ok: part.why.is_none() };
        self.snapshot().into_iter().map(check).collect()
    }

    fn snapshot(&self) -> BTreeMap<&'static str, Part> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
    let app = Router::new().route("/healthz", get(lives)).route("/readyz", get(ready)).with_state(health);
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

/// It lives; and all that it knows of what it stands on, which is no reason to start it anew.
async fn lives(State(health): State<Health>) -> Json<Value> {
    let parts = health.snapshot();
    let is_well = parts.values().all(|p| p.why.is_none());
    let tell = |(name, part): (&'static str, Part)| {
        let mut told = json!({ "ok": part.why.is_none(), "since": rfc3339(part.since_us) });
        for (field, text) in [("why", part.why.unwrap_or_default()), ("detail", part.detail)] {
            if !text.is_empty() {
                told[field] = json!(text);
            }
        }
        (name.to_owned(), told)
    };
    let parts: serde_json::Map<String, Value> = parts.into_iter().map(tell).collect();
    Json(json!({
        "status": if is_well { "ok" } else { "degraded" },
        "program": health.program, "version": env!("CARGO_PKG_VERSION"),
        "started_at": rfc3339(health.started_us), "parts": parts,
    }))
}

async fn ready(State(health): State<Health>) -> (StatusCode, Json<Value>) {
    let parts = health.snapshot();
    let ready = parts.values().filter(|p| p.is_essential).all(|p| p.why.is_none());
    let body: BTreeMap<_, _> =
        parts.into_iter().map(|(part, p)| (part, p.why.unwrap_or_else(|| "ok".to_owned()))).collect();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": ready, "parts": body })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_essential_is_told_and_holds_nobody_up() {
        let health = Health::new("test", &["log"]);
        assert_eq!(ready(State(health.clone())).await.0, StatusCode::SERVICE_UNAVAILABLE);
        health.ok("log");
        health.failed("redis", "away");
        health.detail("log", "answers after 1 ms".into());
        let (status, Json(body)) = ready(State(health.clone())).await;
        assert_eq!((status, body["parts"]["redis"].as_str()), (StatusCode::OK, Some("away")));
        let Json(told) = lives(State(health.clone())).await;
        assert_eq!((told["status"].as_str(), told["program"].as_str()), (Some("degraded"), Some("test")));
        assert_eq!(told["parts"]["log"]["detail"], "answers after 1 ms");
        let checks: Vec<(String, bool)> = health.checks().into_iter().map(|c| (c.name, c.ok)).collect();
        assert_eq!(checks, [("log".to_owned(), true), ("redis".to_owned(), false)]);
    }
}
