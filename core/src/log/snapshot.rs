//! Snapshots of the folded state in an object store, so that a start need not fold the whole log.

use std::collections::HashMap;
use std::time::Duration;

use arbees_fleet::state::FOLD_VERSION;
use arbees_fleet::{Entry, State};
use arbees_proto::envelope::{self, Hash};
use async_nats::jetstream::object_store::{self, DeleteErrorKind, InfoErrorKind, ObjectMetadata, ObjectStore};
use tokio::io::AsyncReadExt as _;

use super::api::NO_MESSAGE;
use super::{CONTROL, Log, ReadError, Reader};

/// There is a snapshot for every so many events: folding that many takes less time than reading a snapshot of 10,000 games, so
/// that more of them would gain little.
pub const SNAPSHOT_EVERY: u64 = 2_500;
/// So many of the newest are kept: any moment of the last two and a half million events is folded from close by.
const KEPT_ALL: u64 = 1_000;
/// Of older ones, one in so many is kept.
const KEPT_OF_OLDER: u64 = 10;
/// A store that does not answer within this is away: all is folded without it.
const STORE_WITHIN: Duration = Duration::from_secs(10);

/// One snapshot takes no longer than this: one that is dropped or replaced while it is read would never end.
const READ_WITHIN: Duration = Duration::from_secs(2);

/// What is told of a snapshot beside it: the sequence it is of, which is that of its slot or comes soon after, the chain hash
/// there, and the version of the fold that made it.
const SEQUENCE: &str = "sequence";
const HASH: &str = "hash";
const FOLD: &str = "fold";

/// Anything that went wrong with the object store.
#[derive(Debug, thiserror::Error)]
#[error("snapshot store: {0}")]
pub struct SnapshotError(String);

fn failed(error: impl std::fmt::Display) -> SnapshotError {
    SnapshotError(error.to_string())
}

impl Log {
    async fn snapshots(&self) -> Result<ObjectStore, SnapshotError> {
        let context = async_nats::jetstream::new(self.client.clone());
        let bucket = self.names.stream("SNAPSHOTS");
        if let Ok(store) = context.get_object_store(&bucket).await {
            return Ok(store);
        }
        let replicas = usize::try_from(self.replicas).unwrap_or(1);
        let config = object_store::Config { bucket, num_replicas: replicas, ..object_store::Config::default() };
        context.create_object_store(config).await.map_err(failed)
    }

    /// Keeps `state` as the snapshot of its slot, in place of what was there, and drops what is old and too many.
    ///
    /// # Errors
    /// When the store is away or refuses.
    pub async fn save_snapshot(&self, state: &State) -> Result<(), SnapshotError> {
        let saving = tokio::time::timeout(STORE_WITHIN, self.save(state)).await;
        saving.map_err(|_| SnapshotError(format!("no answer within {} s", STORE_WITHIN.as_secs())))?
    }

