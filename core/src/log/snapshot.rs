//! Snapshots of the folded state in an object store, so that a start need not fold the whole log.

use std::time::Duration;

use arbees_fleet::state::FOLD_VERSION;
use arbees_fleet::{Entry, State};
use async_nats::jetstream::object_store::{self, ObjectStore};
use tokio::io::AsyncReadExt as _;

use super::api::NO_MESSAGE;
use super::{CONTROL, Log, ReadError};

/// A snapshot is made every so many events: folding that many takes less time than reading a snapshot of 10,000 games, so that
/// more of them would gain little.
pub const SNAPSHOT_EVERY: u64 = 2_500;
/// So many of the newest are kept: any moment of the last two and a half million events is folded from close by.
const KEPT_ALL: usize = 1_000;
/// Of older ones, one in so many is kept.
const KEPT_OF_OLDER: u64 = 10;
/// A store that does not answer within this is away: all is folded without it.
const STORE_WITHIN: Duration = Duration::from_secs(10);

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
        let config =
            object_store::Config { bucket, num_replicas: replicas, compression: true, ..object_store::Config::default() };
        context.create_object_store(config).await.map_err(failed)
    }

    /// Keeps `state` as the snapshot at its sequence, and drops what is old and too many.
    ///
    /// # Errors
    /// When the store is away or refuses.
    pub async fn save_snapshot(&self, state: &State) -> Result<(), SnapshotError> {
        let saving = tokio::time::timeout(STORE_WITHIN, self.save(state)).await;
        saving.map_err(|_| SnapshotError(format!("no answer within {} s", STORE_WITHIN.as_secs())))?
    }

    async fn save(&self, state: &State) -> Result<(), SnapshotError> {
        let store = self.snapshots().await?;
        let name = name_of(state.head.sequence);
        // Another one may have left it there: what stands at a sequence is the same whoever folded it.
        if store.info(&name).await.is_err() {
            store.put(name.as_str(), &mut state.to_snapshot().as_slice()).await.map_err(failed)?;
        }
        let names = self.snapshot_names(&store).await?;
        for old in superfluous(&names) {
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
        // One that is dropped while it is read would never end.
        tokio::time::timeout(STORE_WITHIN, self.load(last)).await.ok()?
    }

    async fn load(&self, last: u64) -> Option<State> {
        let store = self.snapshots().await.ok()?;
        let names = self.snapshot_names(&store).await.ok()?;
        for name in names.iter().rev().filter(|name| sequence_of(name).is_some_and(|at| at <= last)) {
            let Some(state) = read_snapshot(&store, name).await.filter(|s| s.head.sequence <= last) else {
                continue;
            };
            if self.matches(&state).await.ok()? {
                return Some(state);
            }
            tracing::warn!(name, "snapshot does not match the log, dropped");
            // The one that belongs there can take its place.
            let _ = store.delete(name).await;
        }
        None
    }

    /// Whether the event at the snapshot's sequence carries the snapshot's chain hash. A log that does not answer says nothing.
    async fn matches(&self, state: &State) -> Result<bool, ReadError> {
        match self.get(CONTROL, state.head.sequence).await {
            Ok(stored) => Ok(stored.entry().hash == Some(state.head.hash)),
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
        let mut is_kept = true;
        while last - state.head.sequence > SNAPSHOT_EVERY {
            let next = state.head.sequence + SNAPSHOT_EVERY;
            self.fold_on(&mut state, next, |_, _| ()).await?;
            if is_kept && let Err(error) = self.save_snapshot(&state).await {
                // A store that is away is not waited for again and again.
                is_kept = false;
                tracing::warn!(sequence = state.head.sequence, %error, "snapshots not kept");
            }
        }
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

/// The name of the snapshot at `sequence`: first the fold's version, as those of another one are of no use.
fn name_of(sequence: u64) -> String {
    format!("v{FOLD_VERSION}-{sequence:020}")
}

/// The version and the sequence that a snapshot is named after.
fn version_and_sequence(name: &str) -> Option<(u32, u64)> {
    let (version, sequence) = name.strip_prefix('v')?.split_once('-')?;
    Some((version.parse().ok()?, sequence.parse().ok()?))
}

/// The sequence of a snapshot of this fold.
fn sequence_of(name: &str) -> Option<u64> {
    version_and_sequence(name).filter(|(version, _)| *version == FOLD_VERSION).map(|(_, sequence)| sequence)
}

/// Of these names, oldest first, those that are dropped: what is too many, and what an older program left. (What a newer one
/// keeps is not ours to judge.)
fn superfluous(names: &[String]) -> impl Iterator<Item = &String> {
    let ours: Vec<(&String, u64)> = names.iter().filter_map(|name| Some((name, sequence_of(name)?))).collect();
    let older = ours.len().saturating_sub(KEPT_ALL);
    let is_kept = |at: u64| (at / SNAPSHOT_EVERY).is_multiple_of(KEPT_OF_OLDER);
    let too_many = ours.into_iter().take(older).filter(move |(_, at)| !is_kept(*at)).map(|(name, _)| name);
    let is_outdated = |name: &&String| version_and_sequence(name).is_none_or(|(version, _)| version < FOLD_VERSION);
    names.iter().filter(is_outdated).chain(too_many)
}

async fn read_snapshot(store: &ObjectStore, name: &str) -> Option<State> {
    let mut bytes = Vec::new();
    store.get(name).await.ok()?.read_to_end(&mut bytes).await.ok()?;
    // 10,000 games take 40 ms: too long for a thread on which others wait.
    tokio::task::spawn_blocking(move || State::from_snapshot(&bytes)).await.ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_old_snapshots_one_in_ten_is_kept_and_all_of_the_newest() {
        let names: Vec<String> = (1..=1_100u64).map(|n| name_of(n * SNAPSHOT_EVERY + 7)).collect();
        let dropped: Vec<&String> = superfluous(&names).collect();
        assert_eq!(dropped.len(), 90);
        assert!(dropped.iter().all(|name| sequence_of(name).unwrap() < 101 * SNAPSHOT_EVERY));
        assert!(!dropped.contains(&&names[49]), "the fiftieth is one in ten");
        assert_eq!(superfluous(&names[..1_000]).count(), 0);
    }

    #[test]
    fn what_older_programs_left_is_dropped_and_what_newer_ones_keep_is_let_be() {
        let newer = format!("v{}-{:020}", FOLD_VERSION + 1, 1);
        let older = format!("v{}-{:020}", FOLD_VERSION - 1, 1);
        let names = ["control-00000000000000010000".to_owned(), older.clone(), newer, name_of(1)];
        assert_eq!(superfluous(&names).collect::<Vec<_>>(), [&names[0], &older]);
    }
}
