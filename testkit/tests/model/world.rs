//! The small world that is checked: a log, a leader's key, two heartbeat subjects, and who works with them.

use arbees_fleet::append::{Append, Heard, Outcome, Step as AppendStep};
use arbees_fleet::echo::Echo;
use arbees_fleet::lease::{Last, Lease, Step as LeaseStep};
use arbees_fleet::settings::{READMIT_AGAIN, Settings};
use arbees_fleet::silence::Silence;
use arbees_proto::EventId;

/// Time goes on in steps of this, in microseconds: half a heartbeat.
pub const TICK_US: i64 = 500_000;
const KEY_TTL_US: i64 = 1_000_000;
/// Shards 0 and 1.
pub const SHARDS: usize = 2;

/// What the checked protocol waits for. The planted bugs are made here.
#[derive(Clone, Debug)]
pub struct Rules {
    pub settings: Settings,
    /// A fence is conditional on the beat that was read.
    pub fence_is_conditional: bool,
    /// A fenced shard waits until the log says that it was heard again.
    pub fenced_must_wait: bool,
    /// Whoever follows a fenced shard that waits does so, too.
    pub wait_is_inherited: bool,
    /// An append is conditional on the end of the log.
    pub append_is_conditional: bool,
}

/// An event of CONTROL, as far as ownership goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub id: EventId,
    pub writer: (usize, u8),
    pub term: u8,
    pub what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    Elected,
    Lost { shard: usize },
    Recovered { shard: usize, heartbeat: u64 },
    Moved { from: usize, to: usize },
}

/// The fold of the log: who owns the game, since which sequence, and who is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folded {
    pub owner: usize,
    pub epoch: usize,
    pub lost: [bool; SHARDS],
    pub term: u8,
}

pub fn fold(log: &[Entry]) -> Folded {
    let mut folded = Folded { owner: 0, epoch: 0, lost: [false; SHARDS], term: 0 };
    for (at, entry) in log.iter().enumerate() {
        match entry.what {
            What::Elected => folded.term = entry.term,
            What::Lost { shard } => folded.lost[shard] = true,
            What::Recovered { shard, .. } => folded.lost[shard] = false,
            What::Moved { to, .. } => (folded.owner, folded.epoch) = (to, at + 1),
        }
    }
    folded
}

/// The last message of a heartbeat subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    Nothing,
    /// `fence`: the one after which it waits, or 0.
    Beat {
        life: u8,
        number: u64,
        fence: u64,
    },
    Fence,
}

/// What the server holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    pub log: Vec<Entry>,
    pub subjects: [(u64, Message); SHARDS],
    /// The key's revision, and until when it lives.
    key: (u64, i64),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    Look,
    Beat {
        number: u64,
        fence: u64,
        expected: u64,
    },
    /// Read the log to its end.
    Read,
    Key {
        revision: u64,
    },
    Append {
        expected: u64,
        entries: Vec<Entry>,
    },
    ReadBack {
        from: u64,
        count: usize,
    },
    /// Read the subject again; then fence it.
    Judge {
        shard: usize,
        heartbeat: u64,
    },
    Fence {
        shard: usize,
        heartbeat: u64,
        expected: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    Last(u64, Message),
    Stored(u64),
    Refused,
    Log(usize),
    Ids(Vec<Option<EventId>>),
}

impl Server {
    pub fn serve(&mut self, who: usize, life: u8, now_us: i64, request: &Request, rules: &Rules) -> Answer {
        match request {
            Request::Look => Answer::Last(self.subjects[who].0, self.subjects[who].1),
            Request::Judge { shard, .. } => Answer::Last(self.subjects[*shard].0, self.subjects[*shard].1),
            Request::Beat { number, fence, expected } => {
                self.publish(who, *expected, Message::Beat { life, number: *number, fence: *fence })
            }
            Request::Fence { shard, expected, .. } => {
                let expected = if rules.fence_is_conditional { *expected } else { self.subjects[*shard].0 };
                self.publish(*shard, expected, Message::Fence)
            }
            Request::Read => Answer::Log(self.log.len()),
            Request::Key { revision } => {
                let (held, until_us) = self.key;
                let lives = now_us < until_us;
                if (lives && *revision == held) || (!lives && *revision == 0) {
                    self.key = (held + 1, now_us + KEY_TTL_US);
                    Answer::Stored(held + 1)
                } else {
                    Answer::Refused
                }
            }
            Request::Append { expected, entries } => {
                if rules.append_is_conditional && self.log.len() as u64 != *expected {
                    return Answer::Refused;
                }
                self.log.extend(entries.iter().cloned());
                Answer::Stored(expected + entries.len() as u64)
            }
            Request::ReadBack { from, count } => {
                let from = usize::try_from(from - 1).unwrap();
                Answer::Ids(self.log.iter().skip(from).take(*count).map(|e| Some(e.id)).collect())
            }
        }
    }

