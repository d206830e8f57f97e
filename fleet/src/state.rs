//! The fleet's state: what the log says is so.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use arbees_proto::envelope::{GENESIS, Hash};
use arbees_proto::{Epoch, EventId, GameId, InstanceId, ServiceKind, ShardId, v1};
use serde::{Deserialize, Serialize};

/// Rises whenever the same events would fold to another state, or a state has other fields; a snapshot of another version is
/// not used.
pub const FOLD_VERSION: u32 = 4;

/// Everything folded from CONTROL. The same state always has the same JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The fold that made it; stands first, for a snapshot is known by it.
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
        // All keys are strings and no value can fail to serialise; an empty text would equal that of no other state.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The state as a snapshot, in the postcard format: a third of the JSON, and read in half the time.
    #[must_use]
    pub fn to_snapshot(&self) -> Vec<u8> {
        // No value can fail to serialise; nothing would not be read back as a state.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// The state in a snapshot; none when it is of another fold or not one at all.
    #[must_use]
    pub fn from_snapshot(bytes: &[u8]) -> Option<Self> {
        // The format names no fields: what another version wrote might pass for something else.
        let (version, _) = postcard::take_from_bytes::<u32>(bytes).ok()?;
        if version != FOLD_VERSION {
            return None;
        }
        let (state, rest) = postcard::take_from_bytes(bytes).ok()?;
        rest.is_empty().then_some(state)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A state in which every field says something that no other field says, with every status and phase there is. Written out:
    /// a new field must be thought of here.
    fn full() -> State {
        let event = |n: u8| EventId::derive(1_790_000_000_000_000, &[&[n]]);
        let shard = ShardId::strict("shard_01").unwrap();
        let team = |name: &str| v1::Team { name: name.to_owned(), abbreviation: name[..2].to_owned() };
        let market = v1::Market {
            market_type: "moneyline".to_owned(),
            kalshi: "KX-1".to_owned(),
            polymarket: "0xab".to_owned(),
        };
        let markets = Some(v1::Markets { by_type: vec![market] });
        let owner = Owner {
            shard: shard.clone(),
            epoch: Epoch::new(2, 7),
            since_us: 11,
            confirmed_at_us: Some(12),
            markets: markets.clone(),
        };
        let game = Game {
            info: v1::Game {
                id: "nfl-1".to_owned(),
                league: "nfl".to_owned(),
                home: Some(team("Herons")),
                away: Some(team("Kites")),
                starts_at_us: 13,
                markets,
                postseason: true,
            },
            phase: Phase::Suspended,
            phase_since_us: 14,
            status: "STATUS_SUSPENDED".to_owned(),
            owner: Some(owner),
            queued_since_us: Some(15),
            pin: Some(shard.clone()),
            origin: event(1),
            last_event: event(2),
            last_sequence: 16,
        };
        let service = Service {
            info: v1::Service {
                kind: "shard".to_owned(),
                instance: "shard_01".to_owned(),
                process: "p".to_owned(),
                started_at_us: 17,
                version: "0.1.0".to_owned(),
                shard_type: "sports".to_owned(),
                max_games: 20,
                on_log: true,
            },
            registered_at_us: 18,
            restarts: 19,
            status: Status::Degraded,
            status_since_us: 20,
            unwell_since_us: Some(21),
            failed_checks: vec!["redis_ok".to_owned()],
            breaker: Breaker { circuit: Circuit::HalfOpen, failures: 22, successes: 23, opened_at_us: 24 },
            drain: Drain::Draining,
            standing: event(3),
            last_sequence: 25,
        };
        let phases =
            [Phase::Scheduled, Phase::Live, Phase::Suspended, Phase::Postponed, Phase::Canceled, Phase::Finished];
        let games = phases.into_iter().enumerate();
        let games = games.map(|(n, phase)| (format!("nfl-{n}").parse().unwrap(), Game { phase, ..game.clone() }));
        let kinds = ServiceKind::ALL.into_iter().zip(Status::ALL);
        let circuits = [Circuit::Closed, Circuit::Open, Circuit::HalfOpen].into_iter().cycle();
        let drains = [Drain::No, Drain::Draining, Drain::Drained].into_iter().cycle();
        let services = kinds.zip(circuits.zip(drains)).map(|((kind, status), (circuit, drain))| {
            let breaker = Breaker { circuit, ..service.breaker };
            (ServiceKey { kind, instance: shard.clone() }, Service { status, breaker, drain, ..service.clone() })
        });
        State {
            fold_version: FOLD_VERSION,
            head: Head { sequence: 1, hash: [2; 32], generation: 3, term: 4, occurred_at_us: -5, skipped: 6 },
            games: games.collect(),
            services: services.collect(),
            brake_since_us: Some(26),
            paused: true,
            shadow: false,
        }
    }

    #[test]
    fn a_snapshot_is_read_back_whole_and_nothing_else_passes_for_one() {
        let state = full();
        let bytes = state.to_snapshot();
        assert_eq!(State::from_snapshot(&bytes), Some(state.clone()));
        for cut in 0..bytes.len() {
            assert_eq!(State::from_snapshot(&bytes[..cut]), None, "cut after {cut} bytes");
        }
        assert_eq!(State::from_snapshot(&[bytes.as_slice(), b"x"].concat()), None, "more than a state");
        assert_eq!(State::from_snapshot(&state.to_json()), None, "another format");
        let older = State { fold_version: FOLD_VERSION - 1, ..state };
        assert_eq!(State::from_snapshot(&older.to_snapshot()), None, "another fold's");
    }

    /// Snapshots are read without the names of fields: whoever changes a state's fields, or those of what it holds, must raise
    /// [`FOLD_VERSION`] and write down what its bytes are now.
    #[test]
    fn the_layout_of_a_snapshot_is_that_of_its_version() {
        let hash = blake3::hash(&full().to_snapshot()).to_hex();
        assert_eq!((FOLD_VERSION, &hash[..16]), (4, "b8f1504a6e5a26e1"));
    }
}
