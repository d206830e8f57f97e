//! A shard's game set, rebuilt from its own part of the log and nothing else.

use std::time::Instant;

use arbees_fleet::GameSet;
use arbees_proto::{ServiceKind, ShardId};

use super::{CONTROL, Log, ReadError, Tail};
use crate::time::steady_us;

/// The tail begins this many events before the end that was read: on a replicated stream the reads may have been answered by a
/// replica that lagged by as much as one batch in flight. The set knows what it has seen twice.
const OVERLAP: u64 = 1_000;

impl Log {
    /// Reads the last message of each of the shard's subjects, and tails on from there. With when it was asked for, by the
    /// steady clock: the set is what the log said then, or later.
    ///
    /// # Errors
    /// When the log cannot be read whole.
    pub async fn recover(&self, me: &ShardId) -> Result<(GameSet, Tail, i64), ReadError> {
        let (began, asked_us) = (Instant::now(), steady_us());
        let (_, end) = self.bounds(CONTROL).await?;
        let mut history = Vec::new();
        for filter in self.names.shard_filters(me.as_str()) {
            for stored in self.last_per_subject(CONTROL, filter).await? {
                match stored.event() {
                    Ok(event) => history.push((stored.sequence, event)),
                    Err(error) => tracing::warn!(sequence = stored.sequence, %error, "message of CONTROL skipped"),
                }
            }
        }
        let base = end.saturating_sub(OVERLAP);
        let set = GameSet::recover(me.clone(), base, history);
        // Games come and go by two filters; by the third it hears that the leader has heard it again.
        let [going, coming] = self.names.shard_filters(me.as_str());
        let told = self.names.service(ServiceKind::Shard, me.as_str());
        let tail = self.tail(CONTROL, vec![going, coming, told], base + 1);
        tracing::info!(games = set.held().len(), sequence = end, ms = began.elapsed().as_millis(), "recovered");
        Ok((set, tail, asked_us))
    }
}
