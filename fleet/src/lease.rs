//! A shard's right to act: its claim on one heartbeat subject, and a deadline that only signs of life push on.
//!
//! A pure state machine: the shell does what [`Lease::step`] asks for and tells what came of it. All times are microseconds
//! of a clock that never jumps and goes on in suspend (`CLOCK_BOOTTIME`).
//!
//! Every beat is conditional on the last message of the subject. Whoever beats later in the stream wins: a process that is
//! refused reads the subject and finds its own beat (an acknowledgement was lost), a `Fence` (it was taken for dead), or
//! another process (it was superseded, and never acts again).
//!
//! Who finds a fence reads the log anew, says so in its beats, and acts again only when the log says that the leader has heard
//! one of them: what the leader decided on the strength of the fence, however late, then stands before that in the log.

use std::collections::BTreeMap;

/// An unacknowledged beat is sent again after this.
pub const RESEND_US: i64 = 400_000;
/// A beat that was refused for no reason that the subject shows is composed anew after this.
const REFUSED_REST_US: i64 = 100_000;
/// What an orchestrator said of the log counts for this long.
pub const WORD_US: i64 = 2_000_000;

/// What the shell must do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read the last message of the heartbeat subject, then [`Lease::looked`].
    Look,
    /// Publish beat `number`, conditional on `expected` being the subject's last sequence; then [`Lease::acked`] or
    /// [`Lease::refused`]. `again`: the very bytes of the last sending.
    Send { number: u64, expected: u64, again: bool },
    /// Read the own part of CONTROL to its end, anew; then [`Lease::rejoined`].
    Rejoin,
    /// Nothing before this time, unless something is heard.
    Wait { until_us: i64 },
    /// Another process has the subject: stop for good.
    Superseded { by: String },
}

/// The last message of the heartbeat subject.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Last {
    Nothing,
    /// A beat of this very process, with its number.
    Own {
        sequence: u64,
        number: u64,
    },
    /// The leader took whoever beat before for dead.
    Fence {
        sequence: u64,
    },
    /// A beat of another process; `stopping`: its last; `fence`: the one after which it waited to be readmitted, or 0.
    Other {
        sequence: u64,
        process: String,
        stopping: bool,
        fence: u64,
    },
}

impl Last {
    /// The last sequence of the subject, 0 for none.
    const fn sequence(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Own { sequence, .. } | Self::Fence { sequence } | Self::Other { sequence, .. } => *sequence,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct InFlight {
    number: u64,
    first_sent_us: i64,
    last_sent_us: i64,
}

/// What an orchestrator said of the log, and when it was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Word {
    at_us: i64,
    log_ok: bool,
}

/// The claim and the deadline.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    ttl_us: i64,
    every_us: i64,
    /// Sequence of the subject's last message; none: it has to be looked at.
    expected: Option<u64>,
    in_flight: Option<InFlight>,
    number: u64,
    next_beat_us: i64,
    /// First sending of the last acknowledged beat.
    acked_us: Option<i64>,
    /// Last proof that the tail stood at the stream's end.
    tail_us: Option<i64>,
    /// An own beat was acknowledged: from then on another process on the subject is a younger one.
    claimed: bool,
    /// The process before may act until then.
    quiet_until_us: i64,
    /// The log must be read anew: a fence was found, or the log has lost its tail.
    fenced: bool,
    /// The fence that was found, until the leader has heard a beat from after it.
    fence: Option<u64>,
    held_until_us: i64,
    words: BTreeMap<String, Word>,
    superseded: Option<String>,
}

impl Lease {
    /// A lease that is not yet claimed: it beats every `every_us` and lasts `ttl_us` from a beat's sending.
    #[must_use]
    pub const fn new(ttl_us: i64, every_us: i64) -> Self {
        Self {
            ttl_us,
            every_us,
            expected: None,
            in_flight: None,
            number: 0,
            next_beat_us: i64::MIN,
            acked_us: None,
            tail_us: None,
            claimed: false,
            quiet_until_us: i64::MIN,
            fenced: false,
            fence: None,
            held_until_us: i64::MIN,
            words: BTreeMap::new(),
            superseded: None,
        }
    }

