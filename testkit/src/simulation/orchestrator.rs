//! An orchestrator's shell in the simulation: what `arbees-orchestrator` does around `Fleet` and `Append`.

use std::collections::{BTreeMap, VecDeque};

use arbees_fleet::append::{Append, Heard, Outcome, Step};
use arbees_fleet::decide::{Medium, Probe};
use arbees_fleet::state::ServiceKey;
use arbees_fleet::{Effect, Fleet, Input, Settings, State};
use arbees_proto::subject::Names;
use arbees_proto::{InstanceId, Payload, Sealed, v1};

use super::server::KEY_TTL_US;
use super::{Answer, Happening, Message, Node, Request, SECOND, World};

const TICK: i64 = 200_000;
const RENEW_EVERY: i64 = 300_000;
const BEAT_EVERY: i64 = 500_000;

/// One process of an orchestrator.
#[derive(Debug)]
pub struct Orchestrator {
    me: v1::Producer,
    fleet: Option<Fleet>,
    pub leads: bool,
    key: Option<(u64, i64)>,
    asked_key_us: i64,
    append: Option<Appending>,
    inbox: VecDeque<Message>,
    beat_us: i64,
    acked_us: i64,
    word_us: i64,
    pub naive: Naive,
}

/// For comparison: a monitor in the same process that takes for dead who was not heard for a fixed time.
#[derive(Debug, Default)]
pub struct Naive {
    heard: BTreeMap<String, i64>,
    pub deaths: u64,
}

impl Naive {
    const TIMEOUT: i64 = 60 * SECOND;

    fn hears(&mut self, shard: &str, now_us: i64) {
        match self.heard.get_mut(shard) {
            Some(at) => *at = now_us,
            None => drop(self.heard.insert(shard.to_owned(), now_us)),
        }
    }

    /// Who is dead is forgotten until it is heard again.
    fn judges(&mut self, now_us: i64) {
        let before = self.heard.len();
        self.heard.retain(|_, at| now_us - *at <= Self::TIMEOUT);
        self.deaths += u64::try_from(before - self.heard.len()).unwrap_or(0);
    }
}

#[derive(Debug)]
struct Appending {
    append: Append,
    step: Step,
    events: Vec<Sealed>,
    effects: Vec<Effect>,
    since_us: i64,
    is_office: bool,
}

impl Orchestrator {
    /// The process of its `life`.
    #[must_use]
    pub fn new(number: usize, life: u64) -> Self {
        let me = v1::Producer {
            service: "orchestrator".into(),
            instance: format!("orchestrator-{number}"),
            process: format!("o{number}-{life}"),
        };
        Self {
            me,
            fleet: None,
            leads: false,
            key: None,
            asked_key_us: 0,
            append: None,
            inbox: VecDeque::new(),
            beat_us: i64::MIN / 2,
            acked_us: i64::MIN / 2,
            word_us: i64::MIN / 2,
            naive: Naive::default(),
        }
    }

    fn beat(&self, wall_us: i64) -> v1::Event {
        let service = v1::Service {
            kind: "orchestrator".into(),
            instance: self.me.instance.clone(),
            process: self.me.process.clone(),
            on_log: true,
            ..v1::Service::default()
        };
        let beat = v1::Heartbeat { service: Some(service), status: "healthy".into(), ..v1::Heartbeat::default() };
        v1::Event { occurred_at_us: wall_us, payload: Some(Payload::Heartbeat(beat)), ..v1::Event::default() }
    }
}

impl World {
    /// Folds the log as it is; a fold costs no time here.
    pub(super) fn fold_anew(&mut self, n: usize) {
        let state: State = self.state().clone();
        let now = self.orchestrators[n].0.now(self.now);
        let (host, orchestrator) = &mut self.orchestrators[n];
        host.next_control = usize::try_from(state.head.sequence).unwrap_or(usize::MAX);
        orchestrator.leads = false;
        orchestrator.append = None;
        match &mut orchestrator.fleet {
            Some(fleet) => fleet.refold(state),
            None => {
                let settings = Settings { redis_interval: SECOND, ..Settings::default() };
                let me = orchestrator.me.clone();
                orchestrator.fleet = Some(Fleet::new(state, settings, Names::new(""), me, now));
            }
        }
    }

