//! What goes out over Redis: effects of decisions that are in the log, in their order. What Redis does not take waits here, and
//! goes out late: the last word about each thing, for an older one is superseded by it. What is lost all the same is repaired
//! level by level.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use arbees_core::bus::{Bus, contract};
use arbees_core::espn::Espn;
use arbees_core::metrics::{counter, figure, gauge};
use arbees_core::retry::{Delays, Policy};
use arbees_fleet::Effect;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::discovery;
use crate::inbox::Mail;

/// Errands that may wait to be looked at. Beyond it they are dropped: shards on the log need none, and for the others the
/// difference is found again.
const CAPACITY: usize = 4_096;
/// Messages that may wait for Redis.
const MOST_WAITING: usize = 4_096;
/// How fast Redis is tried again while messages wait.
const RETRY: Policy =
    Policy { first: Duration::from_millis(100), most: Duration::from_secs(1), jitter: 0.1, tries: None };

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
    /// This orchestrator leads no more: what waits is another's to say.
    Forget,
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
            counter!("arbees_outbox_dropped_total", "why" => "queue full").increment(1);
            tracing::warn!(CAPACITY, "outbox is full, effect dropped");
        }
    }
}

/// One message, and what it is about: a later one about the same takes its place.
#[derive(Clone, Debug, PartialEq)]
struct Message {
    about: String,
    channel: String,
    payload: Value,
}

/// What Redis has not taken yet.
#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<Wait>,
    /// The messages that still count, by what they are about.
    number: u64,
    latest: BTreeMap<String, u64>,
}

#[derive(Debug)]
enum Wait {
    Message(u64, Message),
    Through(u64),
}

impl Waiting {
    fn push(&mut self, message: Message) {
        self.number += 1;
        if self.latest.insert(message.about.clone(), self.number).is_some() {
            self.drop_superseded();
        }
        if self.latest.len() > MOST_WAITING {
            self.drop_oldest();
        }
        self.queue.push_back(Wait::Message(self.number, message));
    }

    fn drop_superseded(&mut self) {
        let latest = &self.latest;
        let before = self.queue.len();
        self.queue.retain(|wait| match wait {
            Wait::Message(number, message) => latest.get(&message.about) == Some(number),
            Wait::Through(_) => true,
        });
        let dropped = before - self.queue.len();
        counter!("arbees_outbox_dropped_total", "why" => "superseded").increment(dropped as u64);
        self.join_throughs();
    }

    /// What went out up to some sequence went out up to each before it.
    fn join_throughs(&mut self) {
        let mut joined: VecDeque<Wait> = VecDeque::with_capacity(self.queue.len());
        for wait in self.queue.drain(..) {
            if matches!((joined.back(), &wait), (Some(Wait::Through(_)), Wait::Through(_))) {
                joined.pop_back();
            }
            joined.push_back(wait);
        }
        self.queue = joined;
    }

    fn push_through(&mut self, sequence: u64) {
        if let Some(Wait::Through(last)) = self.queue.back_mut() {
            *last = sequence;
        } else {
            self.queue.push_back(Wait::Through(sequence));
        }
    }

    fn drop_oldest(&mut self) {
        let Some(at) = self.queue.iter().position(|w| matches!(w, Wait::Message(..))) else { return };
        if let Some(Wait::Message(_, message)) = self.queue.remove(at) {
            self.latest.remove(&message.about);
            counter!("arbees_outbox_dropped_total", "why" => "too many").increment(1);
            self.join_throughs();
        }
    }

    fn front(&self) -> Option<&Wait> {
        self.queue.front()
    }