    /// What is to be done now. [`Step::Send`] counts as done when it is handed out.
    pub fn step(&mut self, now_us: i64) -> Step {
        if let Some(by) = &self.superseded {
            return Step::Superseded { by: by.clone() };
        }
        if self.fenced {
            return Step::Rejoin;
        }
        let Some(expected) = self.expected else { return Step::Look };
        if let Some(beat) = &mut self.in_flight {
            let again_us = beat.last_sent_us + RESEND_US;
            if now_us < again_us {
                return Step::Wait { until_us: again_us };
            }
            beat.last_sent_us = now_us;
            return Step::Send { number: beat.number, expected, again: true };
        }
        if now_us < self.next_beat_us {
            return Step::Wait { until_us: self.next_beat_us };
        }
        self.number += 1;
        self.next_beat_us = now_us.saturating_add(self.every_us);
        self.in_flight = Some(InFlight { number: self.number, first_sent_us: now_us, last_sent_us: now_us });
        Step::Send { number: self.number, expected, again: false }
    }

    /// There is something new to say: the next beat is due at once.
    pub const fn beat_soon(&mut self) {
        self.next_beat_us = i64::MIN;
    }

    /// Beat `number` is stored at `sequence`.
    pub fn acked(&mut self, number: u64, sequence: u64) {
        let Some(beat) = self.in_flight.take_if(|b| b.number == number) else { return };
        // From the first sending: the server may have stored that one, and the leader counts from its arrival.
        self.acked_us = Some(beat.first_sent_us);
        self.expected = Some(sequence);
        self.claimed = true;
    }

    /// The server refused beat `number`: something else is the subject's last message.
    pub fn refused(&mut self, number: u64) {
        if self.in_flight.is_some_and(|b| b.number == number) {
            self.expected = None;
        }
    }

    /// The subject's last message was read; the reading was asked for at `asked_us`.
    pub fn looked(&mut self, asked_us: i64, now_us: i64, last: Last) {
        // A stream that was made anew counts from the beginning: what is heard by its numbers is after the fence all the same.
        self.fence = self.fence.map(|fence| fence.min(last.sequence()));
        match last {
            Last::Nothing => self.adopt(0),
            Last::Own { sequence, number } => {
                if self.in_flight.is_some_and(|b| b.number == number) {
                    self.acked(number, sequence);
                } else {
                    self.adopt(sequence);
                    // Refused though nobody else has beaten: the server is ill, and is not asked faster for it.
                    self.next_beat_us = now_us + REFUSED_REST_US;
                }
            }
            Last::Fence { sequence } => {
                self.adopt(sequence);
                // Nobody acts under a lease from before a fence; whatever this process knew may be another's by now.
                self.fenced = true;
                self.fence = Some(sequence);
                self.acked_us = None;
                self.held_until_us = i64::MIN;
            }
            Last::Other { process, .. } if self.claimed => self.superseded = Some(process),
            Last::Other { sequence, stopping, fence, .. } => {
                self.adopt(sequence);
                // What the leader decided on the strength of that fence may not be in the log yet: its wait is inherited.
                self.fence = (fence != 0).then_some(fence.min(sequence));
                if !stopping {
                    self.quiet_until_us = now_us.max(asked_us) + self.ttl_us;
                }
            }
        }
    }

    fn adopt(&mut self, sequence: u64) {
        self.expected = Some(sequence);
        // Whatever was in flight was refused, or will be.
        self.in_flight = None;
        self.beat_soon();
    }

    /// What was read of CONTROL is no measure any more: it must be read anew before anything else.
    pub const fn read_anew(&mut self) {
        self.fenced = true;
    }

    /// The own part of CONTROL was read to the end, as it stood at `asked_us`.
    pub fn rejoined(&mut self, asked_us: i64) {
        self.fenced = false;
        self.tail_us = Some(asked_us);
        self.beat_soon();
    }

    /// The log says that the leader heard this process again, by the beat at this sequence of HEARTBEATS.
    pub fn readmitted(&mut self, heartbeat_sequence: u64) {
        if self.fence.take_if(|fence| heartbeat_sequence > *fence).is_some() {
            self.beat_soon();
        }
    }

    /// The fence after which this process waits to be readmitted, at least 1; 0: it does not wait.
    #[must_use]
    pub fn fence_sequence(&self) -> u64 {
        self.fence.map_or(0, |fence| fence.max(1))
    }

    /// The tail stood at the stream's end at `at_us`.
    pub fn tail_at_end(&mut self, at_us: i64) {
        self.tail_us = self.tail_us.max(Some(at_us));
    }

    /// Orchestrator `instance` says whether the log is there. While all that are heard, and so the leader among them, say that
    /// it is away, nothing can be decided: a lease that stands is held.
    pub fn heard(&mut self, now_us: i64, instance: &str, log_ok: bool) {
        self.words.retain(|_, w| now_us - w.at_us < WORD_US);
        self.words.insert(instance.to_owned(), Word { at_us: now_us, log_ok });
        if self.words.values().any(|w| w.log_ok) {
            self.held_until_us = i64::MIN;
        } else if self.may_act(now_us) {
            // What has lapsed is not held: a process that was paused may hear old words.
            self.held_until_us = now_us + WORD_US;
        }
    }

