//! One sender's silence on the log, and when it may be taken for dead: suspected, asked, judged, fenced.
//!
//! A pure state machine, as [`crate::lease`] is on the sender's side. All times are microseconds of the listener's clock that
//! never jumps.

use crate::settings::{JUDGE_AGAIN, PROBE_EVERY, PROBE_GRACE};

/// What a service that was asked whether it is there answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// It is there.
    Answered,
    /// Its connection is closed: the server knows of nobody.
    Nobody,
    /// No answer in time.
    Silent,
}

/// What a silence calls for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Ask the sender whether it is there; then [`Silence::probed`].
    pub probe: bool,
    /// Read its subject again: a newer beat goes to [`Silence::hear`]. Else fence it, conditional on the beat that is known;
    /// then [`Silence::fenced`].
    pub judge: bool,
}

/// What was heard of one sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Silence {
    /// When it was heard last.
    at_us: i64,
    /// Sequence of its last beat; 0: none was heard, or it beats on another medium.
    sequence: u64,
    probe: Option<Asked>,
    judging_since_us: Option<i64>,
}

/// A probe on its way, and what came of the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Asked {
    at_us: i64,
    answer: Option<Probe>,
    /// When it first answered.
    answered_us: Option<i64>,
}

impl Silence {
    /// A sender that is expected to beat from now on.
    #[must_use]
    pub const fn since(now_us: i64) -> Self {
        Self { at_us: now_us, sequence: 0, probe: None, judging_since_us: None }
    }

    /// A beat arrived, on the log at `sequence` (0: on another medium). False: it is older than one that is known.
    pub const fn hear(&mut self, now_us: i64, sequence: u64) -> bool {
        if sequence != 0 && sequence <= self.sequence {
            return false;
        }
        *self = Self { sequence, ..Self::since(now_us) };
        true
    }

    /// When it was heard last.
    #[must_use]
    pub const fn at_us(&self) -> i64 {
        self.at_us
    }

    /// Sequence of its last beat on the log; 0: none.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The stream begins to count anew: sequences are no measure any more.
    pub const fn forget_sequence(&mut self) {
        self.sequence = 0;
    }

    /// Its connection was seen to close: that is proof, not silence.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.probe.is_some_and(|p| p.answer == Some(Probe::Nobody))
    }

    /// What its silence calls for now. It is suspected after `suspect_after_us`; after `limit_us` no lease can last. What is
    /// due counts as done when it is handed out.
    pub fn due(&mut self, now_us: i64, suspect_after_us: i64, limit_us: i64) -> Due {
        let silent_us = now_us - self.at_us;
        let mut due = Due::default();
        if silent_us < suspect_after_us {
            return due;
        }
        if self.probe.is_none_or(|p| now_us - p.at_us >= PROBE_EVERY) {
            let before = self.probe;
            self.probe = Some(Asked {
                at_us: now_us,
                answer: before.and_then(|p| p.answer),
                answered_us: before.and_then(|p| p.answered_us),
            });
            due.probe = true;
        }
        let spared = self.probe.is_some_and(|p| {
            p.answer == Some(Probe::Answered) && p.answered_us.is_some_and(|at| now_us - at < PROBE_GRACE)
        });
        let is_asked = self.judging_since_us.is_some_and(|at| now_us - at < JUDGE_AGAIN);
        if silent_us >= limit_us && !spared && !is_asked {
            self.judging_since_us = Some(now_us);
            due.judge = true;
        }
        due
    }

    /// When its silence must be looked at next; none: nothing new will be due but what is asked for again.
    #[must_use]
    pub fn look_at_us(&self, now_us: i64, suspect_after_us: i64, limit_us: i64) -> Option<i64> {
        [self.at_us + suspect_after_us, self.at_us + limit_us].into_iter().find(|at| *at > now_us)
    }

    /// What a probe came to.
    pub fn probed(&mut self, now_us: i64, answer: Probe) {
        if let Some(probe) = self.probe.as_mut() {
            probe.answer = Some(answer);
            if answer == Probe::Answered {
                probe.answered_us.get_or_insert(now_us);
            }
        }
    }

    /// The fence naming beat `heartbeat` is stored: nothing of its process is accepted any more. False: it was heard since.
    pub const fn fenced(&mut self, heartbeat: u64) -> bool {
        if self.sequence > heartbeat {
            return false;
        }
        self.judging_since_us = None;
        true
    }
}
