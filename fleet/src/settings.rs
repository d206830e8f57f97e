//! The named bounds of decisions. Times in microseconds.

use crate::SECOND;

/// What deployments may set, with the defaults of the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A game is assigned at the latest this long before its start (`PREGAME_ASSIGN_MINUTES`).
    pub pregame_assign: i64,
    /// How far ahead the scheduled sync makes games known (`PREGAME_DISCOVERY_WINDOW_HOURS`).
    pub discovery_window: i64,
    /// A Redis-only service not heard for this long is lost (`SHARD_TIMEOUT_SECS`).
    pub redis_timeout: i64,
    /// How long a log shard may act from sending a beat (`LEASE_TTL_MS`).
    pub lease_ttl: i64,
    /// What the leader waits beyond that (`LEASE_MARGIN_MS`).
    pub lease_margin: i64,
    /// How often a log shard beats (`LOG_HEARTBEAT_MS`).
    pub log_interval: i64,
    /// How often a Redis-only shard beats until two of its beats have told (`HEARTBEAT_INTERVAL_SECS`).
    pub redis_interval: i64,
    /// Two final reports must be at least this far apart: ESPN takes an early final back now and then.
    pub final_confirm: i64,
    /// A game that vanished from the slate is asked for by id this often.
    pub ask_absent: i64,
    /// Market discovery is asked again this often while a watched game has no market.
    pub ask_markets: i64,
    /// The monitors, and the owners that know only Redis, are told a watched game's markets again this often.
    pub tell_markets: i64,
    /// After taking over, a leader places nothing for this long: the whole fleet must have had time to beat, or the first
    /// shard heard would get every game.
    pub settle: i64,
    /// A restarted Redis-only shard is told its games this long after (`RESYNC_DEBOUNCE_SECS`).
    pub resync_debounce: i64,
    /// Games a second that it is told then (`RESYNC_RATE_LIMIT_GAMES_PER_SEC`).
    pub resync_rate: i64,
    /// Assignments in a row not taken up that open a shard's breaker (`ASSIGNMENT_CIRCUIT_FAILURE_THRESHOLD`).
    pub circuit_failures: u32,
    /// Assignments taken up that close it (`ASSIGNMENT_CIRCUIT_SUCCESS_THRESHOLD`).
    pub circuit_successes: u32,
    /// An open breaker is tried after this (`ASSIGNMENT_CIRCUIT_HALF_OPEN_TIMEOUT_SECS`).
    pub circuit_half_open: i64,
    /// The brake engages when more than so many in a hundred log shards are silent at once (`BRAKE_SHARE_PCT`).
    pub brake_share: u32,
    /// It lets one game a second go for this long at first (`BRAKE_HOLD_SECS`): a broken switch or a broker's election has
    /// passed by then.
    pub brake_hold: i64,
    /// A degraded shard keeps its games for this long (`DEGRADED_PATIENCE_SECS`).
    pub degraded_patience: i64,
    /// Rebalancing begins when the fullest and the emptiest shard differ by more than so many hundredths of their capacity
    /// (`REBALANCE_SHARE_PCT`).
    pub rebalance_share: u32,
    /// Decide and log, and send nothing (`ORCHESTRATOR_MODE=shadow`).
    pub shadow: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pregame_assign: 15 * 60 * SECOND,
            discovery_window: 6 * 3600 * SECOND,
            redis_timeout: 60 * SECOND,
            lease_ttl: 2 * SECOND,
            lease_margin: SECOND / 4,
            log_interval: SECOND,
            redis_interval: 10 * SECOND,
            final_confirm: 30 * SECOND,
            ask_absent: 300 * SECOND,
            ask_markets: 60 * SECOND,
            tell_markets: 300 * SECOND,
            settle: 2 * SECOND,
            resync_debounce: 5 * SECOND,
            resync_rate: 10,
            circuit_failures: 3,
            circuit_successes: 2,
            circuit_half_open: 30 * SECOND,
            brake_share: 50,
            brake_hold: 15 * SECOND,
            degraded_patience: 10 * SECOND,
            rebalance_share: 20,
            shadow: false,
        }
    }
}

impl Settings {
    /// A log shard silent for this long has no lease any more.
    #[must_use]
    pub const fn log_timeout(&self) -> i64 {
        self.lease_ttl + self.lease_margin
    }

    /// A log shard silent for this long has missed a beat: it is asked whether it is there, and given no games.
    #[must_use]
    pub const fn suspect_after(&self) -> i64 {
        self.log_interval + SUSPECT_MARGIN
    }