    fn publish(&mut self, subject: usize, expected: u64, message: Message) -> Answer {
        let (sequence, last) = &mut self.subjects[subject];
        if *sequence != expected {
            return Answer::Refused;
        }
        (*sequence, *last) = (expected + 1, message);
        Answer::Stored(expected + 1)
    }
}

/// A request on its way: composed, or served and its answer on the way back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pending {
    pub request: Request,
    pub asked_us: i64,
    pub answer: Option<Answer>,
}

/// A shard: its lease is the real one, its game set is one game.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shard {
    pub lease: Lease,
    /// Entries of the log that it has applied.
    applied: usize,
    /// The epoch under which it holds the game.
    pub holds: Option<usize>,
}

/// An orchestrator: silence, echo and append are the real ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Orchestrator {
    pub leads: bool,
    key: Option<(u64, i64)>,
    /// Entries of the log that it has applied.
    applied: usize,
    silence: [Silence; SHARDS],
    /// Whose last beat says that it waits to be readmitted, and when it was last.
    waits: [bool; SHARDS],
    told_us: [i64; SHARDS],
    echo: Echo,
    turned_us: i64,
    asked_key_us: i64,
    append: Option<(Append, AppendStep, Vec<Entry>)>,
    decided: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Mind {
    Shard(Shard),
    Orchestrator(Orchestrator),
}

impl Mind {
    /// A process that just started.
    pub fn new(who: usize, now_us: i64, rules: &Rules, server: &Server) -> Self {
        if who < SHARDS {
            let lease = Lease::new(rules.settings.lease_ttl, rules.settings.log_interval);
            let mut shard = Shard { lease, applied: 0, holds: None };
            shard.follow(who, &server.log, now_us);
            return Self::Shard(shard);
        }
        Self::Orchestrator(Orchestrator {
            leads: false,
            key: None,
            applied: server.log.len(),
            silence: [Silence::since(now_us); SHARDS],
            waits: [false; SHARDS],
            told_us: [i64::MIN / 2; SHARDS],
            echo: Echo::default(),
            turned_us: now_us,
            asked_key_us: i64::MIN / 2,
            append: None,
            decided: 0,
        })
    }
}

impl Shard {
    /// What the tail brings, up to the log's end.
    fn follow(&mut self, me: usize, log: &[Entry], now_us: i64) {
        let folded = fold(log);
        for entry in &log[self.applied..] {
            if let What::Recovered { shard, heartbeat } = entry.what
                && shard == me
            {
                self.lease.readmitted(heartbeat);
            }
        }
        self.applied = log.len();
        self.holds = (folded.owner == me).then_some(folded.epoch);
        self.lease.tail_at_end(now_us);
    }

    /// What it asks for next; none: nothing in this turn. `Err`: it ends.
    pub fn next(&mut self, me: usize, server: &Server, now_us: i64) -> Result<Option<Request>, ()> {
        self.follow(me, &server.log, now_us);
        Ok(match self.lease.step(now_us) {
            LeaseStep::Look => Some(Request::Look),
            LeaseStep::Send { number, expected, .. } => {
                Some(Request::Beat { number, fence: self.lease.fence_sequence(), expected })
            }
            LeaseStep::Rejoin => Some(Request::Read),
            LeaseStep::Wait { .. } => None,
            LeaseStep::Superseded { .. } => return Err(()),
        })
    }

