//! The fleet's state: what the log says is so.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use arbees_proto::envelope::{GENESIS, Hash};
use arbees_proto::{Epoch, EventId, GameId, InstanceId, ServiceKind, ShardId, v1};
use serde::{Deserialize, Serialize};

/// Rises whenever the same events would fold to another state; a snapshot of another version is not used.
pub const FOLD_VERSION: u32 = 1;

/// Everything folded from CONTROL. Its JSON is the snapshot, and the same state always has the same JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The fold that made it.
    pub fold_version: u32,
    /// How far.
    pub head: Head,
    /// All games that are not yet forgotten.
    pub games: BTreeMap<GameId, Game>,
    /// All services ever registered.
    pub services: BTreeMap<ServiceKey, Service>,
}

/// The end of the log, as far as it was folded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Sequence of the last message seen, valid or not.
    pub sequence: u64,
    /// Chain hash of the last valid event.
    pub hash: Hash,
    /// Generation of the last valid event.
    pub generation: u64,
    /// Term of the last valid event.
    pub term: u64,
    /// When it occurred.
    pub occurred_at_us: i64,
    /// Messages that were no valid events.
    pub skipped: u64,
}

/// Where a game stands, as decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Scheduled,
    Live,
    Suspended,
    Postponed,
    Canceled,
    Finished,
}

impl Phase {
    /// No more to come, unless a new live report opens it again.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Postponed | Self::Canceled | Self::Finished)
    }

    /// In lower case, as tables spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Live => "live",
            Self::Suspended => "suspended",
            Self::Postponed => "postponed",
            Self::Canceled => "canceled",
            Self::Finished => "finished",
        }
    }
}

/// A game and who watches it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Game {
    /// What a shard must know of it.
    pub info: v1::Game,
    /// Where it stands.
    pub phase: Phase,
    /// Since when it stands there.
    pub phase_since_us: i64,
    /// ESPN's word, where the last event told it.
    pub status: String,
    /// Who watches it.
    pub owner: Option<Owner>,
    /// Since when it waits for a shard.
    pub queued_since_us: Option<i64>,
    /// The event that made it known: the correlation id of all that follows.
    pub origin: EventId,
    /// The last event about it.
    pub last_event: EventId,
    /// Sequence of that event.
    pub last_sequence: u64,
}

/// The one shard that watches a game.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Owner {
    pub shard: ShardId,
    pub epoch: Epoch,
    pub since_us: i64,
    /// When the shard first reported the game under this epoch.
    pub confirmed_at_us: Option<i64>,
    /// The markets that the log last told the shard.
    pub markets: Option<v1::Markets>,
}

/// A service's kind and name, written `kind/instance`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceKey {
    pub kind: ServiceKind,
    pub instance: InstanceId,
}

impl ServiceKey {
    /// The key of a shard.
    #[must_use]
    pub const fn shard(instance: ShardId) -> Self {
        Self { kind: ServiceKind::Shard, instance }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.instance)
    }
}

impl FromStr for ServiceKey {
    type Err = arbees_proto::ids::BadId;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (kind, instance) = s.split_once('/').unwrap_or(("", s));
        Ok(Self { kind: ServiceKind::of_name(kind), instance: InstanceId::lenient(instance)? })
    }
}

impl TryFrom<String> for ServiceKey {
    type Error = arbees_proto::ids::BadId;
    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<ServiceKey> for String {
    fn from(key: ServiceKey) -> Self {
        key.to_string()
    }
}

/// A registered service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub info: v1::Service,
    pub registered_at_us: i64,
    /// How often its process has changed.
    pub restarts: u32,
    /// Sequence of the last event about it.
    pub last_sequence: u64,
}

impl Default for State {
    fn default() -> Self {
        let head = Head { sequence: 0, hash: GENESIS, generation: 1, term: 0, occurred_at_us: 0, skipped: 0 };
        Self { fold_version: FOLD_VERSION, head, games: BTreeMap::new(), services: BTreeMap::new() }
    }
}

impl State {
    /// The state as JSON: equal states give equal bytes.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // All keys are strings and no value can fail to serialise; an empty text would not be read back as a state.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The state in a snapshot; none when it is of another fold or not one at all.
    #[must_use]
    pub fn from_json(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().filter(|s: &Self| s.fold_version == FOLD_VERSION)
    }

    /// blake3 of the JSON.
    #[must_use]
    pub fn hash(&self) -> Hash {
        *blake3::hash(&self.to_json()).as_bytes()
    }

    /// How many games each shard owns.
    #[must_use]
    pub fn loads(&self) -> BTreeMap<&ShardId, u32> {
        let mut loads = BTreeMap::new();
        for owner in self.games.values().filter_map(|g| g.owner.as_ref()) {
            *loads.entry(&owner.shard).or_default() += 1;
        }
        loads
    }
}