    fn pop(&mut self) {
        if let Some(Wait::Message(_, message)) = self.queue.pop_front() {
            self.latest.remove(&message.about);
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
    let mut waiting = Waiting::default();
    let mut away: Option<(Delays, Instant)> = None;
    loop {
        let next = match &away {
            // Errands are taken in at all times: what they supersede need not go out.
            Some((_, at)) => tokio::time::timeout_at(*at, errands.recv()).await.ok(),
            None if waiting.front().is_none() => Some(errands.recv().await),
            None => errands.try_recv().ok().map(Some),
        };
        match next {
            Some(None) => return,
            Some(Some(Errand::Through(sequence))) => waiting.push_through(sequence),
            Some(Some(Errand::Forget)) => waiting = Waiting::default(),
            Some(Some(errand)) => {
                messages(errand, &espn, &inbox).into_iter().for_each(|message| waiting.push(message));
            }
            None => {}
        }
        if away.as_ref().is_none_or(|(_, at)| *at <= Instant::now()) {
            send_next(&mut waiting, &mut away, &bus, &through).await;
        }
        gauge!("arbees_outbox_waiting").set(figure(waiting.latest.len()));
    }
}

/// Sends what stands first; a Redis that does not take it is tried again a little later.
async fn send_next(
    waiting: &mut Waiting,
    away: &mut Option<(Delays, Instant)>,
    bus: &Bus,
    through: &watch::Sender<u64>,
) {
    match waiting.front() {
        None => *away = None,
        Some(Wait::Through(sequence)) => {
            through.send_replace(*sequence);
            waiting.pop();
        }
        Some(Wait::Message(_, message)) => match bus.publish(&message.channel, &message.payload.to_string()).await {
            Ok(()) => {
                if away.take().is_some() {
                    tracing::info!(waiting = waiting.latest.len(), "redis takes messages again");
                }
                waiting.pop();
            }
            Err(error) => {
                let (delays, at) = away.get_or_insert_with(|| {
                    tracing::warn!(channel = message.channel, %error, "message not sent, kept");
                    (RETRY.delays(), Instant::now())
                });
                *at = Instant::now() + delays.next_delay();
            }
        },
    }
}

/// The messages of an errand. What they are about: a game on a shard, a game's markets, or what was said, of which each counts.
fn messages(errand: Errand, espn: &Espn, inbox: &mpsc::Sender<Mail>) -> Vec<Message> {
    let about = |what: &str, who: &str, payload: &Value| {
        format!("{what} {who} {}", payload["game_id"].as_str().unwrap_or_default())
    };
    match errand {
        Errand::Say { channel, payload } => {
            let about = format!("{channel} {} {} {}", payload["type"], payload["instance_id"], payload["timestamp"]);
            vec![Message { about, channel, payload }]
        }
        Errand::Through(_) | Errand::Forget => Vec::new(),
        Errand::Effect(Effect::AddGame { shard, game, epoch, reason }) => {
            let payload = contract::add_game(&game, epoch, reason);
            let about = about("command", shard.as_str(), &payload);
            vec![Message { about, channel: contract::command_channel(shard.as_str()), payload }]
        }
        Errand::Effect(Effect::RemoveGame { shard, game, epoch, reason }) => {
            let payload = contract::remove_game(&game, epoch, reason);
            let about = about("command", shard.as_str(), &payload);
            vec![Message { about, channel: contract::command_channel(shard.as_str()), payload }]
        }
        Errand::Effect(Effect::AskMarkets { game }) => {
            let payload = contract::discovery_request(&game);
            let about = about("markets", "", &payload);
            vec![Message { about, channel: contract::DISCOVERY_REQUESTS.to_owned(), payload }]
        }
        Errand::Effect(Effect::FollowMarkets { game }) => contract::market_assignments(&game)
            .into_iter()
            .map(|payload| {
                let about = about("follow", payload["type"].as_str().unwrap_or_default(), &payload);
                Message { about, channel: contract::MARKET_ASSIGNMENTS.to_owned(), payload }
            })
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(about: &str, n: usize) -> Message {
        Message { about: about.to_owned(), channel: "c".to_owned(), payload: json!(n) }
    }

    fn drain(waiting: &mut Waiting) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(wait) = waiting.front() {
            all.push(match wait {
                Wait::Message(_, m) => format!("{}={}", m.about, m.payload),
                Wait::Through(sequence) => format!("through {sequence}"),
            });
            waiting.pop();
        }
        all
    }

    #[test]
    fn a_later_word_about_the_same_takes_the_place_of_an_earlier_one() {
        let mut waiting = Waiting::default();
        for (about, n) in [("a", 1), ("b", 2), ("a", 3)] {
            waiting.push(message(about, n));
            waiting.push_through(n as u64);
        }
        assert_eq!(drain(&mut waiting), ["through 1", "b=2", "through 2", "a=3", "through 3"]);
        for n in 1..=3 {
            waiting.push(message("a", n));
            waiting.push_through(n as u64);
        }
        assert_eq!(drain(&mut waiting), ["through 2", "a=3", "through 3"], "they do not pile up");
        waiting.push(message("a", 4));
        assert_eq!(drain(&mut waiting), ["a=4"], "what was sent supersedes nothing");
    }

    #[test]
    fn what_is_too_much_is_dropped_from_the_oldest_on() {
        let mut waiting = Waiting::default();
        (0..MOST_WAITING + 2).for_each(|n| waiting.push(message(&n.to_string(), n)));
        let left = drain(&mut waiting);
        assert_eq!((left.len(), left[0].as_str()), (MOST_WAITING, "2=2"));
    }
}
