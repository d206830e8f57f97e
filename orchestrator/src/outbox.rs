//! What goes out: effects of decisions that are in the log, in their order. What Redis misses is repaired level by level.

use arbees_core::bus::{Bus, contract};
use arbees_core::espn::Espn;
use arbees_fleet::Effect;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::discovery;
use crate::inbox::Mail;

/// Effects that may wait for Redis. Beyond it they are dropped: shards on the log need none, and for the others the
/// difference is found again.
const CAPACITY: usize = 4_096;

/// What is to be done outside.
#[derive(Debug)]
pub enum Errand {
    Effect(Effect),
    /// A message composed by the loop itself.
    Say {
        channel: String,
        payload: Value,
    },
    /// All that CONTROL's events up to this sequence led to stands before this.
    Through(u64),
}

/// Takes errands.
#[derive(Clone, Debug)]
pub struct Outbox(mpsc::Sender<Errand>);

impl Outbox {
    /// An outbox and the task that empties it.
    pub fn new(
        bus: Bus,
        espn: Espn,
        inbox: mpsc::Sender<Mail>,
        through: watch::Sender<u64>,
    ) -> (Self, impl Future<Output = ()>) {
        let (sender, errands) = mpsc::channel(CAPACITY);
        (Self(sender), empty(errands, bus, espn, inbox, through))
    }

    /// Puts `errand` in.
    pub fn put(&self, errand: Errand) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.0.try_send(errand) {
            tracing::warn!(CAPACITY, "outbox is full, effect dropped");
        }
    }
}

async fn empty(
    mut errands: mpsc::Receiver<Errand>,
    bus: Bus,
    espn: Espn,
    inbox: mpsc::Sender<Mail>,
    through: watch::Sender<u64>,
) {
    let mut is_away = false;
    while let Some(errand) = errands.recv().await {
        if let Errand::Through(sequence) = errand {
            through.send_replace(sequence);
            continue;
        }
        for (channel, payload) in messages(errand, &espn, &inbox) {
            match bus.publish(&channel, &payload.to_string()).await {
                Ok(()) if std::mem::take(&mut is_away) => tracing::info!("redis takes messages again"),
                Ok(()) => {}
                Err(error) if !is_away => {
                    is_away = true;
                    tracing::warn!(channel, %error, "message not sent");
                }
                Err(_) => {}
            }
        }
    }
}

fn messages(errand: Errand, espn: &Espn, inbox: &mpsc::Sender<Mail>) -> Vec<(String, Value)> {
    match errand {
        Errand::Say { channel, payload } => vec![(channel, payload)],
        Errand::Through(_) => Vec::new(),
        Errand::Effect(Effect::AddGame { shard, game, epoch, reason }) => {
            vec![(contract::command_channel(shard.as_str()), contract::add_game(&game, epoch, reason))]
        }
        Errand::Effect(Effect::RemoveGame { shard, game, epoch, reason }) => {
            vec![(contract::command_channel(shard.as_str()), contract::remove_game(&game, epoch, reason))]
        }
        Errand::Effect(Effect::AskMarkets { game }) => {
            vec![(contract::DISCOVERY_REQUESTS.to_owned(), contract::discovery_request(&game))]
        }
        Errand::Effect(Effect::FollowMarkets { game }) => contract::market_assignments(&game)
            .into_iter()
            .map(|payload| (contract::MARKET_ASSIGNMENTS.to_owned(), payload))
            .collect(),
        Errand::Effect(Effect::AskGame { game }) => {
            tokio::spawn(discovery::ask(espn.clone(), game, inbox.clone()));
            Vec::new()
        }
        // What the log itself is asked does not wait for Redis: it never comes here.
        Errand::Effect(Effect::Probe { .. } | Effect::Judge { .. } | Effect::Alert(_) | Effect::Resolve(_)) => {
            Vec::new()
        }
    }
}
