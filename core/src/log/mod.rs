//! The log: NATS JetStream behind one adapter. Nothing outside this module knows the client library.
//!
//! Owns connecting, streams, conditional appends, reads, tails and snapshots. Never decides.

mod api;
mod append;
mod ask;
mod claim;
mod connect;
mod durability;
mod key;
mod push;
mod read;
mod recover;
mod snapshot;
mod stored;
mod streams;
mod tail;

pub use api::ApiError;
pub use append::AppendError;
pub use ask::{AskError, Asked};
pub use claim::{Beaten, Verdict};
pub use connect::{ConnectError, MIN_SERVER, connect};
pub use durability::syncs_always;
pub use key::{KEY_TTL_US, Key};
pub use read::{ReadError, Reader};
pub use snapshot::{SNAPSHOT_EVERY, SnapshotError, snapshot_slot};
pub use stored::Stored;
pub use streams::{ALERTS, CONTROL, EnsureError, GAME_STATES, HEARTBEATS};
pub use tail::Tail;

use std::sync::{Arc, Mutex};

use arbees_proto::subject::Names;

use crate::traces::Recent;

/// A connection to the log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Log {
    client: async_nats::Client,
    names: Names,
    replicas: u32,
    /// Counts lost connections: whoever waits for an answer then need not wait any longer.
    breaks: tokio::sync::watch::Receiver<u64>,
    /// Where the newest decisions of this process stand in their traces.
    traced: Arc<Mutex<Recent>>,
}

impl Log {
    /// The names of this deployment's streams and subjects.
    #[must_use]
    pub const fn names(&self) -> &Names {
        &self.names
    }

    /// Whether the connection stands just now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }
}
