//! What is new, as server-sent events: each event of CONTROL as a line, with its sequence as its id, so that whoever was cut off
//! goes on where it stopped (`Last-Event-ID`).

use std::convert::Infallible;

use arbees_core::log::CONTROL;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, stream};
use serde::Deserialize;

use super::Api;
use super::problem::{Problem, Search};
use crate::audit::story;

/// From where on.
#[derive(Debug, Deserialize)]
pub struct From {
    from: Option<u64>,
}

pub async fn events(
    State(api): State<Api>,
    headers: HeaderMap,
    Search(from): Search<From>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let log = api.log()?;
    let listener = api.0.listeners.clone().try_acquire_owned();
    let listener =
        listener.map_err(|_| Problem::new(StatusCode::TOO_MANY_REQUESTS, "too many listeners: try again"))?;
    let last = headers.get("last-event-id").and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let (_, end) = log.bounds(CONTROL).await.map_err(|e| Problem::away(e.to_string()))?;
    let wanted = last.map(|last| last.saturating_add(1)).or(from.from).unwrap_or(end + 1);
    // A log that was put back ends before what was heard: whoever listens must not wait until it is as long again.
    let next = wanted.min(end + 1);
    let tail = log.tail(CONTROL, Vec::new(), next);
    let lines = stream::unfold((tail, listener), |(mut tail, listener)| async move {
        loop {
            // A stream that lost its tail ends this: whoever listens reads anew.
            let stored = tail.next().await?;
            let Some(line) = story::line(&stored) else { continue };
            let event = Event::default().id(line.sequence.to_string()).event(line.event_type.clone());
            if let Ok(event) = event.json_data(&line) {
                return Some((Ok(event), (tail, listener)));
            }
        }
    });
    Ok(Sse::new(lines).keep_alive(KeepAlive::default()))
}
