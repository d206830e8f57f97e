//! Whether history is whole: every message chained to the one before, none missing, and the end where the leaders said that it was.
//!
//! Leaders publish the head of what they have applied, sequence and chain hash, with every heartbeat. Whoever rewrites all hashes from
//! some event on, or cuts the end off, is found by the first head that does not agree.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use arbees_core::log::{CONTROL, HEARTBEATS, Log, Stored};
use arbees_fleet::State;
use arbees_proto::{Payload, ServiceKind};
use serde::Serialize;

use super::{ALL, AuditError, Source};

/// Heads by their sequences.
pub type Heads = BTreeMap<u64, Vec<u8>>;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Proof {
    /// Messages looked at.
    pub messages: u64,
    /// The last one's sequence.
    pub end: u64,
    /// How many published heads were compared.
    pub heads: usize,
    /// The first sequence at which something is wrong, and what; none: nothing is.
    pub first_bad: Option<(u64, String)>,
}

impl Proof {
    fn note(&mut self, sequence: u64, what: impl Into<String>) {
        if self.first_bad.as_ref().is_none_or(|(first, _)| sequence < *first) {
            self.first_bad = Some((sequence, what.into()));
        }
    }
}

/// The heads that orchestrators published and HEARTBEATS still holds.
///
/// # Errors
/// When they cannot be read.
pub async fn published_heads(log: &Log) -> Result<Heads, AuditError> {
    let mut heads = Heads::new();
    let filter = log.names().heartbeats_of(ServiceKind::Orchestrator);
    let keep = |stored: Stored| {
        if let Some(Payload::Heartbeat(beat)) = stored.event().ok().and_then(|e| e.payload)
            && let Some(head) = beat.head.filter(|h| h.sequence > 0)
        {
            heads.insert(head.sequence, head.hash);
        }
        ControlFlow::Continue(())
    };
    Source::Log(log.clone()).read(HEARTBEATS, &[filter], 1, ALL, keep).await?;
    Ok(heads)
}

/// Looks at all of CONTROL in `source`. `progress` is told how far it is.
///
/// # Errors
/// When it cannot be read whole.
pub async fn prove(source: &Source, heads: &Heads, progress: impl Fn(u64)) -> Result<Proof, AuditError> {
    let mut proof = Proof::default();
    let mut state = State::default();
    let look = |stored: Stored| {
        let expected = state.head.sequence + 1;
        if stored.sequence != expected {
            proof.note(expected, format!("missing: the next message is {}", stored.sequence));
        }
        if let Err(skip) = state.fold(&stored.entry()) {
            proof.note(stored.sequence, skip.to_string());
        }
        if let Some(hash) = heads.get(&stored.sequence) {
            proof.heads += 1;
            if hash[..] != state.head.hash[..] {
                proof.note(stored.sequence, "its chain hash is not the one that its leader published");
            }
        }
        proof.messages += 1;
        proof.end = stored.sequence;
        if stored.sequence.is_multiple_of(100_000) {
            progress(stored.sequence);
        }
        ControlFlow::Continue(())
    };
    source.read(CONTROL, &[], 1, ALL, look).await?;
    // What was read was checked to reach the end that the server names.
    if let Some(last) = heads.keys().next_back().filter(|last| **last > proof.end) {
        let end = proof.end;
        proof.note(end + 1, format!("missing: a leader published {last} as the end"));
    }
    Ok(proof)
}