    pub fn hear(&mut self, life: u8, now_us: i64, pending: Pending, rules: &Rules) {
        match (pending.request, pending.answer) {
            (Request::Beat { number, .. }, Some(Answer::Stored(sequence))) => self.lease.acked(number, sequence),
            (Request::Beat { number, .. }, Some(Answer::Refused)) => self.lease.refused(number),
            (Request::Look, Some(Answer::Last(sequence, message))) => {
                let last = match message {
                    Message::Nothing => Last::Nothing,
                    Message::Fence => Last::Fence { sequence },
                    Message::Beat { life: by, number, .. } if by == life => Last::Own { sequence, number },
                    Message::Beat { life: by, fence, .. } => {
                        let fence = if rules.wait_is_inherited { fence } else { 0 };
                        Last::Other { sequence, process: by.to_string(), stopping: false, fence }
                    }
                };
                self.lease.looked(pending.asked_us, now_us, last);
            }
            (Request::Read, Some(Answer::Log(_))) => {
                self.lease.rejoined(pending.asked_us);
                if !rules.fenced_must_wait {
                    self.lease.readmitted(u64::MAX);
                }
            }
            // A lost answer: the lease asks again by itself.
            _ => {}
        }
    }
}

impl Orchestrator {
    fn stand_by(&mut self, server: &Server) {
        (self.leads, self.append) = (false, None);
        self.applied = server.log.len();
    }

    fn holds_key(&self, now_us: i64) -> bool {
        self.key.is_some_and(|(_, until_us)| now_us < until_us)
    }

    /// What it asks for next; none: nothing in this turn.
    pub fn next(&mut self, me: (usize, u8), server: &Server, now_us: i64, rules: &Rules) -> Option<Request> {
        self.echo.turned_after(now_us - self.turned_us);
        if now_us != self.turned_us || self.leads {
            self.echo.heard(now_us);
        }
        self.turned_us = now_us;
        if let Some((_, step, entries)) = &self.append {
            return match step.clone() {
                AppendStep::Send { expected } => Some(Request::Append { expected, entries: entries.clone() }),
                AppendStep::ReadBack { from, count } => Some(Request::ReadBack { from, count }),
                AppendStep::Done(_) => unreachable!("it is taken when it is done"),
            };
        }
        if self.leads && !self.holds_key(now_us) {
            self.stand_by(server);
        }
        if !self.leads {
            self.applied = server.log.len();
        }
        for (shard, (sequence, last)) in server.subjects.iter().enumerate() {
            if let Message::Beat { fence, .. } = last
                && self.silence[shard].hear(now_us, *sequence)
            {
                self.waits[shard] = *fence > 0;
            }
        }
        if now_us - self.asked_key_us >= TICK_US {
            self.asked_key_us = now_us;
            let revision = self.key.filter(|_| self.leads).map_or(0, |(revision, _)| revision);
            return Some(Request::Key { revision });
        }
        if self.leads { self.lead(me, server, now_us, rules) } else { None }
    }

    fn lead(&mut self, me: (usize, u8), server: &Server, now_us: i64, rules: &Rules) -> Option<Request> {
        let folded = fold(&server.log[..self.applied]);
        let (suspect_after, limit) = (rules.settings.suspect_after(), rules.settings.log_timeout());
        let is_back = |s: usize| {
            let is_told = now_us - self.told_us[s] < READMIT_AGAIN;
            now_us == self.silence[s].at_us() && (folded.lost[s] || (self.waits[s] && !is_told))
        };
        if let Some(shard) = (0..SHARDS).find(|s| is_back(*s)) {
            self.told_us[shard] = now_us;
            let heartbeat = self.silence[shard].sequence();
            return Some(self.decide(me, &folded, vec![What::Recovered { shard, heartbeat }]));
        }
        if self.echo.works_for(now_us, rules.settings.log_trust()) {
            for shard in (0..SHARDS).filter(|s| !folded.lost[*s]) {
                if self.silence[shard].due(now_us, suspect_after, limit).judge {
                    return Some(Request::Judge { shard, heartbeat: self.silence[shard].sequence() });
                }
            }
        }
        if folded.lost[folded.owner] && self.target(&folded, now_us, rules).is_some() {
            return self.place(me, &folded, Vec::new(), now_us, rules);
        }
        None
    }

    /// Where the game could go.
    fn target(&self, folded: &Folded, now_us: i64, rules: &Rules) -> Option<usize> {
        let is_well =
            |s: &usize| !folded.lost[*s] && now_us - self.silence[*s].at_us() < rules.settings.suspect_after();
        (0..SHARDS).filter(|s| *s != folded.owner).find(is_well)
    }

