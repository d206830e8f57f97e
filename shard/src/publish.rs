//! Telling game states: into the log first, then on Redis. A restart tells nothing twice, because a state's message id is
//! its game, its epoch and its hash.

use std::collections::BTreeMap;
use std::time::Duration;

use arbees_core::bus::{Bus, contract};
use arbees_core::log::{GAME_STATES, Log};
use arbees_core::metrics::counter;
use arbees_core::retry::Policy;
use arbees_core::time::{now_us, steady_us};
use arbees_proto::{Epoch, EventId, GameId, Payload, envelope, v1};
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// States that may wait for the log. When it is full the watcher keeps the newest state of each game and offers it again.
pub const CAPACITY: usize = 1_024;

/// States that may wait for Redis: a second's worth of a full shard. Older ones would be stale when they are heard.
const REDIS_CAPACITY: usize = 256;
/// How long the last states may take to get to Redis when the shard stops.
const REDIS_PATIENCE: Duration = Duration::from_millis(500);

/// A state to be told.
#[derive(Debug)]
pub struct Told {
    pub game: GameId,
    pub state: v1::GameStateChanged,
}

/// What may be told: looked at right before each sending, by a clock that no pause stops.
#[derive(Clone, Debug, Default)]
pub struct Permit {
    /// Until when, by the steady clock; none: not now.
    pub until_us: Option<i64>,
    /// The epochs under which games are watched.
    pub epochs: BTreeMap<GameId, Epoch>,
}

impl Permit {
    fn allows(&self, told: &Told) -> bool {
        self.until_us.is_some_and(|until| steady_us() < until)
            && self.epochs.get(&told.game).is_some_and(|epoch| epoch.0 == told.state.epoch)
    }
}

/// Tells states in their order until the channel closes.
pub async fn run(
    mut states: mpsc::Receiver<Told>,
    log: Log,
    bus: Bus,
    producer: v1::Producer,
    permit: watch::Receiver<Permit>,
    stop: CancellationToken,
) {
    let (tell, to_redis) = mpsc::channel(REDIS_CAPACITY);
    let telling = tokio::spawn(tell_redis(to_redis, bus, permit.clone()));
    publish(&mut states, &log, &tell, &producer, &permit, &stop).await;
    drop(tell);
    // The last ones are worth a moment, but nobody waits for a Redis that is away.
    let _ = tokio::time::timeout(REDIS_PATIENCE, telling).await;
}

async fn publish(
    states: &mut mpsc::Receiver<Told>,
    log: &Log,
    tell: &mpsc::Sender<(Told, i64)>,
    producer: &v1::Producer,
    permit: &watch::Receiver<Permit>,
    stop: &CancellationToken,
) {
    // The message id of the last state told of each game: at first the one that the stream holds.
    let mut last: BTreeMap<GameId, String> = BTreeMap::new();
    while let Some(told) = states.recv().await {
        let is_allowed = || permit.borrow().allows(&told);
        if !is_allowed() {
            counter!("arbees_states_shed_total", "why" => "no lease").increment(1);
            continue;
        }
        let Told { game, state } = &told;
        let subject = log.names().game_state(game);
        let before = match last.remove(game) {
            Some(id) => id,
            None => match last_told(log, &subject, stop).await {
                Some(id) => id,
                None => return,
            },
        };
        let now = now_us();
        let Some(id) = message_id(state, &before) else {
            last.insert(game.clone(), before);
            // In the log already; whoever listens on Redis may have missed it.
            let _ = tell.try_send((told, now));
            continue;
        };
        let event = compose(producer, state, &id, now);
        let mut delays = Policy::patient().delays();
        let mut is_stored = false;
        while !is_stored && is_allowed() {
            // Without a connection it would wait in the client's buffer, and go out when it is not allowed any more.
            if log.is_connected() {
                match log.publish(subject.clone(), &event, &id).await {
                    Ok(_) => is_stored = true,
                    Err(error) => tracing::debug!(%game, %error, "state not acknowledged, sending it again"),
                }
            }
            if !is_stored && !delays.wait(stop).await {
                return;
            }
        }
        if !is_stored {
            // Perhaps stored, perhaps not: the stream is asked before the next one.
            counter!("arbees_states_shed_total", "why" => "lease over").increment(1);
            continue;
        }
        counter!("arbees_states_published_total").increment(1);
        last.insert(game.clone(), id);
        // A full queue is a Redis that is away: who misses this one gets the next, and all of them are in the log.
        if tell.try_send((told, now)).is_err() {
            counter!("arbees_states_shed_total", "why" => "redis away").increment(1);
        }
    }
}

/// Tells Redis, however slow it is: the log does not wait for it.
/// Readers there may know no epochs, so that a late word of an old owner must not leave at all.
async fn tell_redis(mut messages: mpsc::Receiver<(Told, i64)>, bus: Bus, permit: watch::Receiver<Permit>) {
    while let Some((told, at_us)) = messages.recv().await {
        if permit.borrow().allows(&told) {
            let payload = contract::game_state(&told.state, &told.game, at_us).to_string();
            let _ = bus.publish(&contract::state_channel(&told.game), &payload).await;
        }
    }
}

/// The message id of the last state in the stream, empty when there is none; none when asked to stop before it is known.
async fn last_told(log: &Log, subject: &str, stop: &CancellationToken) -> Option<String> {
    let mut delays = Policy::patient().delays();
    loop {
        match log.last_on(GAME_STATES, subject).await {
            Ok(stored) => return Some(stored.map(|s| s.header("Nats-Msg-Id").to_owned()).unwrap_or_default()),
            Err(_) if delays.wait(stop).await => {}
            Err(_) => return None,
        }
    }
}

/// Game, epoch, hash of the state, hash of the id before: a score that is corrected and corrected back is three states, while a
/// repeat of one publish stays one. None when the state before was this very one.
fn message_id(state: &v1::GameStateChanged, before: &str) -> Option<String> {
    let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex()[..16].to_owned();
    let told = format!("{}:{}:{}:", state.game, state.epoch, hash(&state.encode_to_vec()));
    (!before.starts_with(&told)).then(|| told + &hash(before.as_bytes()))
}

fn compose(producer: &v1::Producer, state: &v1::GameStateChanged, id: &str, now_us: i64) -> v1::Event {
    v1::Event {
        id: EventId::derive(now_us, &[id.as_bytes()]).0.to_vec(),
        occurred_at_us: now_us,
        producer: Some(producer.clone()),
        schema_version: envelope::SCHEMA_VERSION,
        payload: Some(Payload::GameStateChanged(state.clone())),
        ..v1::Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_corrected_and_corrected_back_is_three_states_and_a_restart_tells_none_again() {
        let state =
            |score| v1::GameStateChanged { game: "nfl-1".into(), home_score: Some(score), ..Default::default() };
        let first = message_id(&state(7), "").unwrap();
        let second = message_id(&state(13), &first).unwrap();
        let third = message_id(&state(7), &second).unwrap();
        assert!(first != third && second != third);
        assert_eq!(message_id(&state(7), &third), None);
        assert_eq!(message_id(&state(13), &first), Some(second), "the same publish again has the same id");
    }
}
