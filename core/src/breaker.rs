//! A circuit breaker: after so many failures in a row nothing is tried for a while; then one try decides.

use std::time::{Duration, Instant};

/// When it opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Failures in a row that open it.
    pub failures: u32,
    /// How long nothing is tried then.
    pub rest: Duration,
}

/// One breaker.
#[derive(Clone, Copy, Debug)]
pub struct Breaker {
    limits: Limits,
    failures: u32,
    /// Since when nothing is tried, or the one try runs.
    resting_since: Option<Instant>,
}

impl Breaker {
    /// A closed one.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self { limits, failures: 0, resting_since: None }
    }

    /// Whether something may be tried now. An open one lets a single try through after its rest; one that never comes back
    /// counts as failed after another rest.
    pub fn may_try(&mut self, now: Instant) -> bool {
        match self.resting_since {
            None => true,
            Some(since) if now.duration_since(since) < self.limits.rest => false,
            Some(_) => {
                self.resting_since = Some(now);
                true
            }
        }
    }

    /// A try went well. True: it was open, and is closed now.
    pub const fn ok(&mut self) -> bool {
        self.failures = 0;
        self.resting_since.take().is_some()
    }

    /// A try failed. True: it opened by that.
    pub const fn failed(&mut self, now: Instant) -> bool {
        self.failures = self.failures.saturating_add(1);
        if self.failures < self.limits.failures {
            return false;
        }
        let was_open = self.resting_since.is_some();
        self.resting_since = Some(now);
        !was_open
    }

    /// Whether it is open.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.resting_since.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_so_many_failures_in_a_row_and_one_try_decides() {
        let rest = Duration::from_secs(60);
        let mut breaker = Breaker::new(Limits { failures: 3, rest });
        let begin = Instant::now();
        assert!(!breaker.failed(begin) && !breaker.failed(begin));
        assert!(!breaker.ok() && !breaker.failed(begin), "only in a row");
        assert!(!breaker.failed(begin) && breaker.failed(begin) && breaker.is_open());
        assert!(!breaker.may_try(begin + rest / 2));
        let later = begin + rest;
        assert!(breaker.may_try(later) && !breaker.may_try(later), "one at a time");
        assert!(!breaker.failed(later), "it was open");
        assert!(!breaker.may_try(later + rest / 2) && breaker.may_try(later + rest));
        assert!(breaker.ok() && breaker.may_try(later + rest));
    }
}
