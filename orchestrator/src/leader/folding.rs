//! What is so by the log: folded at the start, and anew whenever what was known is no measure any more.

use std::time::Instant;

use arbees_core::log::{HEARTBEATS, Log};
use arbees_core::retry::{Policy, retry};
use arbees_core::time::{now_us, steady_us};
use arbees_fleet::State;
use arbees_fleet::state::Head;
use arbees_proto::{Payload, ServiceKind};
use tokio_util::sync::CancellationToken;

use super::Desk;
use crate::others::Others;

/// An orchestrator that beat within this was there when this one started. Microseconds.
const A_MOMENT_US: i64 = 60_000_000;

/// The fold of the log as it is now; none when asked to stop before.
pub(super) async fn fold(log: &Log, stop: &CancellationToken) -> Option<State> {
    let began = Instant::now();
    let policy = Policy::patient();
    let folding = retry("fold", &policy, stop, |_| true, || log.fold_leaving_snapshots(None));
    let state = stop.run_until_cancelled(folding).await?.ok()?;
    let (sequence, games) = (state.head.sequence, state.games.len());
    tracing::info!(sequence, games, ms = began.elapsed().as_millis(), "log folded");
    Some(state)
}

/// What orchestrators said in their last heartbeats, before this process listened.
#[derive(Debug, Default)]
pub(super) struct Before {
    /// How far some leader's effects had gone out; 0 when none tells.
    pub effects_through: u64,
    /// The furthest head of the log that one of them had applied.
    head: u64,
    /// Those who beat a moment ago.
    pub others: Others,
}

impl Before {
    /// Reads it; nothing when it cannot be read.
    pub async fn read(log: &Log) -> Self {
        let filter = log.names().heartbeats_of(ServiceKind::Orchestrator);
        let mut before = Self::default();
        for stored in log.last_per_subject(HEARTBEATS, filter).await.unwrap_or_default() {
            let Ok(event) = stored.event() else { continue };
            let Some(Payload::Heartbeat(beat)) = event.payload else { continue };
            before.effects_through = before.effects_through.max(beat.effects_through);
            before.head = before.head.max(beat.head.map_or(0, |h| h.sequence));
            if let Some(service) = beat.service.filter(|_| now_us() - event.occurred_at_us < A_MOMENT_US) {
                before.others.heard(service.instance, steady_us());
            }
        }
        before
    }

    /// The generation to lead in at least: a new one when the log ends before what was once applied.
    pub fn generation_over(&self, head: &Head) -> u64 {
        if self.head <= head.sequence {
            return 0;
        }
        let (known, end) = (self.head, head.sequence);
        tracing::error!(known, end, "the log has lost its tail, going on in a new generation");
        head.generation + 1
    }
}

impl Desk<'_> {
    /// Goes on from the fold of the log as it is now; none when asked to stop before.
    pub(super) async fn fold_anew(&mut self, stop: &CancellationToken) -> Option<()> {
        let state = fold(self.log, stop).await?;
        let known = self.pulse.borrow().head.clone();
        if state.head.sequence < known.sequence {
            self.log_is_shorter(&known, state.head.sequence);
        }
        let head = state.head.clone();
        self.snapshot_at = head.sequence;
        self.pulse.send_modify(|p| {
            p.another_leads |= head.term > known.term;
            p.head = head;
        });
        self.fleet.refold(state);
        Some(())
    }

    /// The log ends before what was known to be in it: epochs under the same sequences are others from now on.
    pub(super) fn log_is_shorter(&mut self, known: &Head, end: u64) {
        tracing::error!(known = known.sequence, end, "the log has lost its tail, going on in a new generation");
        self.generation = self.generation.max(known.generation + 1);
    }
}
