//! The incidents that last, as one program knows them: each is raised once while it lasts, and settled once.
//!
//! Pure. ALERTS is the truth, and comes in by [`Incidents::know`]; between saying something and reading it there, a program
//! goes by its own word.

use std::collections::{BTreeMap, BTreeSet};

use crate::SECOND;

/// A program's own word counts for this long against what it reads: by then it has come back, or was lost.
const OWN_WORD: i64 = 10 * SECOND;

/// The name of what belongs together: one incident is told of once while it lasts.
#[must_use]
pub fn incident_of(kind: &str, subject: &str) -> String {
    if subject.is_empty() { kind.to_owned() } else { format!("{kind}:{subject}") }
}

/// What is known of one incident.
#[derive(Clone, Copy, Debug)]
struct Known {
    lasts: bool,
    /// Since when that is known, on the steady clock; as the program's own word, or as ALERTS had it.
    since_us: i64,
}

/// The incidents that last.
#[derive(Clone, Debug, Default)]
pub struct Incidents {
    known: BTreeMap<String, Known>,
}

impl Incidents {
    /// It is so. True when that is news, and to be raised.
    pub fn raise(&mut self, now_us: i64, incident: &str) -> bool {
        self.is_news(now_us, incident, true)
    }

    /// It is over. True when that is news, and to be told.
    pub fn settle(&mut self, now_us: i64, incident: &str) -> bool {
        self.lasts(incident) && self.is_news(now_us, incident, false)
    }

    fn is_news(&mut self, now_us: i64, incident: &str, lasts: bool) -> bool {
        let is_same = self.lasts(incident) == lasts;
        if !is_same {
            self.known.insert(incident.to_owned(), Known { lasts, since_us: now_us });
        }
        !is_same
    }

    fn lasts(&self, incident: &str) -> bool {
        self.known.get(incident).is_some_and(|k| k.lasts)
    }

    /// ALERTS says that exactly `open` last. What this program said itself lately counts more.
    pub fn know(&mut self, now_us: i64, open: &BTreeSet<String>) {
        let is_own_word = |k: &Known| now_us - k.since_us < OWN_WORD;
        self.known.retain(|incident, k| is_own_word(k) || (k.lasts && open.contains(incident)));
        for incident in open {
            self.known.entry(incident.clone()).or_insert(Known { lasts: true, since_us: now_us });
        }
    }

    /// What incidents of `kind` that have lasted for `at_least_us` are about.
    pub fn lasting<'a>(&'a self, now_us: i64, kind: &'a str, at_least_us: i64) -> impl Iterator<Item = &'a str> {
        let old = self.known.iter().filter(move |(_, k)| k.lasts && now_us - k.since_us >= at_least_us);
        old.filter_map(move |(incident, _)| incident.strip_prefix(kind)?.strip_prefix(':'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(of: &[&str]) -> BTreeSet<String> {
        of.iter().map(|i| (*i).to_owned()).collect()
    }

    #[test]
    fn it_is_raised_once_and_settled_once() {
        let mut known = Incidents::default();
        assert!(!known.settle(0, "a"), "it never was");
        assert!(known.raise(0, "a") && !known.raise(1, "a"));
        assert!(known.settle(2, "a") && !known.settle(3, "a"));
        assert!(known.raise(4, "a"));
    }

    #[test]
    fn what_another_raised_is_settled_and_not_raised_again() {
        let mut known = Incidents::default();
        known.know(0, &open(&["shard_lost:a"]));
        assert!(!known.raise(0, "shard_lost:a"));
        assert_eq!(known.lasting(0, "shard_lost", 0).collect::<Vec<_>>(), ["a"]);
        assert!(known.settle(0, "shard_lost:a"));
    }

    /// A word that never came back over ALERTS is said again; one on its way is not.
    #[test]
    fn the_own_word_counts_until_it_must_have_come_back() {
        let mut known = Incidents::default();
        assert!(known.raise(0, "a"));
        known.know(OWN_WORD - 1, &open(&[]));
        assert!(!known.raise(OWN_WORD - 1, "a"), "on its way");
        known.know(OWN_WORD, &open(&[]));
        assert!(known.raise(OWN_WORD, "a"), "lost, or settled by another");
        assert!(known.settle(OWN_WORD + 1, "a"));
        known.know(OWN_WORD + 2, &open(&["a"]));
        assert!(!known.settle(OWN_WORD + 2, "a"), "its end is on its way");
        known.know(2 * OWN_WORD + 1, &open(&["a"]));
        assert!(known.settle(2 * OWN_WORD + 1, "a"), "the end was lost");
    }
}
