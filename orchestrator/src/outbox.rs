//! What goes out over Redis: effects of decisions that are in the log, in their order. What Redis does not take waits here, and
//! goes out late: the last word about each thing, for an older one is superseded by it. What is lost all the same is repaired
//! level by level.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arbees_core::bus::{Bus, BusError, contract};
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
/// How often it looks whether its term is over.
const LOOK_EVERY: Duration = Duration::from_secs(1);
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
}

/// Takes errands.
#[derive(Clone, Debug)]
pub struct Outbox {
    errands: mpsc::Sender<(u64, Errand)>,
    /// Counts terms: what was put in before the last one ended is another orchestrator's to say.
    term: Arc<AtomicU64>,
}

impl Outbox {
    /// An outbox and the task that empties it.
    pub fn new(
        bus: Bus,
        espn: Espn,
        inbox: mpsc::Sender<Mail>,
        through: watch::Sender<u64>,
    ) -> (Self, impl Future<Output = ()>) {
        let (errands, taken) = mpsc::channel(CAPACITY);
        let term = Arc::<AtomicU64>::default();
        let emptying =
            Emptying { bus, espn, inbox, through, term: term.clone(), waiting: Waiting::default(), away: None };
        (Self { errands, term }, emptying.run(taken))
    }

    /// Puts `errand` in.
    pub fn put(&self, errand: Errand) {
        let term = self.term.load(Ordering::Relaxed);
        if let Err(mpsc::error::TrySendError::Full(_)) = self.errands.try_send((term, errand)) {
            counter!("arbees_outbox_dropped_total", "why" => "queue full").increment(1);
            tracing::warn!(CAPACITY, "outbox is full, effect dropped");
        }
    }

    /// This orchestrator leads no more: nothing that was put in before goes out.
    pub fn forget(&self) {
        self.term.fetch_add(1, Ordering::Relaxed);
    }
}

/// One message, and what it is about: a later one about the same takes its place.
#[derive(Clone, Debug, PartialEq)]
struct Message {
    about: String,
    channel: String,
    payload: Value,
}

/// What a message that nothing supersedes is about begins so: what was once said.
const SAID: &str = "said ";

/// What Redis has not taken yet.
#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<Wait>,
    number: u64,
    /// The messages that still count, by what they are about. All others in the queue are superseded.
    latest: BTreeMap<String, u64>,
}

#[derive(Clone, Debug)]
enum Wait {
    Message(u64, Message),
    Through(u64),
}

impl Waiting {
    fn push(&mut self, message: Message) {
        self.number += 1;
        if self.latest.insert(message.about.clone(), self.number).is_some() {
            counter!("arbees_outbox_dropped_total", "why" => "superseded").increment(1);
        }
        self.queue.push_back(Wait::Message(self.number, message));
        if self.latest.len() > MOST_WAITING {
            self.drop_oldest();
        }
        if self.queue.len() > 3 * MOST_WAITING {
            self.compact();
        }
    }

    fn push_through(&mut self, sequence: u64) {
        if let Some(Wait::Through(last)) = self.queue.back_mut() {
            *last = sequence;
        } else {
            self.queue.push_back(Wait::Through(sequence));
        }
    }

    fn counts(&self, wait: &Wait) -> bool {
        match wait {
            Wait::Message(number, message) => self.latest.get(&message.about) == Some(number),
            Wait::Through(_) => true,
        }
    }

    /// Takes out what is superseded; and what went out up to some sequence went out up to each before it.
    fn compact(&mut self) {
        let mut kept: VecDeque<Wait> = VecDeque::with_capacity(MOST_WAITING);
        for wait in std::mem::take(&mut self.queue) {
            if !self.counts(&wait) {
                continue;
            }
            if matches!((kept.back(), &wait), (Some(Wait::Through(_)), Wait::Through(_))) {
                kept.pop_back();
            }
            kept.push_back(wait);
        }
        self.queue = kept;
    }

    /// Gives up the oldest message; one whose loss is noticed and repaired, if there is any.
    fn drop_oldest(&mut self) {
        let of = |wait: &Wait| match wait {
            Wait::Message(number, message) if self.latest.get(&message.about) == Some(number) => {
                Some(message.about.clone())
            }
            _ => None,
        };
        let repaired = self.queue.iter().filter_map(of).find(|about| !about.starts_with(SAID));
        if let Some(about) = repaired.or_else(|| self.queue.iter().find_map(of)) {
            let why = if about.starts_with(SAID) { "too many, not repaired" } else { "too many" };
            counter!("arbees_outbox_dropped_total", "why" => why).increment(1);
            self.latest.remove(&about);
        }
    }

    /// What goes out next.
    fn front(&mut self) -> Option<&Wait> {
        while self.queue.front().is_some_and(|wait| !self.counts(wait)) {
            self.queue.pop_front();
        }
        self.queue.front()
    }

    /// What stands first has gone out, or is given up; unless it is not there any more.
    fn done(&mut self, number: u64) {
        if let Some(Wait::Message(first, message)) = self.queue.front()
            && *first == number
        {
            if self.latest.get(&message.about) == Some(first) {
                self.latest.remove(&message.about);
            }
            self.queue.pop_front();
        }
    }
}

struct Emptying {
    bus: Bus,
    espn: Espn,
    inbox: mpsc::Sender<Mail>,
    through: watch::Sender<u64>,
    term: Arc<AtomicU64>,
    waiting: Waiting,
    /// Since Redis takes nothing: when it is tried again.
    away: Option<(Delays, Instant)>,
}

