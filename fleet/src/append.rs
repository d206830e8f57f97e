//! The append protocol: how a batch gets into the log exactly once, or its writer learns that it may write no more.
//!
//! One append is in flight at a time, conditional on the expected last sequence. When an acknowledgement is lost, the
//! outcome is unknown until an *acknowledged* conditional append at the same expected sequence closes it: the same events
//! go out again (same ids, same bytes). Acknowledged: stored once. Refused: whatever stands at expected + 1 tells: our first
//! id, then ours are stored (all, or a prefix after a power cut); another's, then we are deposed; nothing, then try again.

use arbees_proto::EventId;

/// What the shell must do next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Send the whole batch, conditional on `expected`, under a new batch id.
    Send { expected: u64 },
    /// Read the ids stored from `from` on, at most `count` of them.
    ReadBack { from: u64, count: usize },
    /// Finished.
    Done(Outcome),
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Heard {
    /// Acknowledged; the last event has this sequence.
    Stored { last_sequence: u64 },
    /// The server refused: a conflict, a duplicate, anything it answered that is no acknowledgement.
    Refused,
    /// No answer: time-out, lost connection, no responder.
    Unknown,
    /// The ids that were read back; shorter than asked when the stream ends.
    Read(Vec<Option<EventId>>),
    /// Reading back failed.
    Unread,
}

/// How an append ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// All events are stored, the last at this sequence.
    Stored { last_sequence: u64 },
    /// Only the first `count` are, after a crash of the server in mid-batch. A prefix is a valid log.
    Prefix { count: usize },
    /// Another writer's event stands where ours should: write no more.
    Deposed,
}

/// One append in flight.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Append {
    expected: u64,
    ids: Vec<EventId>,
    reading: bool,
}

impl Append {
    /// An append of the events `ids` (at least one) right after `expected`, and its first step.
    #[must_use]
    pub fn new(expected: u64, ids: Vec<EventId>) -> (Self, Step) {
        (Self { expected, ids, reading: false }, Step::Send { expected })
    }

    /// The next step after what was heard of the last one.
    pub fn next(&mut self, heard: &Heard) -> Step {
        match heard {
            Heard::Stored { last_sequence } if *last_sequence == self.expected + self.ids.len() as u64 => {
                Step::Done(Outcome::Stored { last_sequence: *last_sequence })
            }
            // An acknowledgement of some other sequence closes nothing: look.
            Heard::Stored { .. } | Heard::Refused => self.read_back(),
            Heard::Unread => self.read_back(),
            Heard::Unknown if self.reading => self.read_back(),
            Heard::Unknown => Step::Send { expected: self.expected },
            Heard::Read(found) => self.judge(found),
        }
    }

    fn read_back(&mut self) -> Step {
        self.reading = true;
        Step::ReadBack { from: self.expected + 1, count: self.ids.len() }
    }

    fn judge(&mut self, found: &[Option<EventId>]) -> Step {
        self.reading = false;
        let ours = found.iter().zip(&self.ids).take_while(|(f, id)| f.as_ref() == Some(id)).count();
        if ours == self.ids.len() {
            Step::Done(Outcome::Stored { last_sequence: self.expected + ours as u64 })
        } else if ours > 0 {
            Step::Done(Outcome::Prefix { count: ours })
        } else if found.is_empty() {
            Step::Send { expected: self.expected }
        } else {
            Step::Done(Outcome::Deposed)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(n: u8, from: u8) -> Vec<EventId> {
        (from..from + n).map(|i| EventId([i; 16])).collect()
    }

    #[test]
    fn a_lost_acknowledgement_is_closed_by_sending_the_same_again() {
        let (mut append, first) = Append::new(7, ids(2, 0));
        assert_eq!(first, Step::Send { expected: 7 });
        assert_eq!(append.next(&Heard::Unknown), Step::Send { expected: 7 });
        assert_eq!(append.next(&Heard::Refused), Step::ReadBack { from: 8, count: 2 });
        let stored: Vec<_> = ids(2, 0).into_iter().map(Some).collect();
        assert_eq!(append.next(&Heard::Read(stored)), Step::Done(Outcome::Stored { last_sequence: 9 }));
    }

    #[test]
    fn anothers_event_in_our_place_deposes() {
        let (mut append, _) = Append::new(7, ids(2, 0));
        append.next(&Heard::Refused);
        assert_eq!(append.next(&Heard::Read(vec![Some(EventId([9; 16]))])), Step::Done(Outcome::Deposed));
        let (mut append, _) = Append::new(7, ids(2, 0));
        append.next(&Heard::Refused);
        assert_eq!(append.next(&Heard::Read(vec![None])), Step::Done(Outcome::Deposed), "a stranger without id");
    }

    #[test]
    fn a_power_cut_leaves_a_prefix() {
        let (mut append, _) = Append::new(7, ids(3, 0));
        append.next(&Heard::Unknown);
        append.next(&Heard::Refused);
        let found = vec![Some(EventId([0; 16])), Some(EventId([1; 16]))];
        assert_eq!(append.next(&Heard::Read(found)), Step::Done(Outcome::Prefix { count: 2 }));
    }

    /// A log with the server's semantics, whose answers may be lost.
    struct Log(Vec<EventId>);

    impl Log {
        fn answer(&mut self, step: &Step, batch: &[EventId]) -> Heard {
            match step {
                Step::Send { expected } if *expected == self.0.len() as u64 => {
                    self.0.extend_from_slice(batch);
                    Heard::Stored { last_sequence: self.0.len() as u64 }
                }
                Step::Send { .. } => Heard::Refused,
                Step::ReadBack { from, count } => {
                    let at = usize::try_from(*from - 1).unwrap().min(self.0.len());
                    Heard::Read(self.0[at..].iter().take(*count).copied().map(Some).collect())
                }
                Step::Done(_) => unreachable!("the driver stops at Done"),
            }
        }
    }

    proptest! {
        /// Whatever is lost, and whoever else writes: the outcome told is the outcome in the log, and nothing is there twice.
        #[test]
        fn the_outcome_told_is_the_outcome_in_the_log(
            lost in proptest::collection::vec(0..3u8, 0..12), stranger_at in proptest::option::of(0..6usize), n in 1..5u8,
        ) {
            let batch = ids(n, 100);
            let mut log = Log(ids(3, 0));
            let (mut append, mut step) = Append::new(3, batch.clone());
            let mut round = 0;
            let outcome = loop {
                if stranger_at == Some(round) {
                    log.0.push(EventId([250; 16]));
                }
                let fate = lost.get(round).copied().unwrap_or(2);
                round += 1;
                let heard = match fate {
                    0 => Heard::Unknown,
                    1 => { log.answer(&step, &batch); Heard::Unknown }
                    _ => log.answer(&step, &batch),
                };
                step = append.next(&heard);
                if let Step::Done(outcome) = &step { break outcome.clone() }
                prop_assert!(round < 40, "ends");
            };
            let copies = log.0.iter().filter(|id| batch.contains(id)).count();
            match outcome {
                Outcome::Stored { last_sequence } => {
                    prop_assert_eq!(copies, batch.len());
                    prop_assert_eq!(last_sequence, 3 + u64::from(n));
                }
                Outcome::Prefix { .. } => prop_assert!(false, "this log stores whole batches"),
                Outcome::Deposed => prop_assert_eq!(copies, 0),
            }
        }
    }
}
