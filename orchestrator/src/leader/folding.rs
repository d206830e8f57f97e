//! What is so by the log: folded at the start, and anew whenever what was known is no measure any more.

use std::time::Instant;

use arbees_core::log::Log;
use arbees_core::retry::{Policy, retry};
use arbees_fleet::State;
use arbees_fleet::state::Head;
use tokio_util::sync::CancellationToken;

use super::Desk;

/// The fold of the log as it is now; none when asked to stop before.
pub(super) async fn fold(log: &Log, stop: &CancellationToken) -> Option<State> {
    let began = Instant::now();
    let policy = Policy::patient();
    let folding = retry("fold", &policy, stop, |_| true, || log.fold(None));
    let state = stop.run_until_cancelled(folding).await?.ok()?;
    let (sequence, games) = (state.head.sequence, state.games.len());
    tracing::info!(sequence, games, ms = began.elapsed().as_millis(), "log folded");
    Some(state)
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
