//! Telling game states: into the log first, then on Redis. A restart tells nothing twice, because a state's message id is
//! its game, its epoch and its hash.

use std::collections::BTreeMap;

use arbees_core::bus::{Bus, contract};
use arbees_core::log::{GAME_STATES, Log};
use arbees_core::retry::Policy;
use arbees_core::time::now_us;
use arbees_proto::{EventId, GameId, Payload, envelope, v1};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// States that may wait for the log. When it is full the watcher keeps the newest state of each game and offers it again.
pub const CAPACITY: usize = 1_024;

/// A state to be told.
#[derive(Debug)]
pub struct Told {
    pub game: GameId,
    pub state: v1::GameStateChanged,
}

/// Tells states in their order until the channel closes.
pub async fn run(
    mut states: mpsc::Receiver<Told>,
    log: Log,
    bus: Bus,
    producer: v1::Producer,
    stop: CancellationToken,
) {
    // The id of the last state told of each game: at first the one that the stream holds.
    let mut last: BTreeMap<GameId, String> = BTreeMap::new();
    while let Some(Told { game, state }) = states.recv().await {
        let subject = log.names().game_state(&game);
        if !last.contains_key(&game)
            && let Ok(Some(stored)) = log.last_on(GAME_STATES, &subject).await
        {
            last.insert(game.clone(), stored.header("Nats-Msg-Id").to_owned());
        }
        let id = message_id(&state);
        if last.get(&game) == Some(&id) {
            continue;
        }
        let now = now_us();
        let event = compose(&producer, &state, &id, now);
        let mut delays = Policy::patient().delays();
        while let Err(error) = log.publish(subject.clone(), &event, &id).await {
            tracing::debug!(%game, %error, "state not acknowledged, sending it again");
            if !delays.wait(&stop).await {
                return;
            }
        }
        last.insert(game.clone(), id);
        let told = contract::game_state(&state, &game, now).to_string();
        // Who missed it gets the next one; what must not be missed is in the log.
        let _ = bus.publish(&contract::state_channel(&game), &told).await;
    }
}

fn message_id(state: &v1::GameStateChanged) -> String {
    let hash = blake3::hash(&state.encode_to_vec()).to_hex();
    format!("{}:{}:{}", state.game, state.epoch, &hash[..16])
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