    /// When the lease ends without another sign of life, but for a hold; none: it has not begun.
    #[must_use]
    pub fn deadline_us(&self) -> Option<i64> {
        Some(self.acked_us?.min(self.tail_us?) + self.ttl_us)
    }

    /// Whether anything may leave this process now. To be asked right before each sending.
    #[must_use]
    pub fn may_act(&self, now_us: i64) -> bool {
        self.superseded.is_none()
            && !self.fenced
            && self.fence.is_none()
            && self.claimed
            && now_us >= self.quiet_until_us
            && (self.deadline_us().is_some_and(|d| now_us < d) || now_us < self.held_until_us)
    }

    /// Until when it may act if nothing more is heard.
    #[must_use]
    pub fn acts_until_us(&self, now_us: i64) -> Option<i64> {
        self.may_act(now_us).then(|| self.deadline_us().unwrap_or(i64::MIN).max(self.held_until_us))
    }

    /// Nothing was sent that is not acknowledged, and nothing is due at once.
    #[must_use]
    pub const fn is_quiet(&self) -> bool {
        self.in_flight.is_none() && self.next_beat_us != i64::MIN
    }

    /// Whether the tail has told nothing for longer than any lease.
    #[must_use]
    pub fn is_tail_dead(&self, now_us: i64) -> bool {
        self.tail_us.is_some_and(|at| now_us - at > 2 * self.ttl_us)
    }

