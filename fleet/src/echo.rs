//! Whether a medium works: the leader's own word comes back over it. A medium that is down kills nobody.

use crate::settings::{ECHO_LIMIT, PAUSE_LIMIT};

/// What came back of the leader's own word. Times are steady, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Echo {
    last_us: Option<i64>,
    since_us: i64,
}

impl Echo {
    /// A medium that has worked for ever, up to `now_us`.
    #[must_use]
    pub const fn trusted(now_us: i64) -> Self {
        Self { last_us: Some(now_us), since_us: i64::MIN / 2 }
    }

    /// The own word came back.
    pub fn heard(&mut self, now_us: i64) {
        if !self.is_fresh(now_us) {
            self.since_us = now_us;
        }
        self.last_us = Some(now_us);
    }

    /// The medium, or the one who listens to it, was away.
    pub const fn broke(&mut self) {
        self.last_us = None;
    }

    /// The listener's turns lie `gap_us` apart. One that was stopped for a while has a backlog, and what waits to be read is
    /// older than it looks.
    pub const fn turned_after(&mut self, gap_us: i64) {
        if gap_us > PAUSE_LIMIT {
            self.broke();
        }
    }

    /// Whether the own word came back a moment ago.
    #[must_use]
    pub fn is_fresh(&self, now_us: i64) -> bool {
        self.last_us.is_some_and(|at| now_us - at <= ECHO_LIMIT)
    }

    /// Whether it has worked for so long, unbroken.
    #[must_use]
    pub fn works_for(&self, now_us: i64, long_us: i64) -> bool {
        self.is_fresh(now_us) && now_us - self.since_us >= long_us
    }
}
