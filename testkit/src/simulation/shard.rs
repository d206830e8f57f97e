//! A shard's shell in the simulation: what `arbees-shard` does around `Watcher` and `Lease`.

use std::collections::BTreeMap;

use arbees_fleet::lease::{Last, Step};
use arbees_fleet::{GameSet, Lease, Watcher};
use arbees_proto::{InstanceId, Payload, ShardId, v1};
use prost::Message as _;

use super::server::Beat;
use super::{Answer, Happening, Message, Node, Request, SECOND, World};

/// The longest sleep of its loop.
const LOOK_EVERY: i64 = 200_000;
/// How often it tells what it sees of its games.
const TELL_EVERY: i64 = SECOND;

/// One process of a shard.
#[derive(Debug)]
pub struct Shard {
    pub number: usize,
    pub id: ShardId,
    pub process: String,
    pub max_games: u32,
    pub watcher: Option<Watcher>,
    /// It takes up no games, and says so.
    pub is_deaf: bool,
    pub stopping_since_us: Option<i64>,
    composed: Option<(u64, v1::Event)>,
    beat_request: Option<u64>,
    looking: Option<u64>,
    rejoining: Option<u64>,
    told_us: i64,
}

impl Shard {
    /// The process of its `life`.
    #[must_use]
    pub fn new(number: usize, life: u64, max_games: u32) -> Self {
        let id = InstanceId::strict(&format!("s{number}")).expect("a valid id");
        Self {
            number,
            process: format!("s{number}-{life}"),
            id,
            max_games,
            watcher: None,
            is_deaf: false,
            stopping_since_us: None,
            composed: None,
            beat_request: None,
            looking: None,
            rejoining: None,
            told_us: 0,
        }
    }

    fn about(&self) -> v1::Heartbeat {
        let service = v1::Service {
            kind: "shard".into(),
            instance: self.id.to_string(),
            process: self.process.clone(),
            shard_type: "sports".into(),
            max_games: self.max_games,
            on_log: true,
            ..v1::Service::default()
        };
        v1::Heartbeat {
            service: Some(service),
            status: "healthy".into(),
            checks: vec![v1::Check { name: "redis_ok".into(), ok: true }],
            ..v1::Heartbeat::default()
        }
    }
}

impl World {
    pub(super) fn shard_hears(&mut self, n: usize, message: Message) {
        let node = Node::Shard(n);
        let now = self.shards[n].0.now(self.now);
        let steady_us = now.steady_us;
        let shard = &mut self.shards[n].1;
        match message {
            Message::Wake => self.shard_wakes(n),
            Message::Answer(answer) => self.shard_answered(n, *answer),
            Message::NoAnswer(number) => {
                let is_known = self.shards[n].0.waiting.remove(&number).is_some();
                let shard = &mut self.shards[n].1;
                if is_known && shard.looking == Some(number) {
                    shard.looking = None;
                }
                if is_known && (shard.rejoining == Some(number) || shard.watcher.is_none()) {
                    let again = self.ask(node, Request::Recover);
                    self.shards[n].1.rejoining = Some(again);
                }
            }
            Message::Control(entry) => {
                if let Some(watcher) = &mut shard.watcher
                    && entry.subject.split('.').skip(4).any(|token| token == shard.id.as_str())
                    && let Ok(event) = v1::Event::decode(entry.payload.clone())
                {
                    watcher.follow(entry.sequence, &event);
                }
            }
            Message::AtEnd => {
                if let Some(watcher) = &mut shard.watcher {
                    watcher.lease.tail_at_end(steady_us);
                }
            }
            Message::Word { instance, log_ok } => {
                if let Some(watcher) = &mut shard.watcher {
                    watcher.lease.heard(steady_us, &instance, log_ok);
                }
            }
            Message::Stop => {
                shard.stopping_since_us = Some(self.now);
                if let Some(watcher) = &mut shard.watcher {
                    watcher.stop();
                }
            }
            Message::Heard(_) | Message::Slate(_) => {}
        }
        self.follow_lease(n);
    }

    fn shard_answered(&mut self, n: usize, answer: Answer) {
        let steady_us = self.shards[n].0.now(self.now).steady_us;
        let shard = &mut self.shards[n].1;
        if let Answer::Recovered { asked_us, set } = answer {
            self.recovered(n, asked_us, set);
            return;
        }
        let Some(watcher) = &mut shard.watcher else { return };
        match answer {
            Answer::Beaten { number, written: Ok(sequence) } => watcher.lease.acked(number, sequence),
            Answer::Beaten { number, written: Err(()) } => watcher.lease.refused(number),
            Answer::Looked { asked_us, last } => {
                shard.looking = None;
                let last = as_last(last, &shard.process);
                watcher.lease.looked(asked_us, steady_us, last);
            }
            _ => {}
        }
    }