    fn steady(&self, n: usize) -> i64 {
        self.orchestrators[n].0.now(self.now).steady_us
    }

    fn holds_key(&self, n: usize) -> bool {
        self.orchestrators[n].1.key.is_some_and(|(_, until)| self.steady(n) < until)
    }

    pub(super) fn orchestrator_hears(&mut self, n: usize, message: Message) -> Result<(), String> {
        let node = Node::Orchestrator(n);
        match message {
            Message::NoAnswer(number) => {
                let waited = self.orchestrators[n].0.waiting.remove(&number).is_some();
                if waited && self.is_appending(n, number) {
                    return self.append_heard(n, &Heard::Unknown);
                }
            }
            Message::Wake => {
                self.orchestrator_wakes(n)?;
                let life = self.orchestrators[n].0.life;
                let until = self.orchestrators[n].1.fleet.as_ref().and_then(Fleet::wake_at_us);
                let wait = until.map_or(TICK, |at| at - self.steady(n)).clamp(1_000, TICK);
                self.at(self.now + wait, Happening::At { node, life, message: Message::Wake });
            }
            Message::Answer(answer) => return self.orchestrator_answered(n, *answer),
            Message::Control(entry) => {
                let orchestrator = &mut self.orchestrators[n].1;
                if !orchestrator.leads
                    && orchestrator.append.is_none()
                    && let Some(fleet) = &mut orchestrator.fleet
                    && entry.sequence == fleet.state().head.sequence + 1
                {
                    fleet.follow(&entry).map_err(|skip| format!("a standby skips {}: {skip}", entry.sequence))?;
                }
            }
            Message::Heard(_) | Message::Slate(_) | Message::Word { .. } => {
                let steady_us = self.steady(n);
                if let Message::Heard(beat) = &message
                    && let Some((process, _)) = beat.by.as_ref().filter(|(process, _)| process.starts_with('s'))
                {
                    self.orchestrators[n].1.naive.hears(process, steady_us);
                }
                if self.orchestrators[n].1.append.is_some() {
                    self.orchestrators[n].1.inbox.push_back(message);
                } else {
                    self.take(n, message);
                    self.finish(n)?;
                }
            }
            Message::AtEnd | Message::Stop => {}
        }
        Ok(())
    }

    fn take(&mut self, n: usize, message: Message) {
        let now = self.orchestrators[n].0.now(self.now);
        let orchestrator = &mut self.orchestrators[n].1;
        let input = match message {
            Message::Heard(beat) => Input::Beat(beat.event.clone(), Medium::Log { sequence: beat.sequence }),
            Message::Slate(games) => Input::Slate { games: games.to_vec(), schedule: false },
            Message::Word { log_ok: false, .. } => Input::LogAway,
            Message::Word { instance, .. } if instance == orchestrator.me.instance => Input::RedisEcho,
            _ => return,
        };
        let Some(fleet) = &mut orchestrator.fleet else { return };
        if orchestrator.leads {
            fleet.decide(now, input);
        } else {
            fleet.observe(now, &input);
        }
    }

    fn orchestrator_wakes(&mut self, n: usize) -> Result<(), String> {
        let node = Node::Orchestrator(n);
        let now = self.orchestrators[n].0.now(self.now);
        let steady_us = now.steady_us;
        self.beat_and_tell(n);
        self.orchestrators[n].1.naive.judges(steady_us);
        let orchestrator = &mut self.orchestrators[n].1;
        let is_blocked = orchestrator.append.is_some();
        if orchestrator.leads && !self.holds_key(n) && !is_blocked {
            self.note(&format!("orchestrator-{n} has lost its key"));
            self.fold_anew(n);
        }
        let orchestrator = &mut self.orchestrators[n].1;
        // Renewed by the loop itself: one that waits for an append renews nothing.
        if !is_blocked && steady_us - orchestrator.asked_key_us >= RENEW_EVERY {
            orchestrator.asked_key_us = steady_us;
            let revision = orchestrator.key.filter(|_| orchestrator.leads).map_or(0, |(revision, _)| revision);
            self.ask(node, Request::Key { revision });
        }
        let orchestrator = &mut self.orchestrators[n].1;
        if orchestrator.leads
            && !is_blocked
            && let Some(fleet) = &mut orchestrator.fleet
        {
            fleet.decide(now, Input::Tick);
            self.finish(n)?;
        }
        Ok(())
    }

