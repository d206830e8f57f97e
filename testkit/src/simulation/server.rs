//! The log as the server keeps it: conditional appends, heartbeat subjects, the leader's key. What it says, it does at one
//! moment; what is lost is lost on the way to it or back.

use std::collections::BTreeMap;
use std::sync::Arc;

use arbees_fleet::{Entry, GameSet};
use arbees_proto::{EventId, Sealed, ShardId, v1};
use prost::Message as _;

/// How long the leader's key lives.
pub const KEY_TTL_US: i64 = 1_000_000;

/// A message on a heartbeat subject.
#[derive(Clone, Debug)]
pub struct Beat {
    pub sequence: u64,
    /// Whose: a process and its number; none for a fence.
    pub by: Option<(String, u64)>,
    pub event: Arc<v1::Event>,
}

/// One server with the streams and the key.
#[derive(Debug, Default)]
pub struct Server {
    pub control: Vec<(Arc<Entry>, Option<EventId>)>,
    /// Last event of each assignment subject, by index into `control`.
    last: BTreeMap<String, usize>,
    pub beats: Vec<Arc<Beat>>,
    subjects: BTreeMap<String, usize>,
    key: Option<(String, u64, i64)>,
    revisions: u64,
}

/// What a conditional write came to.
pub type Written = Result<u64, ()>;

impl Server {
    pub fn end(&self) -> u64 {
        self.control.len() as u64
    }

    /// Appends all of `events` if the log ends at `expected`.
    pub fn append(&mut self, expected: u64, events: &[Sealed]) -> Written {
        if self.end() != expected {
            return Err(());
        }
        for event in events {
            let sequence = self.end() + 1;
            let entry = Entry {
                sequence,
                subject: event.subject.clone(),
                event_type: event.event_type.to_owned(),
                hash: event.hash,
                payload: event.payload.clone(),
            };
            if event.subject.contains(".assignment.") {
                self.last.insert(event.subject.clone(), self.control.len());
            }
            self.control.push((Arc::new(entry), Some(event.id)));
        }
        Ok(self.end())
    }

    /// The ids from `from` on.
    pub fn ids(&self, from: u64, count: usize) -> Vec<Option<EventId>> {
        let from = usize::try_from(from - 1).unwrap_or(usize::MAX);
        self.control.iter().skip(from).take(count).map(|(_, id)| *id).collect()
    }

    /// What a shard that reads its own part of the log anew comes to.
    pub fn recover(&self, shard: &ShardId) -> GameSet {
        // arbees.control.assignment.{game}.{from}.{to}
        let is_own = |subject: &str| subject.split('.').skip(4).any(|token| token == shard.as_str());
        let own = self.last.iter().filter(|(subject, _)| is_own(subject));
        let event = |index: usize| {
            let entry = &self.control[index].0;
            Some((entry.sequence, v1::Event::decode(entry.payload.clone()).ok()?))
        };
        GameSet::recover(shard.clone(), self.end(), own.filter_map(|(_, index)| event(*index)).collect())
    }

    /// The last message on the heartbeat subject of `shard`.
    pub fn last_beat(&self, shard: &str) -> Option<&Arc<Beat>> {
        self.subjects.get(shard).map(|index| &self.beats[*index])
    }

    /// Stores a message there if the last one has this sequence (0: there is none).
    pub fn beat(&mut self, shard: &str, expected: Option<u64>, by: Option<(String, u64)>, event: v1::Event) -> Written {
        let last = self.last_beat(shard).map_or(0, |b| b.sequence);
        if expected.is_some_and(|e| e != last) {
            return Err(());
        }
        let sequence = self.beats.len() as u64 + 1;
        self.subjects.insert(shard.to_owned(), self.beats.len());
        self.beats.push(Arc::new(Beat { sequence, by, event: Arc::new(event) }));
        Ok(sequence)
    }

    /// Takes or renews the key: `revision` 0 takes it.
    pub fn put_key(&mut self, now_us: i64, holder: &str, revision: u64) -> Written {
        let live = self.key.as_ref().filter(|(_, _, until)| now_us < *until);
        if live.map_or(0, |(_, r, _)| *r) != revision {
            return Err(());
        }
        self.revisions += 1;
        self.key = Some((holder.to_owned(), self.revisions, now_us + KEY_TTL_US));
        Ok(self.revisions)
    }
}