    async fn save(&self, state: &State) -> Result<(), SnapshotError> {
        let store = self.snapshots().await?;
        let slot = snapshot_slot(state.head.sequence);
        let name = name_of(slot);
        let metadata = HashMap::from([
            (SEQUENCE.to_owned(), state.head.sequence.to_string()),
            (HASH.to_owned(), envelope::hex(&state.head.hash)),
            (FOLD.to_owned(), FOLD_VERSION.to_string()),
        ]);
        if store.info(&name).await.is_ok_and(|there| !there.deleted && there.metadata == metadata) {
            // Another orchestrator has left it there. To replace it would only disturb its readers.
            return Ok(());
        }
        let about = ObjectMetadata { name, metadata, ..ObjectMetadata::default() };
        store.put(about, &mut state.to_snapshot().as_slice()).await.map_err(failed)?;
        if let Some(old) = superfluous(slot) {
            match store.delete(name_of(old)).await {
                Err(error) if error.kind() != DeleteErrorKind::NotFound => {
                    tracing::warn!(old, %error, "an old snapshot stays");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The newest snapshot at or before `last` that matches the log; none when there is none, or the store is away.
    pub async fn load_snapshot(&self, last: u64) -> Option<State> {
        tokio::time::timeout(STORE_WITHIN, self.find(last)).await.ok()?.ok().flatten()
    }

    async fn find(&self, last: u64) -> Result<Option<State>, SnapshotError> {
        let store = self.snapshots().await?;
        let mut slot = snapshot_slot(last);
        // By name, one after the other: a list of all would make the server load every block of the store.
        loop {
            if let Some(found) = self.look_into(&store, slot, last).await? {
                return Ok(Some(found));
            }
            let Some(before) = slot.checked_sub(SNAPSHOT_EVERY) else { return Ok(None) };
            slot = before;
        }
    }

    async fn look_into(&self, store: &ObjectStore, slot: u64, last: u64) -> Result<Option<State>, SnapshotError> {
        let name = name_of(slot);
        let info = match store.info(&name).await {
            Err(error) if error.kind() == InfoErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        let told = |of: &str| info.metadata.get(of).map(String::as_str).unwrap_or_default();
        if info.deleted || told(FOLD) != FOLD_VERSION.to_string() {
            return Ok(None);
        }
        let at = told(SEQUENCE).parse::<u64>().ok().filter(|at| *at <= last);
        let (Some(at), Some(hash)) = (at, envelope::unhex(told(HASH))) else { return Ok(None) };
        if !self.has(at, &hash).await.map_err(failed)? {
            tracing::warn!(name, "snapshot does not match the log, dropped");
            // If it stays, it will be found out again.
            let _ = store.delete(name).await;
            return Ok(None);
        }
        let state = tokio::time::timeout(READ_WITHIN, read_snapshot(store, &name)).await.ok().flatten();
        Ok(state.filter(|s| s.head.sequence == at && s.head.hash == hash))
    }

    /// Whether the event at `sequence` carries this chain hash. A log that does not answer says nothing.
    async fn has(&self, sequence: u64, hash: &Hash) -> Result<bool, ReadError> {
        match self.get(CONTROL, sequence).await {
            Ok(stored) => Ok(stored.entry().hash.as_ref() == Some(hash)),
            Err(error) if error.has_code(NO_MESSAGE) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The state at the end of the log, or at `last` if that comes first.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn fold(&self, last: Option<u64>) -> Result<State, ReadError> {
        let (_, end) = self.bounds(CONTROL).await?;
        let last = last.map_or(end, |l| l.min(end));
        let mut state = self.load_snapshot(last).await.unwrap_or_default();
        self.fold_on(&mut state, last, |_, _| ()).await?;
        Ok(state)
    }

    /// The same, and leaves snapshots behind on the way where there are none: whoever asks about the past later has it near.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn fold_leaving_snapshots(&self, last: Option<u64>) -> Result<State, ReadError> {
        let (_, end) = self.bounds(CONTROL).await?;
        let last = last.map_or(end, |l| l.min(end));
        let mut state = self.load_snapshot(last).await.unwrap_or_default();
        let mut reader = self.read(CONTROL, Vec::new(), state.head.sequence + 1, last).await?;
        let mut is_kept = true;
        let mut next = snapshot_slot(state.head.sequence) + SNAPSHOT_EVERY;
        while next <= last {
            self.fold_up_to(&mut reader, &mut state, next, |_, _| ()).await?;
            if is_kept && let Err(error) = self.save_snapshot(&state).await {
                // A store that is away is not waited for again and again.
                is_kept = false;
                tracing::warn!(sequence = state.head.sequence, %error, "snapshots not kept");
            }
            next += SNAPSHOT_EVERY;
        }
        self.fold_up_to(&mut reader, &mut state, last, |_, _| ()).await?;
        Ok(state)
    }

    /// Folds what comes after `state` up to `last`; `on_event` sees each valid event with the state after it.
    ///
    /// # Errors
    /// When the log cannot be read; `state` is then at some sequence in between.
    pub async fn fold_on(
        &self,
        state: &mut State,
        last: u64,
        on_event: impl FnMut(&State, &arbees_fleet::Touched),
    ) -> Result<(), ReadError> {
        let mut reader = self.read(CONTROL, Vec::new(), state.head.sequence + 1, last).await?;
        self.fold_up_to(&mut reader, state, last, on_event).await
    }

    async fn fold_up_to(
        &self,
        reader: &mut Reader,
        state: &mut State,
        last: u64,
        mut on_event: impl FnMut(&State, &arbees_fleet::Touched),
    ) -> Result<(), ReadError> {
        while state.head.sequence < last {
            let Some(stored) = reader.next().await? else { break };
            let entry: Entry = stored.entry();
            match state.fold(&entry) {
                Ok((touched, _)) => on_event(state, &touched),
                Err(skip) => tracing::warn!(sequence = entry.sequence, %skip, "message of CONTROL skipped"),
            }
        }
        if state.head.sequence < last {
            // A replica that lags has answered. CONTROL has no holes: nothing of it is ever deleted.
            let (stream, at) = (self.names.stream(CONTROL), state.head.sequence);
            return Err(ReadError::Interrupted { stream, at, why: format!("it should reach to {last}") });
        }
        Ok(())
    }
}

/// Where the snapshot of a state at `sequence` has its place: one for each [`SNAPSHOT_EVERY`] events, whoever makes it.
#[must_use]
pub const fn snapshot_slot(sequence: u64) -> u64 {
    sequence - sequence % SNAPSHOT_EVERY
}

fn name_of(slot: u64) -> String {
    format!("control-{slot:020}")
}

/// The slot that is emptied when that of `slot` is filled.
const fn superfluous(slot: u64) -> Option<u64> {
    match slot.checked_sub(KEPT_ALL * SNAPSHOT_EVERY) {
        Some(old) if !(old / SNAPSHOT_EVERY).is_multiple_of(KEPT_OF_OLDER) => Some(old),
        _ => None,
    }
}

async fn read_snapshot(store: &ObjectStore, name: &str) -> Option<State> {
    let mut bytes = Vec::new();
    store.get(name).await.ok()?.read_to_end(&mut bytes).await.ok()?;
    // 10,000 games take 20 ms: too long for a thread on which others wait.
    tokio::task::spawn_blocking(move || State::from_snapshot(&bytes)).await.ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_old_snapshots_one_in_ten_is_kept_and_all_of_the_newest() {
        let mut kept = std::collections::BTreeSet::new();
        for slot in (0..2_000).map(|n| n * SNAPSHOT_EVERY) {
            kept.insert(slot);
            if let Some(old) = superfluous(slot) {
                assert!(kept.remove(&old));
            }
        }
        let of_newest = kept.range(1_000 * SNAPSHOT_EVERY..).count();
        assert_eq!((of_newest, kept.len() - of_newest), (1_000, 100));
    }
}