    fn beat_and_tell(&mut self, n: usize) {
        let node = Node::Orchestrator(n);
        let now = self.orchestrators[n].0.now(self.now);
        let steady_us = now.steady_us;
        let orchestrator = &mut self.orchestrators[n].1;
        if steady_us - orchestrator.beat_us >= BEAT_EVERY {
            orchestrator.beat_us = steady_us;
            let event = orchestrator.beat(now.wall_us);
            self.ask(node, Request::PlainBeat { event });
        }
        let orchestrator = &mut self.orchestrators[n].1;
        if steady_us - orchestrator.word_us >= BEAT_EVERY {
            orchestrator.word_us = steady_us;
            let is_stuck = orchestrator.append.as_ref().is_some_and(|a| steady_us - a.since_us > SECOND);
            let log_ok = steady_us - orchestrator.acked_us < SECOND && !is_stuck;
            let word = Message::Word { instance: orchestrator.me.instance.clone(), log_ok };
            if let Some(fleet) = orchestrator.fleet.as_mut().filter(|_| !log_ok) {
                fleet.observe(now, &Input::LogAway);
            }
            self.tell(node, &word);
        }
    }

    fn orchestrator_answered(&mut self, n: usize, answer: Answer) -> Result<(), String> {
        let node = Node::Orchestrator(n);
        let steady_us = self.steady(n);
        match answer {
            Answer::Beaten { .. } => self.orchestrators[n].1.acked_us = steady_us,
            Answer::Key { sent_us, written } => self.key_answered(n, sent_us, written)?,
            Answer::Appended(Ok(last_sequence)) => return self.append_heard(n, &Heard::Stored { last_sequence }),
            Answer::Appended(Err(())) => return self.append_heard(n, &Heard::Refused),
            Answer::Ids(ids) => return self.append_heard(n, &Heard::Read(ids)),
            Answer::Judged { shard, heartbeat, last } => match last {
                Some(beat) if beat.by.is_some() && beat.sequence > heartbeat => {
                    let medium = Medium::Log { sequence: beat.sequence };
                    self.put(n, Input::Beat(beat.event, medium))?;
                }
                other => {
                    let expected = other.map_or(0, |b| b.sequence);
                    self.ask(node, Request::Fence { shard, heartbeat, expected });
                }
            },
            Answer::Fenced { shard, heartbeat, written: Ok(fence) } => {
                self.put(n, fenced(&shard, heartbeat, fence))?;
            }
            Answer::Probed { shard, is_there } => {
                let answer = if is_there { Probe::Answered } else { Probe::Nobody };
                self.put(n, Input::Probed { key: key(&shard), answer })?;
            }
            Answer::Fenced { .. } | Answer::Looked { .. } | Answer::Recovered { .. } => {}
        }
        Ok(())
    }

    /// An answer that concerns decisions: only the leader decides.
    fn put(&mut self, n: usize, input: Input) -> Result<(), String> {
        let now = self.orchestrators[n].0.now(self.now);
        let orchestrator = &mut self.orchestrators[n].1;
        if !orchestrator.leads || orchestrator.append.is_some() {
            // It is asked for again.
            return Ok(());
        }
        if let Some(fleet) = &mut orchestrator.fleet {
            fleet.decide(now, input);
        }
        self.finish(n)
    }

    fn key_answered(&mut self, n: usize, sent_us: i64, written: Result<u64, ()>) -> Result<(), String> {
        let orchestrator = &mut self.orchestrators[n].1;
        match written {
            Ok(revision) => {
                orchestrator.key = Some((revision, sent_us + KEY_TTL_US));
                if !orchestrator.leads && orchestrator.append.is_none() {
                    self.take_office(n)?;
                }
            }
            Err(()) if orchestrator.leads && orchestrator.append.is_none() => {
                self.note(&format!("orchestrator-{n} is refused its key"));
                self.orchestrators[n].1.key = None;
                self.fold_anew(n);
            }
            Err(()) => {}
        }
        Ok(())
    }