    /// When it may begin to act, as far as the process before is concerned.
    #[must_use]
    pub const fn quiet_until_us(&self) -> i64 {
        self.quiet_until_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: i64 = 2_000_000;
    const MS: i64 = 1_000;

    /// A lease claimed at 0 on an empty subject, acting.
    fn held() -> Lease {
        let mut lease = Lease::new(TTL, 1_000 * MS);
        assert_eq!(lease.step(0), Step::Look);
        lease.looked(0, 0, Last::Nothing);
        assert_eq!(lease.step(0), Step::Send { number: 1, expected: 0, again: false });
        lease.acked(1, 10);
        lease.tail_at_end(0);
        assert!(lease.may_act(0));
        lease
    }

    /// A beat of a process that goes on.
    fn other(sequence: u64, process: &str, fence: u64) -> Last {
        Last::Other { sequence, process: process.to_owned(), stopping: false, fence }
    }

    /// The fenced process crashed before it was readmitted: what was decided on the strength of its fence is still to come.
    #[test]
    fn who_follows_a_process_that_waited_to_be_readmitted_waits_in_its_place() {
        let mut young = Lease::new(TTL, 1_000 * MS);
        young.looked(0, 0, other(21, "old", 20));
        young.step(0);
        young.acked(1, 22);
        let later = 2_500 * MS;
        young.step(later);
        young.acked(2, 23);
        young.tail_at_end(later);
        assert!(!young.may_act(later) && young.fence_sequence() == 20);
        young.readmitted(22);
        assert!(young.may_act(later) && young.fence_sequence() == 0);
    }

    #[test]
    fn a_fence_of_a_stream_that_was_made_anew_is_not_waited_for_by_its_old_number() {
        let mut lease = held();
        lease.step(1_000 * MS);
        lease.refused(2);
        lease.looked(1_000 * MS, 1_000 * MS, Last::Fence { sequence: 5_000 });
        lease.rejoined(1_000 * MS);
        lease.step(1_000 * MS);
        lease.refused(3);
        lease.looked(1_100 * MS, 1_100 * MS, Last::Nothing);
        assert_eq!(lease.fence_sequence(), 1, "it waits on, by the new numbers");
        lease.step(1_100 * MS);
        lease.acked(4, 1);
        lease.tail_at_end(1_200 * MS);
        assert!(!lease.may_act(1_200 * MS));
        lease.readmitted(1);
        assert!(lease.may_act(1_200 * MS));
    }

    #[test]
    fn it_counts_from_the_first_sending_and_not_from_the_acknowledgement() {
        let mut lease = held();
        assert_eq!(lease.step(1_000 * MS), Step::Send { number: 2, expected: 10, again: false });
        assert_eq!(lease.step(1_400 * MS), Step::Send { number: 2, expected: 10, again: true });
        lease.acked(2, 11);
        lease.tail_at_end(1_900 * MS);
        assert_eq!(lease.deadline_us(), Some(3_000 * MS));
        assert!(lease.may_act(2_999 * MS) && !lease.may_act(3_000 * MS));
    }

    #[test]
    fn a_dead_tail_ends_it_however_well_the_beats_go() {
        let mut lease = held();
        lease.step(1_000 * MS);
        lease.acked(2, 11);
        assert!(!lease.may_act(2_000 * MS));
        lease.tail_at_end(1_500 * MS);
        assert!(lease.may_act(2_000 * MS));
    }

    #[test]
    fn a_lost_acknowledgement_is_found_by_looking() {
        let mut lease = held();
        lease.step(1_000 * MS);
        lease.step(1_400 * MS);
        lease.refused(2);
        assert_eq!(lease.step(1_410 * MS), Step::Look);
        lease.looked(1_410 * MS, 1_411 * MS, Last::Own { sequence: 12, number: 2 });
        lease.tail_at_end(1_400 * MS);
        assert_eq!(lease.deadline_us(), Some(3_000 * MS));
        assert_eq!(lease.step(2_000 * MS), Step::Send { number: 3, expected: 12, again: false });
    }

    #[test]
    fn a_fenced_process_acts_again_only_when_the_log_says_that_it_was_heard() {
        let mut lease = held();
        let resumed = 30_000 * MS;
        assert!(!lease.may_act(resumed));
        assert_eq!(lease.step(resumed), Step::Send { number: 2, expected: 10, again: false });
        lease.refused(2);
        lease.looked(resumed, resumed, Last::Fence { sequence: 20 });
        assert_eq!(lease.step(resumed), Step::Rejoin);
        lease.rejoined(resumed);
        assert!(!lease.may_act(resumed));
        assert_eq!(lease.step(resumed), Step::Send { number: 3, expected: 20, again: false });
        lease.acked(3, 21);
        let later = resumed + 1_900 * MS;
        lease.tail_at_end(later);
        assert!(!lease.may_act(later), "what follows the fence may not be in the log yet");
        lease.readmitted(19);
        assert!(!lease.may_act(later), "that was before the fence");
        lease.readmitted(21);
        assert!(lease.may_act(later));
    }

    #[test]
    fn the_younger_process_wins_and_waits_out_the_older_ones_lease() {
        let mut old = held();
        let mut young = Lease::new(TTL, 1_000 * MS);
        young.looked(50 * MS, 51 * MS, other(10, "old", 0));
        assert_eq!(young.step(51 * MS), Step::Send { number: 1, expected: 10, again: false });
        young.acked(1, 11);
        young.tail_at_end(2_000 * MS);
        assert!(!young.may_act(2_050 * MS), "the older one may act until 2,000 ms");
        young.step(1_051 * MS);
        young.acked(2, 12);
        assert!(young.may_act(2_051 * MS));
        old.step(1_000 * MS);
        old.refused(2);
        old.looked(1_001 * MS, 1_002 * MS, other(12, "young", 0));
        assert_eq!(old.step(1_002 * MS), Step::Superseded { by: "young".into() });
        assert!(!old.may_act(1_002 * MS));
    }

    #[test]
    fn after_a_goodbye_nobody_is_waited_for() {
        let mut lease = Lease::new(TTL, 1_000 * MS);
        lease.looked(0, 0, Last::Other { sequence: 4, process: "old".into(), stopping: true, fence: 0 });
        lease.step(0);
        lease.acked(1, 5);
        lease.tail_at_end(0);
        assert!(lease.may_act(0));
    }

    #[test]
    fn it_is_held_while_the_log_is_away_for_everyone_and_for_no_longer() {
        let mut lease = held();
        lease.heard(1_800 * MS, "o1", false);
        assert!(lease.may_act(3_700 * MS) && !lease.may_act(3_800 * MS), "as long as the word counts");
        lease.heard(3_000 * MS, "o1", false);
        lease.heard(3_100 * MS, "o2", true);
        assert!(!lease.may_act(3_100 * MS), "somebody says that it is there");
        lease.heard(3_200 * MS, "o1", false);
        assert!(!lease.may_act(3_200 * MS), "what has lapsed is not held");
    }

    #[test]
    fn a_paused_process_holds_nothing_on_words_it_slept_through() {
        let mut lease = held();
        lease.heard(1_800 * MS, "o1", false);
        for late in 0..5 {
            lease.heard(30_000 * MS + late, "o1", false);
            assert!(!lease.may_act(30_000 * MS + late));
        }
    }
}
