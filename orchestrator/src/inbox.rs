//! What comes in: each source is a task that puts its inputs into one bounded inbox.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arbees_core::bus::{Bus, Heard, contract};
use arbees_core::log::{Asked, HEARTBEATS, Log, ReadError};
use arbees_core::metrics::counter;
use arbees_core::shutdown::spawn;
use arbees_fleet::Input;
use arbees_fleet::decide::{MarketsFound, Medium};
use arbees_proto::subject::Names;
use arbees_proto::{Payload, ServiceKind, v1};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Inputs that may wait. A fleet of 1,000 shards beats a thousand times a second; a loop that is 4 s behind must shed.
pub const CAPACITY: usize = 4_096;
/// A sender of garbage is logged once in this time.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// A stream that lost its tail and cannot be asked where it ends is asked again after this.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Senders of garbage that are remembered.
const MAX_COMPLAINTS: usize = 1_000;

/// What the loop is told.
#[derive(Debug)]
pub enum Mail {
    Input(Input),
    /// A service that starts wants to know what there is for its kind.
    StateAsked(String),
    /// An orchestrator beat: its effects have gone out up to this CONTROL sequence.
    Orchestrator {
        instance: String,
        effects_through: u64,
    },
    /// An operator asks for something.
    Asked(Asked),
    /// Another process beats under this orchestrator's name.
    Rival {
        process: String,
        started_at_us: i64,
    },
}

/// Starts all sources but discovery.
pub async fn start(
    log: &Log,
    bus: &Bus,
    me: &v1::Producer,
    inbox: mpsc::Sender<Mail>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<(), ReadError> {
    let (_, end) = log.bounds(HEARTBEATS).await?;
    let mut beats = log.tail(HEARTBEATS, Vec::new(), end + 1);
    let (to, who, names) = (inbox.clone(), me.clone(), log.names().clone());
    let again = log.clone();
    spawn(tasks, stop, async move {
        loop {
            let Some(stored) = beats.next().await else {
                if !beats.is_lost() {
                    return;
                }
                let Ok((_, end)) = again.bounds(HEARTBEATS).await else {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    continue;
                };
                beats = again.tail(HEARTBEATS, Vec::new(), end + 1);
                continue;
            };
            match stored.event() {
                // Whose subject it is, its payload must say: a service may publish on its own alone.
                Ok(event) if !is_own_subject(&names, &stored.subject, &event) => {
                    tracing::warn!(
                        subject = stored.subject,
                        "heartbeat names another service than its subject, dropped"
                    );
                }
                Ok(event) => {
                    if let Some(mail) = of_orchestrator(&event, &who) {
                        put(&to, mail);
                    }
                    put(&to, Mail::Input(Input::Beat(Arc::new(event), Medium::Log { sequence: stored.sequence })));
                }
                Err(error) => tracing::warn!(sequence = stored.sequence, %error, "heartbeat does not decode"),
            }
        }
    });
    let (asked, from) = (inbox.clone(), log.clone());
    spawn(tasks, stop, async move { from.hear_asked(|request| put(&asked, Mail::Asked(request))).await });
    let channels =
        [contract::SERVICE_HEARTBEATS, contract::DISCOVERY_RESULTS, contract::STATE_REQUEST, contract::LOG_STATUS];
    let instance = me.instance.clone();
    let mut heard = bus.subscribe(&channels, &[contract::SHARD_HEARTBEATS]);
    spawn(tasks, stop, async move {
        let mut complaints = Complaints::default();
        while let Some(message) = heard.next().await {
            match read(&message, &instance) {
                Ok(Some(mail)) => put(&inbox, mail),
                Ok(None) => {}
                Err(error) => complaints.note(&message.channel, &error),
            }
        }
    });
    Ok(())
}

fn put(inbox: &mpsc::Sender<Mail>, mail: Mail) {
    if let Err(mpsc::error::TrySendError::Full(_)) = inbox.try_send(mail) {
        // Beats come again, and what they tell is compared anew: the cheapest thing to lose.
        tracing::warn!(CAPACITY, "inbox is full, input dropped");
    }
}

/// Whether a message of HEARTBEATS is on the subject of the service that it names. Fences name theirs, too.
fn is_own_subject(names: &Names, subject: &str, event: &v1::Event) -> bool {
    let (kind, instance) = match &event.payload {
        Some(Payload::Heartbeat(beat)) => match &beat.service {
            Some(service) => (service.kind.as_str(), service.instance.as_str()),
            None => return false,
        },
        Some(Payload::Fence(fence)) => (fence.kind.as_str(), fence.instance.as_str()),
        _ => return false,
    };
    names.heartbeat(ServiceKind::of_name(kind), instance) == subject
}

/// What an orchestrator's beat tells beside that the log works.
fn of_orchestrator(event: &v1::Event, me: &v1::Producer) -> Option<Mail> {
    let Some(Payload::Heartbeat(beat)) = &event.payload else { return None };
    let service = beat.service.as_ref().filter(|s| s.kind == ServiceKind::Orchestrator.as_str())?;
    if service.instance == me.instance && service.process != me.process {
        return Some(Mail::Rival { process: service.process.clone(), started_at_us: service.started_at_us });
    }
    Some(Mail::Orchestrator { instance: service.instance.clone(), effects_through: beat.effects_through })
}

fn read(message: &Heard, me: &str) -> Result<Option<Mail>, contract::BadPayload> {
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
        contract::LOG_STATUS => {
            let status = contract::read_log_status(payload)?;
            let echo = (status.instance == me).then_some(Mail::Input(Input::RedisEcho));
            // Shards hold their leases on this word, whoever said it.
            return Ok(if status.log_ok { echo } else { Some(Mail::Input(Input::LogAway)) });
        }
        contract::SERVICE_HEARTBEATS => return Ok(beat(contract::read_service_beat(payload)?)),
        _ => return Ok(beat(contract::read_shard_beat(payload)?)),
    }))
}

/// A beat over Redis; one that also comes over the log counts there only.
fn beat(beat: contract::BusBeat) -> Option<Mail> {
    let event = v1::Event { payload: Some(Payload::Heartbeat(beat.beat)), ..v1::Event::default() };
    (!beat.on_log).then(|| Mail::Input(Input::Beat(Arc::new(event), Medium::Redis)))
}

/// Counts what could not be read, by channel, and says so once a minute.
#[derive(Default)]
struct Complaints(BTreeMap<String, (Instant, u64)>);

impl Complaints {
    fn note(&mut self, channel: &str, error: &contract::BadPayload) {
        counter!("arbees_unread_payloads_total").increment(1);
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
