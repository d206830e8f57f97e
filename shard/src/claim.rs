//! The claim on the shard's heartbeat subject, driven over the wire. What to do next is the lease's word
//! (`arbees_fleet::lease`).

use arbees_core::bus::{Bus, contract};
use arbees_core::log::{Beaten, Log, Tail};
use arbees_core::retry::Policy;
use arbees_core::time::{now_us, steady_us};
use arbees_fleet::GameSet;
use arbees_fleet::lease::{Last, Step};
use arbees_fleet::state::ServiceKey;
use arbees_proto::{EventId, Payload, ServiceKind, ShardId, envelope, v1};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What came of what the lease asked for, and what was heard that concerns it.
#[derive(Debug)]
pub enum News {
    Beaten {
        number: u64,
        outcome: Beaten,
    },
    Looked {
        asked_us: i64,
        last: Option<Last>,
    },
    Rejoined {
        asked_us: i64,
        set: GameSet,
        tail: Tail,
    },
    /// An orchestrator said whether the log is there.
    Word {
        instance: String,
        log_ok: bool,
    },
}

/// Does for the lease what it asks for, each thing in a task of its own: none may hold up the loop.
#[derive(Debug)]
pub struct Claim {
    log: Log,
    producer: v1::Producer,
    shard: ShardId,
    news: mpsc::Sender<News>,
    stop: CancellationToken,
    /// The beat last composed, for sending the very same again.
    composed: Option<(u64, v1::Event)>,
    is_looking: bool,
    is_rejoining: bool,
}

impl Claim {
    pub const fn new(
        log: Log,
        producer: v1::Producer,
        shard: ShardId,
        news: mpsc::Sender<News>,
        stop: CancellationToken,
    ) -> Self {
        Self { log, producer, shard, news, stop, composed: None, is_looking: false, is_rejoining: false }
    }

    /// Begins what `step` asks for; `beat` is what there is to say.
    pub fn take(&mut self, step: &Step, beat: impl FnOnce() -> v1::Heartbeat) {
        match step {
            Step::Send { number, expected, again } => {
                let composed = self.composed.take().filter(|(n, _)| *again && n == number);
                let (_, event) = composed.unwrap_or_else(|| (*number, self.compose(*number, beat())));
                self.composed = Some((*number, event.clone()));
                self.send(*number, *expected, event);
            }
            Step::Look if !self.is_looking => self.look(),
            Step::Rejoin if !self.is_rejoining => self.rejoin(),
            Step::Look | Step::Rejoin | Step::Wait { .. } | Step::Superseded { .. } => {}
        }
    }

    /// What was begun has come to this.
    pub const fn note(&mut self, news: &News) {
        match news {
            News::Looked { .. } => self.is_looking = false,
            News::Rejoined { .. } => self.is_rejoining = false,
            News::Beaten { .. } | News::Word { .. } => {}
        }
    }

    fn compose(&self, number: u64, beat: v1::Heartbeat) -> v1::Event {
        let now = now_us();
        v1::Event {
            id: EventId::derive(now, &[self.producer.process.as_bytes(), &number.to_le_bytes()]).0.to_vec(),
            occurred_at_us: now,
            producer: Some(self.producer.clone()),
            schema_version: envelope::SCHEMA_VERSION,
            payload: Some(Payload::Heartbeat(beat)),
            ..v1::Event::default()
        }
    }

    fn subject(&self) -> String {
        self.log.names().heartbeat(ServiceKind::Shard, self.shard.as_str())
    }

    fn send(&self, number: u64, expected: u64, event: v1::Event) {
        if !self.log.is_connected() {
            // It would wait in the client's buffer, behind the others; the lease sends it again.
            return;
        }
        let (log, news, subject) = (self.log.clone(), self.news.clone(), self.subject());
        let id = format!("{}:{number}", self.producer.process);
        tokio::spawn(async move {
            let outcome = log.beat(subject, &event, &id, expected).await;
            // A closed channel means that the shard has stopped.
            let _ = news.send(News::Beaten { number, outcome }).await;
        });
    }

    fn look(&mut self) {
        self.is_looking = true;
        let (log, news, subject) = (self.log.clone(), self.news.clone(), self.subject());
        let process = self.producer.process.clone();
        let asked_us = steady_us();
        tokio::spawn(async move {
            let last = log.last_beat(&subject, &process).await;
            if let Err(error) = &last {
                tracing::debug!(%error, "own heartbeat subject cannot be read now");
                tokio::time::sleep(Policy::patient().first).await;
            }
            let _ = news.send(News::Looked { asked_us, last: last.ok() }).await;
        });
    }

    fn rejoin(&mut self) {
        self.is_rejoining = true;
        let (log, news, shard, stop) = (self.log.clone(), self.news.clone(), self.shard.clone(), self.stop.clone());
        tokio::spawn(async move {
            let mut delays = Policy::patient().delays();
            loop {
                match log.recover(&shard).await {
                    Ok((set, tail, asked_us)) => {
                        let _ = news.send(News::Rejoined { asked_us, set, tail }).await;
                        return;
                    }
                    Err(error) => tracing::debug!(%error, "log cannot be read now, trying again"),
                }
                if !delays.wait(&stop).await {
                    return;
                }
            }
        });
    }
}

/// Hears what orchestrators say of the log, for as long as it is polled.
pub async fn hear_words(bus: Bus, news: mpsc::Sender<News>) {
    let mut heard = bus.subscribe(&[contract::LOG_STATUS], &[]);
    while let Some(message) = heard.next().await {
        if let Ok(status) = contract::read_log_status(&message.payload)
            && news.send(News::Word { instance: status.instance, log_ok: status.log_ok }).await.is_err()
        {
            return;
        }
    }
}

/// Answers whoever asks whether the shard is there.
pub async fn answer_probes(log: Log, shard: ShardId) {
    log.answer_probes(&ServiceKey::shard(shard)).await;
}