    /// Moves the game off its lost owner, after what was decided before in this turn.
    fn place(
        &mut self,
        me: (usize, u8),
        folded: &Folded,
        mut decided: Vec<What>,
        now_us: i64,
        rules: &Rules,
    ) -> Option<Request> {
        let from = folded.owner;
        if let Some(to) = self.target(folded, now_us, rules) {
            decided.push(What::Moved { from, to });
        }
        if decided.is_empty() { None } else { Some(self.decide(me, folded, decided)) }
    }

    fn decide(&mut self, me: (usize, u8), folded: &Folded, decided: Vec<What>) -> Request {
        let mut entries = Vec::new();
        for what in decided {
            self.decided += 1;
            let mut id = [0; 16];
            id[..3].copy_from_slice(&[u8::try_from(me.0).unwrap(), me.1, self.decided]);
            let term = folded.term + u8::from(what == What::Elected);
            entries.push(Entry { id: EventId(id), writer: me, term, what });
        }
        let expected = self.applied as u64;
        let (append, step) = Append::new(expected, entries.iter().map(|e| e.id).collect());
        self.append = Some((append, step, entries.clone()));
        Request::Append { expected, entries }
    }

    pub fn hear(
        &mut self,
        me: (usize, u8),
        server: &Server,
        now_us: i64,
        pending: Pending,
        rules: &Rules,
    ) -> Option<Request> {
        match (&pending.request, pending.answer) {
            (Request::Key { .. }, Some(Answer::Stored(revision))) => {
                self.key = Some((revision, pending.asked_us + KEY_TTL_US));
                if !self.leads && self.append.is_none() {
                    // The first decision of a term: whoever led before is refused from then on.
                    self.applied = server.log.len();
                    self.echo = Echo::default();
                    return Some(self.decide(me, &fold(&server.log), vec![What::Elected]));
                }
            }
            (Request::Key { .. }, Some(_)) if self.leads && self.append.is_none() => {
                self.key = None;
                self.stand_by(server);
            }
            (Request::Append { .. } | Request::ReadBack { .. }, answer) => {
                let heard = match answer {
                    Some(Answer::Stored(last_sequence)) => Heard::Stored { last_sequence },
                    Some(Answer::Refused) => Heard::Refused,
                    Some(Answer::Ids(ids)) => Heard::Read(ids),
                    _ => Heard::Unknown,
                };
                self.appended(server, now_us, &heard);
            }
            (Request::Judge { shard, heartbeat }, Some(Answer::Last(sequence, message))) => {
                if let Message::Beat { fence, .. } = message
                    && sequence > *heartbeat
                {
                    self.silence[*shard].hear(now_us, sequence);
                    self.waits[*shard] = fence > 0;
                } else {
                    return Some(Request::Fence { shard: *shard, heartbeat: *heartbeat, expected: sequence });
                }
            }
            (Request::Fence { shard, heartbeat, .. }, Some(Answer::Stored(_)))
                if self.leads && self.silence[*shard].fenced(*heartbeat) =>
            {
                let mut folded = fold(&server.log[..self.applied]);
                let decided = if folded.lost[*shard] { Vec::new() } else { vec![What::Lost { shard: *shard }] };
                folded.lost[*shard] = true;
                if folded.owner == *shard {
                    return self.place(me, &folded, decided, now_us, rules);
                }
                return (!decided.is_empty()).then(|| self.decide(me, &folded, decided));
            }
            _ => {}
        }
        None
    }

    fn appended(&mut self, server: &Server, now_us: i64, heard: &Heard) {
        let Some((append, step, _)) = &mut self.append else { return };
        *step = append.next(heard);
        match step {
            AppendStep::Done(Outcome::Stored { last_sequence }) => {
                self.applied = usize::try_from(*last_sequence).unwrap();
                (self.append, self.leads) = (None, true);
                if !self.holds_key(now_us) {
                    self.stand_by(server);
                }
            }
            AppendStep::Done(_) => self.stand_by(server),
            AppendStep::Send { .. } | AppendStep::ReadBack { .. } => {}
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Self { log: Vec::new(), subjects: [(0, Message::Nothing); SHARDS], key: (0, i64::MIN / 2) }
    }
}