    /// The log must have carried the leader's own beats for this long, unbroken, before silence on it means anything.
    #[must_use]
    pub const fn log_trust(&self) -> i64 {
        self.lease_ttl + TRUST_MARGIN
    }

    /// The same for Redis.
    #[must_use]
    pub const fn redis_trust(&self) -> i64 {
        self.redis_timeout + TRUST_MARGIN
    }
}

/// `text`, cut to [`MAX_TEXT`].
#[must_use]
pub fn short(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// How late a beat may be on a healthy network before its sender is suspected: seen on a busy machine, 150 ms.
const SUSPECT_MARGIN: i64 = SECOND / 5;
/// After a takeover or an outage nobody is judged for a time-out and this: all must have had time to find their way back.
const TRUST_MARGIN: i64 = 2 * SECOND;
/// The leader's own beat comes back within this, or the medium does not work: it beats every second.
pub const ECHO_LIMIT: i64 = 3 * SECOND / 2;
/// A leader whose turns lie further apart was stopped, and has a backlog to read before it may judge.
pub const PAUSE_LIMIT: i64 = SECOND;
/// A silent shard is asked again whether it is there this often.
pub const PROBE_EVERY: i64 = SECOND;
/// A shard that answers but does not beat is spared for this long at most.
pub const PROBE_GRACE: i64 = 10 * SECOND;
/// A verdict that was asked for and not heard of is asked for again after this.
pub const JUDGE_AGAIN: i64 = SECOND;
/// A fenced shard that beats and seems not to have been told that it was heard is told again after this.
pub const READMIT_AGAIN: i64 = 2 * SECOND;
/// What most failed at once excuses who still fails it for this long after: a breaker rests for a minute before it finds out that all
/// is well, and not everybody's at the same time.
pub const COMMON_PATIENCE: i64 = 90 * SECOND;
/// A degraded service whose failing checks change is not written down again before this.
pub const SAY_AGAIN: i64 = 10 * SECOND;
/// Good beats in a row that make a recovered service healthy.
pub const GOOD_BEATS: u32 = 3;
/// While the brake holds, a game moves off the silent this often: if they are all alive, few are moved for nothing.
pub const BRAKE_EVERY: i64 = SECOND;
/// The brake is released when it would not have engaged for this long.
pub const BRAKE_RELEASE: i64 = 5 * SECOND;
/// Moves a second in all: a single append takes 1,000 events, and other decisions want to be among them.
pub const MOVES_PER_SECOND: u32 = 500;
/// Moves a second to one shard: it must begin to poll for each of them.
pub const MOVES_PER_TARGET: u32 = 100;
/// A service that falls silent is taken for replaced when another of its kind has come within this before or after.
pub const REPLACED_WITHIN: i64 = 60 * SECOND;
/// A process that beats again after another one under its name, within this, is its twin and no restart.
pub const TWIN_WITHIN: i64 = 60 * SECOND;
/// A shard that did not take up a game is not offered it again for this long.
pub const FAILED_FOR: i64 = 600 * SECOND;
/// Games named in an event about a shard at most, so that it stays far below the largest message.
pub const MAX_NAMED: usize = 1_000;
/// Rebalancing begins when the fullest and the emptiest shard differ by more than this many games, too.
pub const REBALANCE_GAMES: u32 = 2;
/// Games it moves in a minute at most.
pub const REBALANCE_EVERY: i64 = 12 * SECOND;
/// It leaves a game alone for this long after its last move.
pub const REBALANCE_REST: i64 = 600 * SECOND;
/// Events in one append at most; the server takes 1,000 in an atomic batch.
pub const MAX_BATCH: usize = 1_000;
/// A command to a Redis-only shard is repeated at most this seldom.
pub const MAX_RESEND: i64 = 60 * SECOND;
/// Finished games leave the state this long after their end, in event time: late corrections still find them.
pub const KEEP_ENDED: i64 = 72 * 3600 * SECOND;
/// Services that are gone leave the state this long after, in event time.
pub const KEEP_GONE: i64 = 24 * 3600 * SECOND;
/// A game with so many kinds of markets weighs more.
pub const MANY_MARKETS: usize = 3;
/// Candidates recorded with a placement.
pub const MAX_CANDIDATES: usize = 10;
/// Characters of a text that somebody sent and an event takes over: enough for any version, process or market id.
pub const MAX_TEXT: usize = 256;
/// Bytes of one event at most. The server's own bound is 1 MiB; an event above it could never be stored.
pub const MAX_EVENT: usize = 256 << 10;
/// Games one beat may report; a payload with more is cut there, so that no sender can fill the memory.
pub const MAX_REPORTED: usize = 10_000;
