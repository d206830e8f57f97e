//! What comes in: each source is a task that puts its inputs into one bounded inbox.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use arbees_core::bus::{Bus, Heard, contract};
use arbees_core::log::{HEARTBEATS, Log, ReadError};
use arbees_fleet::Input;
use arbees_fleet::decide::{MarketsFound, Medium};
use arbees_proto::{Payload, ServiceKind, v1};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Inputs that may wait. A fleet of 1,000 shards beats a thousand times a second; a loop that is 4 s behind must shed.
pub const CAPACITY: usize = 4_096;
/// A sender of garbage is logged once in this time.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// Senders of garbage that are remembered.
const MAX_COMPLAINTS: usize = 1_000;

/// What the loop is told.
#[derive(Debug)]
pub enum Mail {
    Input(Input),
    /// A service that starts wants to know what there is for its kind.
    StateAsked(String),
}

/// Starts all sources but discovery.
pub async fn start(
    log: &Log,
    bus: &Bus,
    inbox: mpsc::Sender<Mail>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<(), ReadError> {
    let (_, end) = log.bounds(HEARTBEATS).await?;
    let mut beats = log.tail(HEARTBEATS, Vec::new(), end + 1);
    let to = inbox.clone();
    spawn(tasks, stop, async move {
        while let Some(stored) = beats.next().await {
            match stored.event() {
                Ok(event) if is_orchestrator(&event) => {}
                Ok(event) => put(&to, Mail::Input(Input::Beat(Box::new(event), Medium::Log))),
                Err(error) => tracing::warn!(sequence = stored.sequence, %error, "heartbeat does not decode"),
            }
        }
    });
    let channels = [contract::SERVICE_HEARTBEATS, contract::DISCOVERY_RESULTS, contract::STATE_REQUEST];
    let mut heard = bus.subscribe(&channels, &[contract::SHARD_HEARTBEATS]);
    spawn(tasks, stop, async move {
        let mut complaints = Complaints::default();
        while let Some(message) = heard.next().await {
            match read(&message) {
                Ok(Some(mail)) => put(&inbox, mail),
                Ok(None) => {}
                Err(error) => complaints.note(&message.channel, &error),
            }
        }
    });
    Ok(())
}

fn spawn(tasks: &TaskTracker, stop: &CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    let stop = stop.clone();
    tasks.spawn(async move { stop.run_until_cancelled(work).await });
}

fn put(inbox: &mpsc::Sender<Mail>, mail: Mail) {
    if let Err(mpsc::error::TrySendError::Full(_)) = inbox.try_send(mail) {
        // Beats come again, and what they tell is compared anew: the cheapest thing to lose.
        tracing::warn!(CAPACITY, "inbox is full, input dropped");
    }
}

/// Orchestrators beat for others to see; they decide nothing about themselves.
fn is_orchestrator(event: &v1::Event) -> bool {
    let Some(Payload::Heartbeat(beat)) = &event.payload else { return false };
    beat.service.as_ref().is_some_and(|s| s.kind == ServiceKind::Orchestrator.as_str())
}

fn read(message: &Heard) -> Result<Option<Mail>, contract::BadPayload> {
    let payload = &message.payload;
    Ok(Some(match message.channel.as_str() {
        contract::DISCOVERY_RESULTS => {
            let found = contract::read_discovery_result(payload)?;
            Mail::Input(Input::Markets(MarketsFound {
                game: found.game_id,
                sport: found.sport.and_then(|s| s.to_lowercase().parse().ok()),
                kalshi: found.kalshi_moneyline,
                polymarket: found.polymarket_moneyline,
            }))
        }
        contract::STATE_REQUEST => Mail::StateAsked(contract::read_state_request(payload)?),
        contract::SERVICE_HEARTBEATS => return Ok(beat(contract::read_service_beat(payload)?)),
        _ => return Ok(beat(contract::read_shard_beat(payload)?)),
    }))
}

/// A beat over Redis; one that also comes over the log counts there only.
fn beat(beat: contract::BusBeat) -> Option<Mail> {
    let event = v1::Event { payload: Some(Payload::Heartbeat(beat.beat)), ..v1::Event::default() };
    (!beat.on_log).then(|| Mail::Input(Input::Beat(Box::new(event), Medium::Redis)))
}

/// Counts what could not be read, by channel, and says so once a minute.
#[derive(Default)]
struct Complaints(BTreeMap<String, (Instant, u64)>);

impl Complaints {
    fn note(&mut self, channel: &str, error: &contract::BadPayload) {
        if self.0.len() >= MAX_COMPLAINTS {
            self.0.clear();
        }
        let now = Instant::now();
        let known = self.0.get_mut(channel).filter(|(at, _)| now - *at < COMPLAIN_EVERY);
        if let Some((_, count)) = known {
            *count += 1;
            return;
        }
        let since = self.0.insert(channel.to_owned(), (now, 0)).map_or(0, |(_, count)| count);
        tracing::warn!(channel, %error, dropped_since_last = since, "payload cannot be read, dropped");
    }
}
