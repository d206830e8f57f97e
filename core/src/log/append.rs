//! The conditional append, driven over the wire. What to do next is the protocol's word (`arbees_fleet::append`).

use std::sync::PoisonError;
use std::time::Instant;

use arbees_fleet::append::{Append, Heard, Outcome, Step};
use arbees_proto::envelope::{HEADER_HASH, HEADER_TYPE, hex};
use arbees_proto::{Sealed, v1};
use async_nats::HeaderMap;
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use super::api::{ApiError, NO_MESSAGE};
use super::{CONTROL, Log, Stored};
use crate::metrics::figure;
use crate::retry::Policy;
use crate::traces::{self, Place};

/// Headers of an atomic batch (NATS ADR-50).
const BATCH_ID: &str = "Nats-Batch-Id";
const BATCH_SEQUENCE: &str = "Nats-Batch-Sequence";
const BATCH_COMMIT: &str = "Nats-Batch-Commit";
const EXPECTED_LAST: &str = "Nats-Expected-Last-Sequence";
const MESSAGE_ID: &str = "Nats-Msg-Id";

/// Why an append ended without an outcome.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    #[error("canceled while the outcome of an append was unknown")]
    Canceled,
    #[error("nothing to append")]
    Empty,
    #[error("the log ends at {end}, before {expected} where it was known to end: it has lost its tail or was replaced")]
    LostTail { expected: u64, end: u64 },
}

impl Log {
    /// Appends `events` to CONTROL right after `expected`, all or none but for a power cut, for as long as it takes.
    ///
    /// # Errors
    /// Canceled: the outcome is then unknown. [`AppendError::LostTail`]: nothing is stored, and what was decided stands on
    /// events that are no more.
    pub async fn append(
        &self,
        expected: u64,
        events: &[Sealed],
        cancel: &CancellationToken,
    ) -> Result<Outcome, AppendError> {
        if events.is_empty() {
            return Err(AppendError::Empty);
        }
        let places = self.place(events);
        let (mut append, mut step) = Append::new(expected, events.iter().map(|e| e.id).collect());
        let mut delays = Policy::patient().delays();
        let mut waited = false;
        loop {
            let asking = async {
                match &step {
                    Step::Send { expected } => Ok(self.send(*expected, events, &places).await),
                    Step::ReadBack { from, count } => Ok(self.read_ids(*from, *count).await),
                    Step::Done(outcome) => Err(outcome.clone()),
                }
            };
            let heard = match cancel.run_until_cancelled(asking).await {
                None => return Err(AppendError::Canceled),
                Some(Err(outcome)) => {
                    if matches!(outcome, Outcome::Stored { .. }) {
                        events.iter().zip(&places).for_each(|(e, p)| traces::sent(&e.event, p.own, p.parent));
                    }
                    return Ok(outcome);
                }
                Some(Ok(heard)) => heard,
            };
            if heard == Heard::Read(Vec::new()) {
                self.check_tail(expected).await?;
            }
            let missed = matches!(heard, Heard::Unknown | Heard::Unread);
            step = append.next(&heard);
            if missed || (heard == Heard::Read(Vec::new())) {
                if !waited {
                    tracing::warn!(expected, events = events.len(), "append not acknowledged, closing it");
                    waited = true;
                }
                if !delays.wait(cancel).await {
                    return Err(AppendError::Canceled);
                }
            }
        }
    }

    /// Refused, and nothing stands where ours should: the log may end before it.
    async fn check_tail(&self, expected: u64) -> Result<(), AppendError> {
        match self.bounds(CONTROL).await {
            Ok((_, end)) if end < expected => Err(AppendError::LostTail { expected, end }),
            // It ends where it should, or cannot be asked now.
            _ => Ok(()),
        }
    }

    async fn send(&self, expected: u64, events: &[Sealed], places: &[Placed]) -> Heard {
        let sent = Instant::now();
        let result = match (events, places) {
            ([only], [place]) => {
                let mut headers = headers_of(only, place);
                headers.insert(EXPECTED_LAST, expected.to_string());
                self.publish_acked(only.subject.clone(), headers, only.payload.clone()).await
            }
            _ => self.send_batch(expected, events, places).await,
        };
        match result {
            Ok(last_sequence) => {
                ::metrics::histogram!("arbees_log_append_seconds").record(sent.elapsed());
                ::metrics::histogram!("arbees_log_batch_events").record(figure(events.len()));
                Heard::Stored { last_sequence }
            }
            Err(ApiError::Refused { code, description }) => {
                tracing::info!(code, description, "append refused, looking at what stands there");
                Heard::Refused
            }
            Err(ApiError::Unknown(_)) => Heard::Unknown,
        }
    }