    fn recovered(&mut self, n: usize, asked_us: i64, set: GameSet) {
        let shard = &mut self.shards[n].1;
        shard.rejoining = None;
        match &mut shard.watcher {
            Some(watcher) => watcher.rejoined(set, asked_us),
            None => {
                let mut lease = Lease::new(2 * SECOND, SECOND);
                lease.tail_at_end(asked_us);
                let max_games = usize::try_from(shard.max_games).unwrap_or(usize::MAX);
                shard.watcher = Some(Watcher::new(set, max_games, lease));
            }
        }
    }

    fn shard_wakes(&mut self, n: usize) {
        let (host, shard) = &self.shards[n];
        let (life, now) = (host.life, self.now);
        let is_over = shard.stopping_since_us.is_some_and(|since| {
            let is_empty = shard.watcher.as_ref().is_none_or(|w| w.set().held().is_empty() && w.lease.is_quiet());
            is_empty || now - since > 10 * SECOND
        });
        if is_over {
            self.note(&format!("{} has stopped", self.shards[n].1.process));
            (self.shards[n].0.alive, self.shards[n].0.trouble_us) = (false, now);
            return;
        }
        self.tell_games(n);
        self.at(now + LOOK_EVERY, Happening::At { node: Node::Shard(n), life, message: Message::Wake });
    }

    /// What it sees of its games goes to a sink that knows epochs.
    fn tell_games(&mut self, n: usize) {
        let (host, shard) = &mut self.shards[n];
        let steady_us = host.now(self.now).steady_us;
        let Some(watcher) = shard.watcher.as_ref().filter(|_| self.now - shard.told_us >= TELL_EVERY) else { return };
        shard.told_us = self.now;
        let watched = if shard.is_deaf { BTreeMap::new() } else { watcher.watched() };
        let told: Vec<_> = watched.into_iter().filter(|(id, epoch)| watcher.may_tell(steady_us, id, *epoch)).collect();
        for (id, epoch) in told {
            self.rules.told(&id, epoch);
        }
    }

    fn follow_lease(&mut self, n: usize) {
        let (host, shard) = &mut self.shards[n];
        if !host.alive {
            return;
        }
        let now = host.now(self.now);
        let Some(watcher) = &mut shard.watcher else { return };
        match watcher.lease.step(now.steady_us) {
            Step::Look if shard.looking.is_none() => {
                let request = Request::LastBeat { shard: shard.id.to_string(), judging: None };
                let number = self.ask(Node::Shard(n), request);
                self.shards[n].1.looking = Some(number);
            }
            Step::Send { number, expected, again } => {
                let about = shard.about();
                let Some(watcher) = &mut shard.watcher else { return };
                let mut beat = watcher.beat(now.steady_us, about);
                if shard.is_deaf {
                    beat.games.clear();
                }
                let payload = Some(Payload::Heartbeat(beat));
                let event = v1::Event { occurred_at_us: now.wall_us, payload, ..v1::Event::default() };
                let composed = shard.composed.take().filter(|(composed, _)| again && *composed == number);
                let (_, event) = composed.unwrap_or((number, event));
                shard.composed = Some((number, event.clone()));
                let request = Request::Beat { number, expected, event };
                let asked = self.ask(Node::Shard(n), request);
                self.shards[n].1.beat_request = Some(asked);
            }
            Step::Rejoin if shard.rejoining.is_none() => {
                let number = self.ask(Node::Shard(n), Request::Recover);
                self.shards[n].1.rejoining = Some(number);
            }
            Step::Superseded { by } => {
                let line = format!("{} ends: superseded by {by}", shard.process);
                (self.shards[n].0.alive, self.shards[n].0.trouble_us) = (false, self.now);
                self.note(&line);
            }
            Step::Look | Step::Rejoin | Step::Wait { .. } => {}
        }
    }
}

fn as_last(last: Option<Beat>, process: &str) -> Last {
    let Some(beat) = last else { return Last::Nothing };
    let sequence = beat.sequence;
    match (beat.by, &beat.event.payload) {
        (None, _) => Last::Fence { sequence },
        (Some((by, number)), _) if by == process => Last::Own { sequence, number },
        (Some((by, _)), Some(Payload::Heartbeat(h))) => {
            let stopping = h.status == "stopping" && h.games.is_empty();
            Last::Other { sequence, process: by, stopping, fence: h.fence_sequence }
        }
        (Some((by, _)), _) => Last::Other { sequence, process: by, stopping: false, fence: 0 },
    }
}
