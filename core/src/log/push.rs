//! A push consumer of our own: ordered, flow-controlled, with an idle heartbeat of 500 ms, so that a dead tail is noticed
//! within a lease. (The client library's ordered consumer notices after 10 s.)

use std::time::Duration;

use async_nats::{Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::json;

use super::stored::{Stored, place};
use super::{ApiError, Log};
use crate::time::steady_us;

/// How often the server says that it has nothing.
const IDLE_HEARTBEAT: Duration = Duration::from_millis(500);
/// Silence after which a consumer is taken for dead: three missed heartbeats and scheduling noise.
const SILENCE: Duration = Duration::from_millis(1_750);
/// The server removes a consumer nobody listens to after this.
const INACTIVE: Duration = Duration::from_secs(10);

/// What is to be read.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    /// The stream's whole name.
    pub stream: String,
    /// Subjects; empty: all.
    pub filters: Vec<String>,
    pub start: Start,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    Sequence(u64),
    LastPerSubject,
}

/// Why a consumer is of no more use. Another one, from where this one stood, is.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("a message was missed")]
    Gap,
    #[error("nothing heard for {} ms", SILENCE.as_millis())]
    Silent,
    #[error("the subscription ended")]
    Ended,
    #[error("the server ended it: {0}")]
    Status(String),
}

/// A running consumer.
#[derive(Debug)]
pub(super) struct Push {
    log: Log,
    spec: Spec,
    name: String,
    subscriber: Subscriber,
    consumer_sequence: u64,
    /// Messages that were waiting when it began.
    pub pending: u64,
    /// When it last stood at the stream's end, by the steady clock: the server had nothing more to send.
    pub at_end_us: Option<i64>,
    /// When it was opened, if there was nothing to send then.
    opened_at_end_us: Option<i64>,
}

impl Push {
    pub(super) async fn open(log: &Log, spec: &Spec) -> Result<Self, ApiError> {
        let (inbox, asked_us) = (log.client.new_inbox(), steady_us());
        let subscriber = log.client.subscribe(inbox.clone()).await.map_err(|e| ApiError::Unknown(e.to_string()))?;
        let mut config = json!({
            "deliver_subject": inbox, "ack_policy": "none", "replay_policy": "instant", "max_deliver": 1,
            "flow_control": true, "idle_heartbeat": nanos(IDLE_HEARTBEAT), "inactive_threshold": nanos(INACTIVE),
            "mem_storage": true, "num_replicas": 1,
        });
        match spec.start {
            Start::Sequence(from) => {
                config["deliver_policy"] = json!("by_start_sequence");
                config["opt_start_seq"] = json!(from.max(1));
            }
            Start::LastPerSubject => config["deliver_policy"] = json!("last_per_subject"),
        }
        match spec.filters.as_slice() {
            [] => {}
            [only] => config["filter_subject"] = json!(only),
            several => config["filter_subjects"] = json!(several),
        }
        let body = json!({ "stream_name": spec.stream, "config": config });
        let info = log.api(&format!("CONSUMER.CREATE.{}", spec.stream), &body).await?;
        let pending = info["num_pending"].as_u64().unwrap_or(0);
        Ok(Self {
            log: log.clone(),
            spec: spec.clone(),
            name: info["name"].as_str().unwrap_or_default().to_owned(),
            subscriber,
            consumer_sequence: 0,
            pending,
            at_end_us: None,
            opened_at_end_us: (pending == 0).then_some(asked_us),
        })
    }

    /// The next message, however long it takes.
    pub(super) async fn next(&mut self) -> Result<Stored, Broken> {
        loop {
            if let Some(stored) = self.step().await? {
                return Ok(stored);
            }
        }
    }

    /// The next message, or none when it newly stands at the stream's end; control messages are dealt with.
    pub(super) async fn step(&mut self) -> Result<Option<Stored>, Broken> {
        self.at_end_us = self.opened_at_end_us.take();
        if self.at_end_us.is_some() {
            return Ok(None);
        }
        loop {
            let message = tokio::time::timeout(SILENCE, self.subscriber.next())
                .await
                .map_err(|_| Broken::Silent)?
                .ok_or(Broken::Ended)?;
            match message.status {
                None => return self.accept(message).map(Some),
                Some(StatusCode::IDLE_HEARTBEAT) => {
                    self.on_control(&message).await?;
                    if self.at_end_us.is_some() {
                        return Ok(None);
                    }
                }
                Some(status) => {
                    return Err(Broken::Status(message.description.unwrap_or_else(|| status.to_string())));
                }
            }
        }
    }

    fn accept(&mut self, message: Message) -> Result<Stored, Broken> {
        let place = message.reply.as_deref().and_then(place).ok_or(Broken::Gap)?;
        if place.consumer_sequence != self.consumer_sequence + 1 {
            return Err(Broken::Gap);
        }
        self.consumer_sequence = place.consumer_sequence;
        self.at_end_us = (place.pending == 0).then(steady_us);
        Ok(Stored {
            sequence: place.sequence,
            stored_at_ns: place.stored_at_ns,
            pending: place.pending,
            subject: message.subject.to_string(),
            headers: message.headers,
            payload: message.payload,
        })
    }

    async fn on_control(&mut self, message: &Message) -> Result<(), Broken> {
        let header = |name: &str| message.headers.as_ref()?.get(name).map(|v| v.as_str().to_owned());
        let delivered = header("Nats-Last-Consumer").and_then(|v| v.parse::<u64>().ok());
        if delivered.is_some_and(|d| d != self.consumer_sequence) {
            return Err(Broken::Gap);
        }
        if delivered.is_some() && header("Nats-Consumer-Stalled").is_none() {
            // It is sent when there has been nothing to send.
            self.at_end_us = Some(steady_us());
        }
        let answer_to = message.reply.as_ref().map(ToString::to_string).or_else(|| header("Nats-Consumer-Stalled"));
        if let Some(subject) = answer_to {
            self.log.client.publish(subject, Bytes::new()).await.map_err(|_| Broken::Ended)?;
        }
        Ok(())
    }

    /// Tells the server that it is no longer wanted; without an answer it goes by itself after a while.
    pub(super) async fn close(mut self) {
        let verb = format!("CONSUMER.DELETE.{}.{}", self.spec.stream, self.name);
        // Both are courtesies.
        let _ = self.subscriber.unsubscribe().await;
        let _ = self.log.api(&verb, &json!({})).await;
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