    async fn send_batch(&self, expected: u64, events: &[Sealed], places: &[Placed]) -> Result<u64, ApiError> {
        let batch = uuid::Uuid::new_v4().simple().to_string();
        for (index, (event, place)) in events.iter().zip(places).enumerate() {
            let mut headers = headers_of(event, place);
            headers.insert(BATCH_ID, batch.as_str());
            headers.insert(BATCH_SEQUENCE, (index + 1).to_string());
            if index == 0 {
                headers.insert(EXPECTED_LAST, expected.to_string());
            }
            if index + 1 == events.len() {
                headers.insert(BATCH_COMMIT, "1");
                return self.publish_acked(event.subject.clone(), headers, event.payload.clone()).await;
            }
            self.client
                .publish_with_headers(event.subject.clone(), headers, event.payload.clone())
                .await
                .map_err(|e| ApiError::Unknown(e.to_string()))?;
        }
        Err(ApiError::Unknown("an empty batch".to_owned()))
    }

    /// The ids stored from `from` on. Read from the stream's leader: a replica may lag.
    async fn read_ids(&self, from: u64, count: usize) -> Heard {
        let mut ids = Vec::new();
        for sequence in (from..).take(count) {
            match self.get(CONTROL, sequence).await {
                Ok(stored) => ids.push(stored.id()),
                Err(error) if error.has_code(NO_MESSAGE) => break,
                Err(_) => return Heard::Unread,
            }
        }
        Heard::Read(ids)
    }

    /// Publishes an event that needs no condition: a heartbeat, a game's state. The id makes a repeat harmless within the
    /// stream's duplicate window.
    ///
    /// # Errors
    /// When the server refuses, or does not answer: then the outcome is unknown.
    pub async fn publish(&self, subject: String, event: &v1::Event, message_id: &str) -> Result<u64, ApiError> {
        self.publish_with(HeaderMap::new(), subject, event, message_id).await
    }

    /// The same, with `headers` that say more.
    pub(super) async fn publish_with(
        &self,
        mut headers: HeaderMap,
        subject: String,
        event: &v1::Event,
        message_id: &str,
    ) -> Result<u64, ApiError> {
        headers.insert(HEADER_TYPE, event.payload.as_ref().map_or("", arbees_proto::subject::type_name));
        headers.insert(MESSAGE_ID, message_id);
        let place = traces::place_of(event);
        if let Some(place) = place {
            headers.insert(traces::HEADER, place.to_header());
        }
        let sequence = self.publish_acked(subject, headers, event.encode_to_vec().into()).await?;
        if let Some(place) = place {
            traces::sent(event, place, None);
        }
        Ok(sequence)
    }

    /// Notes where an event of another leader stands in its trace, so that what follows from it goes on there.
    pub fn remember_trace(&self, stored: &Stored) {
        if let (Some(id), Some(place)) = (stored.id(), Place::parse(stored.header(traces::HEADER))) {
            self.traced.lock().unwrap_or_else(PoisonError::into_inner).remember(id, place);
        }
    }

    fn place(&self, events: &[Sealed]) -> Vec<Placed> {
        let mut traced = self.traced.lock().unwrap_or_else(PoisonError::into_inner);
        events.iter().map(|e| Placed { parent: traced.parent(e), own: traced.place(e) }).collect()
    }
}

/// Where a decision and its cause stand in their trace.
struct Placed {
    own: Place,
    parent: Option<Place>,
}

fn headers_of(event: &Sealed, place: &Placed) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(traces::HEADER, place.own.to_header());
    headers.insert(MESSAGE_ID, event.id.to_string());
    headers.insert(HEADER_TYPE, event.event_type);
    if let Some(hash) = &event.hash {
        headers.insert(HEADER_HASH, hex(hash));
    }
    headers
}