    fn take_office(&mut self, n: usize) -> Result<(), String> {
        // Reading what is left of the log takes no time here.
        self.fold_anew(n);
        let now = self.orchestrators[n].0.now(self.now);
        let Some(fleet) = &mut self.orchestrators[n].1.fleet else { return Ok(()) };
        fleet.take_office(now, 0);
        self.note(&format!("orchestrator-{n} takes office"));
        self.send_turn(n, true)
    }

    /// Ends the turn: what was decided is appended, or its effects go out.
    fn finish(&mut self, n: usize) -> Result<(), String> {
        if self.orchestrators[n].1.leads { self.send_turn(n, false) } else { Ok(()) }
    }

    fn send_turn(&mut self, n: usize, is_office: bool) -> Result<(), String> {
        let since_us = self.steady(n);
        let orchestrator = &mut self.orchestrators[n].1;
        let Some(fleet) = &mut orchestrator.fleet else { return Ok(()) };
        let turn = fleet.end_turn();
        if turn.events.is_empty() {
            self.send_effects(n, turn.effects);
            return Ok(());
        }
        let expected = fleet.state().head.sequence - turn.events.len() as u64;
        let (append, step) = Append::new(expected, turn.events.iter().map(|e| e.id).collect());
        orchestrator.append =
            Some(Appending { append, step, events: turn.events, effects: turn.effects, since_us, is_office });
        self.append_step(n)
    }

    fn append_step(&mut self, n: usize) -> Result<(), String> {
        let Some(appending) = &self.orchestrators[n].1.append else { return Ok(()) };
        let request = match appending.step.clone() {
            Step::Send { expected } => Request::Append { expected, events: appending.events.clone() },
            Step::ReadBack { from, count } => Request::ReadIds { from, count },
            Step::Done(outcome) => return self.appended(n, &outcome),
        };
        let number = self.ask(Node::Orchestrator(n), request);
        self.appending.insert((n, number), ());
        Ok(())
    }

    fn is_appending(&mut self, n: usize, number: u64) -> bool {
        self.appending.remove(&(n, number)).is_some() && self.orchestrators[n].1.append.is_some()
    }

    fn append_heard(&mut self, n: usize, heard: &Heard) -> Result<(), String> {
        let Some(appending) = &mut self.orchestrators[n].1.append else { return Ok(()) };
        appending.step = appending.append.next(heard);
        self.append_step(n)
    }

    fn appended(&mut self, n: usize, outcome: &Outcome) -> Result<(), String> {
        let Some(done) = self.orchestrators[n].1.append.take() else { return Ok(()) };
        match outcome {
            Outcome::Stored { .. } => {
                self.orchestrators[n].1.leads = true;
                if self.holds_key(n) {
                    self.send_effects(n, done.effects);
                } else {
                    self.note(&format!("orchestrator-{n} stored a turn and has lost its key"));
                    self.fold_anew(n);
                }
            }
            Outcome::Prefix { .. } | Outcome::Deposed => {
                self.note(&format!("orchestrator-{n} is deposed (office: {})", done.is_office));
                self.fold_anew(n);
            }
        }
        while self.orchestrators[n].1.append.is_none()
            && let Some(message) = self.orchestrators[n].1.inbox.pop_front()
        {
            self.take(n, message);
            self.finish(n)?;
        }
        Ok(())
    }

    fn send_effects(&mut self, n: usize, effects: Vec<Effect>) {
        for effect in effects {
            let node = Node::Orchestrator(n);
            match effect {
                Effect::Probe { key } => {
                    self.ask(node, Request::Probe { shard: key.instance.to_string() });
                }
                Effect::Judge { key, heartbeat } => {
                    let request = Request::LastBeat { shard: key.instance.to_string(), judging: Some(heartbeat) };
                    self.ask(node, request);
                }
                // Shards on the log need none of the others.
                _ => {}
            }
        }
    }
}

fn key(shard: &str) -> ServiceKey {
    ServiceKey::shard(InstanceId::lenient(shard).expect("a valid id"))
}

fn fenced(shard: &str, heartbeat: u64, fence: u64) -> Input {
    Input::Fenced { key: key(shard), heartbeat, fence }
}
