//! Snapshots of the folded state in an object store, so that a start need not fold the whole log.

use arbees_fleet::{Entry, State};
use async_nats::jetstream::object_store::{self, ObjectStore};
use tokio::io::AsyncReadExt as _;

use super::{CONTROL, Log, ReadError};

/// A snapshot is made every so many events: folding that many takes well under a second.
pub const SNAPSHOT_EVERY: u64 = 10_000;
/// How many are kept: the newest may turn out not to match the log.
const KEPT: usize = 3;

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

    /// Keeps `state` as the snapshot at its sequence, and drops the oldest.
    ///
    /// # Errors
    /// When the store is away or refuses.
    pub async fn save_snapshot(&self, state: &State) -> Result<(), SnapshotError> {
        let store = self.snapshots().await?;
        let name = format!("control-{:020}", state.head.sequence);
        store.put(name.as_str(), &mut state.to_json().as_slice()).await.map_err(failed)?;
        let names = self.snapshot_names(&store).await?;
        for old in names.iter().rev().skip(KEPT) {
            store.delete(old).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn snapshot_names(&self, store: &ObjectStore) -> Result<Vec<String>, SnapshotError> {
        use futures::TryStreamExt as _;
        let objects: Vec<_> = store.list().await.map_err(failed)?.try_collect().await.map_err(failed)?;
        let mut names: Vec<_> = objects.into_iter().filter(|o| !o.deleted).map(|o| o.name).collect();
        names.sort();
        Ok(names)
    }

    /// The newest snapshot at or before `last` that matches the log; none when there is none, or the store is away.
    pub async fn load_snapshot(&self, last: u64) -> Option<State> {
        let store = self.snapshots().await.ok()?;
        for name in self.snapshot_names(&store).await.ok()?.iter().rev() {
            let Some(state) = read_snapshot(&store, name).await.filter(|s| s.head.sequence <= last) else {
                continue;
            };
            if self.matches(&state).await {
                return Some(state);
            }
            tracing::warn!(name, "snapshot does not match the log, ignored");
        }
        None
    }

    /// Whether the event at the snapshot's sequence carries the snapshot's chain hash.
    async fn matches(&self, state: &State) -> bool {
        let stored = self.get(CONTROL, state.head.sequence).await;
        stored.is_ok_and(|s| s.entry().hash == Some(state.head.hash))
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

    /// Folds what comes after `state` up to `last`; `on_event` sees each valid event with the state after it.
    ///
    /// # Errors
    /// When the log cannot be read; `state` is then at some sequence in between.
    pub async fn fold_on(
        &self,
        state: &mut State,
        last: u64,
        mut on_event: impl FnMut(&State, &arbees_fleet::Touched),
    ) -> Result<(), ReadError> {
        let mut reader = self.read(CONTROL, Vec::new(), state.head.sequence + 1, last).await?;
        while let Some(stored) = reader.next().await? {
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

async fn read_snapshot(store: &ObjectStore, name: &str) -> Option<State> {
    let mut bytes = Vec::new();
    store.get(name).await.ok()?.read_to_end(&mut bytes).await.ok()?;
    State::from_json(&bytes)
}
