//! Whether a medium works: the leader's own word comes back over it. A medium that is down kills nobody.

use crate::settings::ECHO_LIMIT;

/// What came back of the leader's own word. Times are steady.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Echo {
    last_us: Option<i64>,
    since_us: i64,
}

impl Echo {
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

    pub fn is_fresh(&self, now_us: i64) -> bool {
        self.last_us.is_some_and(|at| now_us - at <= ECHO_LIMIT)
    }

    /// Whether it has worked for so long, unbroken.
    pub fn works_for(&self, now_us: i64, long_us: i64) -> bool {
        self.is_fresh(now_us) && now_us - self.since_us >= long_us
    }
}
