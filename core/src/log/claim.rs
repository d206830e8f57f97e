//! Heartbeat subjects: beats conditional on the one before, fences, and asking a silent service whether it is there.

use std::time::Duration;

use arbees_fleet::decide::Probe;
use arbees_fleet::lease::Last;
use arbees_fleet::state::ServiceKey;
use arbees_proto::{EventId, Payload, envelope, v1};
use async_nats::HeaderMap;
use futures::StreamExt as _;

use super::{HEARTBEATS, Log, ReadError, Stored};
use crate::time::now_us;

const EXPECTED_LAST_ON_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence";
const MESSAGE_ID: &str = "Nats-Msg-Id";
/// JetStream's codes for another last sequence than the expected one: stored, and still on its way.
const CONFLICT: u64 = 10_071;
const CONFLICT_IN_FLIGHT: u64 = 10_164;
/// A service that lives answers a probe at once; one that is paused never does.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// Tries to fence a subject in which something moves.
const FENCE_TRIES: usize = 3;

/// What came of a conditional beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beaten {
    Stored { sequence: u64 },
    Refused,
    Unknown,
}

/// What came of a judgement.
#[derive(Debug)]
pub enum Verdict {
    /// It beat after all.
    Alive(Box<Stored>),
    /// The fence naming its last heartbeat stands at this sequence.
    Fenced { fence: u64 },
    /// The log did not answer.
    Unknown,
}

impl Log {
    /// Publishes `event` on `subject` if the last message there has the sequence `expected`.
    pub async fn beat(&self, subject: String, event: &v1::Event, message_id: &str, expected: u64) -> Beaten {
        let mut headers = HeaderMap::new();
        headers.insert(EXPECTED_LAST_ON_SUBJECT, expected.to_string());
        match self.publish_with(headers, subject, event, message_id).await {
            Ok(sequence) => Beaten::Stored { sequence },
            Err(error) if error.has_code(CONFLICT) || error.has_code(CONFLICT_IN_FLIGHT) => Beaten::Refused,
            // A server that is full or ill: nothing is known of what stands there.
            Err(_) => Beaten::Unknown,
        }
    }

    /// The last message on the heartbeat subject of `process`' own instance, as its lease takes it. The numbers of its own
    /// beats stand behind the colon of their message ids.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn last_beat(&self, subject: &str, process: &str) -> Result<Last, ReadError> {
        let Some(stored) = self.last_on(HEARTBEATS, subject).await? else { return Ok(Last::Nothing) };
        let sequence = stored.sequence;
        let event = stored.event().ok();
        Ok(match event.as_ref().and_then(|e| e.payload.as_ref()) {
            Some(Payload::Fence(_)) => Last::Fence { sequence },
            Some(Payload::Heartbeat(beat)) => {
                let theirs = beat.service.as_ref().map_or("", |s| s.process.as_str());
                let number = stored.header(MESSAGE_ID).strip_prefix(process).and_then(|rest| rest.strip_prefix(':'));
                match number.and_then(|n| n.parse().ok()) {
                    Some(number) if theirs == process => Last::Own { sequence, number },
                    _ => {
                        // While it has games it watches them until they are handed over.
                        let stopping = beat.status == "stopping" && beat.games.is_empty();
                        Last::Other { sequence, process: theirs.to_owned(), stopping, fence: beat.fence_sequence }
                    }
                }
            }
            _ => {
                let process = "somebody who is no service".to_owned();
                Last::Other { sequence, process, stopping: false, fence: 0 }
            }
        })
    }

    /// Fences `key`, whose last heartbeat known is at `heartbeat`, unless it has beaten since.
    pub async fn judge(&self, key: &ServiceKey, heartbeat: u64, leader: &v1::Producer, term: u64) -> Verdict {
        let subject = self.names.heartbeat(key.kind, key.instance.as_str());
        for _ in 0..FENCE_TRIES {
            let expected = match self.last_on(HEARTBEATS, &subject).await {
                Err(_) => return Verdict::Unknown,
                // The stream has let go of its beats.
                Ok(None) => 0,
                Ok(Some(stored)) => match stored.event().ok().and_then(|e| e.payload) {
                    // Whichever is not the one known: a stream that lost its tail counts anew.
                    Some(Payload::Heartbeat(beat)) if is_of(&beat, key) && stored.sequence != heartbeat => {
                        return Verdict::Alive(Box::new(stored));
                    }
                    // A fence of this leader or of one before: with a new one whoever has read it must read again. What is no
                    // beat at all is nobody's sign of life.
                    _ => stored.sequence,
                },
            };
            let event = fence(key, heartbeat, leader, term);
            let id = EventId::from_bytes(&event.id).map(|id| id.to_string()).unwrap_or_default();
            match self.beat(subject.clone(), &event, &id, expected).await {
                Beaten::Stored { sequence } => return Verdict::Fenced { fence: sequence },
                Beaten::Refused => {}
                Beaten::Unknown => return Verdict::Unknown,
            }
        }
        Verdict::Unknown
    }

    /// Asks a service whether it is there.
    pub async fn probe(&self, key: &ServiceKey) -> Probe {
        let subject = self.names.probe(key.kind, key.instance.as_str());
        let asked = self.client.request(subject, bytes::Bytes::new());
        match tokio::time::timeout(PROBE_TIMEOUT, asked).await {
            Ok(Ok(_)) => Probe::Answered,
            Ok(Err(error)) if error.kind() == async_nats::client::RequestErrorKind::NoResponders => Probe::Nobody,
            Ok(Err(_)) | Err(_) => Probe::Silent,
        }
    }

    /// Answers probes for `key` for as long as it is polled.
    pub async fn answer_probes(&self, key: &ServiceKey) {
        let subject = self.names.probe(key.kind, key.instance.as_str());
        loop {
            if let Ok(mut asked) = self.client.subscribe(subject.clone()).await {
                while let Some(message) = asked.next().await {
                    if let Some(reply) = message.reply {
                        // Who gets no answer takes us for silent, which is what we are then.
                        let _ = self.client.publish(reply, bytes::Bytes::new()).await;
                    }
                }
            }
            tokio::time::sleep(PROBE_TIMEOUT).await;
        }
    }
}

fn is_of(beat: &v1::Heartbeat, key: &ServiceKey) -> bool {
    beat.service.as_ref().is_some_and(|s| s.kind == key.kind.as_str() && s.instance == key.instance.as_str())
}

fn fence(key: &ServiceKey, heartbeat: u64, leader: &v1::Producer, term: u64) -> v1::Event {
    let now = now_us();
    let fence = v1::Fence {
        kind: key.kind.to_string(),
        instance: key.instance.to_string(),
        heartbeat_sequence: heartbeat,
        term,
    };
    let seed = [leader.process.as_bytes(), key.instance.as_str().as_bytes(), &heartbeat.to_le_bytes()];
    v1::Event {
        id: EventId::derive(now, &seed).0.to_vec(),
        occurred_at_us: now,
        producer: Some(leader.clone()),
        schema_version: envelope::SCHEMA_VERSION,
        payload: Some(Payload::Fence(fence)),
        ..v1::Event::default()
    }
}
