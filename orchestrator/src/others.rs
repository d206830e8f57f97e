//! The other orchestrators, by their heartbeats: people are told when one that was there is gone, whether it led or stood by.

use std::collections::BTreeMap;

use arbees_core::alerts::{Alerter, Severity};

/// One that was not heard for this long while this one heard itself is gone. A restart takes less. Microseconds.
const SILENT_US: i64 = 10_000_000;
/// One that is gone for this long is missed no more. Microseconds.
const FORGET_US: i64 = 24 * 3_600_000_000;
/// Names that are remembered. A bound against floods of them.
const MOST: usize = 100;

const KIND: &str = "leader_lost";

/// When each orchestrator, this one among them, was last heard over the log; by the steady clock.
#[derive(Debug, Default)]
pub struct Others(BTreeMap<String, i64>);

impl Others {
    /// A beat of `instance` came over the log.
    pub fn heard(&mut self, instance: String, now_us: i64) {
        if self.0.len() < MOST || self.0.contains_key(&instance) {
            self.0.insert(instance, now_us);
        }
    }

    /// Raises and settles what is so while `me` leads.
    pub fn tell(&mut self, me: &str, now_us: i64, alerter: &Alerter) {
        for (instance, is_gone) in self.look(me, now_us) {
            if is_gone {
                let summary = format!("orchestrator {instance} has fallen silent: {me} leads, and may be alone");
                alerter.raise(KIND, &instance, Severity::Warning, summary);
            } else {
                alerter.settle(KIND, &instance);
            }
        }
    }

    /// Whether each other one is gone. The own beat says until when the log carried what was sent.
    fn look(&mut self, me: &str, now_us: i64) -> Vec<(String, bool)> {
        let Some(own_us) = self.0.get(me).copied() else { return Vec::new() };
        let forgotten = self.0.extract_if(.., |_, at| now_us - *at >= FORGET_US).map(|(instance, _)| (instance, false));
        let mut found: Vec<_> = forgotten.collect();
        let others = self.0.iter().filter(|(instance, _)| *instance != me);
        found.extend(others.map(|(instance, at)| (instance.clone(), own_us - *at > SILENT_US)));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000;

    fn gone(others: &mut Others, at: i64) -> Vec<bool> {
        others.look("me", at * S).into_iter().map(|(_, is_gone)| is_gone).collect()
    }

    #[test]
    fn one_that_was_there_is_missed_and_not_while_the_log_is_away_for_all() {
        let mut others = Others::default();
        others.heard("other".into(), 0);
        others.heard("me".into(), 5 * S);
        assert_eq!(gone(&mut others, 60), [false], "nobody was heard since: the log is away");
        others.heard("me".into(), 60 * S);
        assert_eq!(gone(&mut others, 60), [true]);
        others.heard("other".into(), 61 * S);
        assert_eq!(gone(&mut others, 61), [false]);
        others.heard("me".into(), 50 * 3_600 * S);
        assert_eq!(gone(&mut others, 50 * 3_600), [false], "it is missed no more");
        assert_eq!(gone(&mut others, 50 * 3_600), [] as [bool; 0], "and forgotten");
    }
}
