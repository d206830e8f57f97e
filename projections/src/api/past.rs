//! What was so, and why: from the log itself. The tables are not asked.

use arbees_proto::GameId;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use chrono::Utc;
use serde::Deserialize;
use serde_json::{Value, json};

use tokio::sync::SemaphorePermit;

use super::Api;
use super::problem::{Problem, Search};
use crate::audit::{self, Moment, Source, Subject, explain, sequence_at};

/// Lines of one history at most: the last ones.
const MOST_LINES: usize = 10_000;

/// From when to when, or at which moment.
#[derive(Debug, Deserialize)]
pub struct When {
    at: Option<String>,
    from: Option<String>,
    to: Option<String>,
}

/// Times without an offset are UTC: a server's own zone is nobody's business.
fn moment(text: Option<&str>, otherwise: Moment) -> Result<Moment, Problem> {
    text.map_or(Ok(otherwise), |text| Moment::parse(text, &Utc, Utc::now()).map_err(Problem::bad))
}

impl Api {
    fn source(&self) -> Result<Source, Problem> {
        Ok(Source::Log(self.log()?.clone()))
    }
}

impl Api {
    /// One of few: a queue of those who wait would only grow.
    fn turn(&self) -> Result<SemaphorePermit<'_>, Problem> {
        let why = "questions about the past are being answered: try again";
        self.0.folds.try_acquire().map_err(|_| Problem::new(StatusCode::TOO_MANY_REQUESTS, why))
    }
}

pub async fn explain(
    State(api): State<Api>,
    Path(id): Path<String>,
    Search(when): Search<When>,
) -> Result<Json<explain::Explanation>, Problem> {
    let game: GameId = id.parse().map_err(|e: arbees_proto::ids::BadId| Problem::bad(e.to_string()))?;
    let source = api.source()?;
    let _turn = api.turn()?;
    let sequence = sequence_at(&source, moment(when.at.as_deref(), Moment::Now)?).await?;
    Ok(Json(explain::explain(&source, &game, sequence).await?))
}

pub async fn history(State(api): State<Api>, Path((of, id)): Path<(String, String)>) -> Result<Json<Value>, Problem> {
    let subject = Subject::of(&of, &id).ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, format!("there is no history of {of}: allowed are game, shard, alert"))
    })?;
    let source = api.source()?;
    let _turn = api.turn()?;
    let mut lines = audit::history(&source, &subject).await?;
    let left_out = lines.len().saturating_sub(MOST_LINES);
    lines.drain(..left_out);
    Ok(Json(json!({ "events": lines, "left_out": left_out })))
}

pub async fn state(State(api): State<Api>, Search(when): Search<When>) -> Result<Json<Value>, Problem> {
    let source = api.source()?;
    let _turn = api.turn()?;
    let sequence = sequence_at(&source, moment(when.at.as_deref(), Moment::Now)?).await?;
    let state = source.fold(sequence).await?;
    let hash = arbees_proto::envelope::hex(&state.hash());
    Ok(Json(json!({ "state": state, "state_hash": hash })))
}

pub async fn sla(State(api): State<Api>, Search(when): Search<When>) -> Result<Json<Value>, Problem> {
    let source = api.source()?;
    let _turn = api.turn()?;
    let from = moment(when.from.as_deref(), Moment::Sequence(1))?;
    let to = moment(when.to.as_deref(), Moment::Now)?;
    let sla = audit::sla(&source, from, to, |_, _| ()).await?;
    Ok(Json(json!(sla)))
}
