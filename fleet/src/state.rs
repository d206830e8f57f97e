//! The fleet's state: what the log says is so.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use arbees_proto::envelope::{GENESIS, Hash};
use arbees_proto::{Epoch, EventId, GameId, InstanceId, ServiceKind, ShardId, v1};
use serde::{Deserialize, Serialize};

/// Rises whenever the same events would fold to another state; a snapshot of another version is not used.
pub const FOLD_VERSION: u32 = 3;

/// Everything folded from CONTROL. Its JSON is the snapshot, and the same state always has the same JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The fold that made it.
    pub fold_version: u32,
    /// How far.
    pub head: Head,
    /// All games that are not yet forgotten.
    pub games: BTreeMap<GameId, Game>,
    /// All services that are not yet forgotten.
    pub services: BTreeMap<ServiceKey, Service>,
    /// Since when moves off the silent trickle.
    pub brake_since_us: Option<i64>,
    /// An operator stopped automatic moves, but for those off lost shards.
    pub paused: bool,
    /// The leader decides and sends nothing.
    pub shadow: bool,
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
    /// The one shard that may take it, by an operator's word.
    pub pin: Option<ShardId>,
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

/// A service's health, as decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// From its first beat until it reports healthy.
    Starting,
    Healthy,
    /// Reports degraded, or fails a check that its kind needs.
    Degraded,
    Unhealthy,
    /// Reports that it stops: its games are handed over.
    Stopping,
    /// Fell silent for longer than its lease or time-out.
    Dead,
    /// Beats well again, and has not done so for long enough.
    Recovered,
    /// Said that it stops, and is gone.
    Retired,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Starting,
        Self::Healthy,
        Self::Degraded,
        Self::Unhealthy,
        Self::Stopping,
        Self::Dead,
        Self::Recovered,
        Self::Retired,
    ];

    /// In lower case, as events and tables spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
            Self::Stopping => "stopping",
            Self::Dead => "dead",
            Self::Recovered => "recovered",
            Self::Retired => "retired",
        }
    }

    /// The status of this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == name)
    }

    /// It does not beat, and is known not to.
    #[must_use]
    pub const fn is_gone(self) -> bool {
        matches!(self, Self::Dead | Self::Retired)
    }
}

/// Whether a shard is given games, after what came of those it was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Circuit {
    #[default]
    Closed,
    /// It is given none.
    Open,
    /// It is tried with one.
    HalfOpen,
}

impl Circuit {
    /// In snake case, as tables spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// A shard's circuit breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breaker {
    pub circuit: Circuit,
    /// Assignments in a row that it did not take up.
    pub failures: u32,
    /// Assignments that it took up since it is half open.
    pub successes: u32,
    /// Since when it has not been closed.
    pub opened_at_us: i64,
}

/// How far an operator's drain of a shard is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Drain {
    #[default]
    No,
    Draining,
    Drained,
}

impl Drain {
    /// In lower case, as tables spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Draining => "draining",
            Self::Drained => "drained",
        }
    }
}

/// A registered service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub info: v1::Service,
    pub registered_at_us: i64,
    /// How often its process has changed.
    pub restarts: u32,
    pub status: Status,
    pub status_since_us: i64,
    /// Since when it is not healthy.
    pub unwell_since_us: Option<i64>,
    /// What it needs to be operational and did not have when its status was decided.
    pub failed_checks: Vec<String>,
    pub breaker: Breaker,
    pub drain: Drain,
    /// The event that made it stand as it does: its status, breaker or drain. Moves off it name it as their cause.
    pub standing: EventId,
    /// Sequence of the last event about it.
    pub last_sequence: u64,
}

impl Default for State {
    fn default() -> Self {
        let head = Head { sequence: 0, hash: GENESIS, generation: 1, term: 0, occurred_at_us: 0, skipped: 0 };
        Self {
            fold_version: FOLD_VERSION,
            head,
            games: BTreeMap::new(),
            services: BTreeMap::new(),
            brake_since_us: None,
            paused: false,
            shadow: false,
        }
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