type Sending = Pin<Box<dyn Future<Output = (u64, Result<(), BusError>)> + Send>>;

impl Emptying {
    async fn run(mut self, mut errands: mpsc::Receiver<(u64, Errand)>) {
        let mut sending: Option<Sending> = None;
        let mut known = 0;
        loop {
            let term = self.term.load(Ordering::Relaxed);
            if term != known {
                known = term;
                self.waiting = Waiting::default();
            }
            if sending.is_none() && self.away.as_ref().is_none_or(|(_, at)| *at <= Instant::now()) {
                sending = self.next();
            }
            gauge!("arbees_outbox_waiting").set(figure(self.waiting.latest.len()));
            let again = self.away.as_ref().map_or_else(|| Instant::now() + LOOK_EVERY, |(_, at)| *at);
            tokio::select! {
                // Errands are taken in at all times: the loop that decides never waits, and what they supersede need not go out.
                errand = errands.recv() => match errand {
                    None => return,
                    Some((term, errand)) if term == self.term.load(Ordering::Relaxed) => self.take(errand),
                    Some(_) => {}
                },
                // Polled only while there is one: the condition behind it says so, and until then nothing of the block runs.
                (number, result) = async { sending.as_mut().expect("looked at").await }, if sending.is_some() => {
                    sending = None;
                    self.sent(number, result);
                }
                () = tokio::time::sleep_until(again), if sending.is_none() => {}
            }
        }
    }

    fn take(&mut self, errand: Errand) {
        if let Errand::Through(sequence) = errand {
            self.waiting.push_through(sequence);
            return;
        }
        for message in messages(errand, &self.espn, &self.inbox) {
            self.waiting.push(message);
        }
    }

    /// Tells how far all has gone out, and begins to send what comes after.
    fn next(&mut self) -> Option<Sending> {
        loop {
            match self.waiting.front()?.clone() {
                Wait::Through(sequence) => {
                    self.through.send_replace(sequence);
                    self.waiting.queue.pop_front();
                }
                Wait::Message(number, message) => {
                    let bus = self.bus.clone();
                    return Some(Box::pin(async move {
                        (number, bus.publish(&message.channel, &message.payload.to_string()).await)
                    }));
                }
            }
        }
    }

    fn sent(&mut self, number: u64, result: Result<(), BusError>) {
        match result {
            Ok(()) => {
                if self.away.take().is_some() {
                    tracing::info!(waiting = self.waiting.latest.len(), "redis takes messages again");
                }
                self.waiting.done(number);
            }
            // It is there, and will never take this one: the next may be fine.
            Err(error) if error.is_refusal() => {
                counter!("arbees_outbox_dropped_total", "why" => "refused").increment(1);
                tracing::warn!(%error, "redis refuses a message, dropped");
                self.waiting.done(number);
            }
            Err(error) => {
                let (delays, at) = self.away.get_or_insert_with(|| {
                    tracing::warn!(%error, "message not sent, kept");
                    (RETRY.delays(), Instant::now())
                });
                *at = Instant::now() + delays.next_delay();
            }
        }
    }
}

/// The messages of an errand. What they are about: a game on a shard, a game's markets, or what was said, of which each counts.
fn messages(errand: Errand, espn: &Espn, inbox: &mpsc::Sender<Mail>) -> Vec<Message> {
    // By the whole id: two leagues may have games of the same number.
    let about = |what: &str, who: &str, payload: &Value| format!("{what} {who} {}", payload["game"]);
    match errand {
        Errand::Say { channel, payload } => {
            let [kind, service] = [&payload["type"], &payload["service"]];
            let about = format!("{SAID}{channel} {kind} {service} {} {}", payload["instance_id"], payload["timestamp"]);
            vec![Message { about, channel, payload }]
        }
        Errand::Through(_) => Vec::new(),
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
        while let Some(wait) = waiting.front().cloned() {
            match wait {
                Wait::Message(number, m) => {
                    all.push(format!("{}={}", m.about, m.payload));
                    waiting.done(number);
                }
                Wait::Through(sequence) => {
                    all.push(format!("through {sequence}"));
                    waiting.queue.pop_front();
                }
            }
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
        waiting.push(message("a", 4));
        assert_eq!(drain(&mut waiting), ["a=4"], "what was sent supersedes nothing");
        waiting.push(message("a", 5));
        let Some(Wait::Message(number, _)) = waiting.front().cloned() else { panic!("a message") };
        waiting.push(message("a", 6));
        waiting.done(number);
        assert_eq!(drain(&mut waiting), ["a=6"], "what came while one was on its way goes out, too");
    }

    #[test]
    fn what_is_too_much_is_dropped_from_the_oldest_on_and_what_is_not_repaired_last() {
        let mut waiting = Waiting::default();
        waiting.push(message("said once", 0));
        (0..MOST_WAITING + 2).for_each(|n| waiting.push(message(&n.to_string(), n)));
        let left = drain(&mut waiting);
        assert_eq!((left.len(), left[0].as_str(), left[1].as_str()), (MOST_WAITING, "said once=0", "3=3"));
        // Words about the same thing again and again fill no memory.
        for n in 0..20 * MOST_WAITING {
            waiting.push(message("a", n));
            waiting.push_through(n as u64);
        }
        assert!(waiting.queue.len() <= 3 * MOST_WAITING, "{}", waiting.queue.len());
        assert_eq!(drain(&mut waiting).iter().filter(|l| l.starts_with("a=")).count(), 1);
    }
}
