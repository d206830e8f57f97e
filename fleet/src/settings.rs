//! The named bounds of decisions. Times in microseconds.

use crate::SECOND;

/// What deployments may set, with the defaults of the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A game is assigned at the latest this long before its start (`PREGAME_ASSIGN_MINUTES`).
    pub pregame_assign: i64,
    /// How far ahead the scheduled sync makes games known (`PREGAME_DISCOVERY_WINDOW_HOURS`).
    pub discovery_window: i64,
    /// A Redis-only service not heard for this long takes no new games (`SHARD_TIMEOUT_SECS`).
    pub redis_timeout: i64,
    /// A log shard not heard for this long takes no new games (`LEASE_TTL_MS` + `LEASE_MARGIN_MS`).
    pub log_timeout: i64,
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
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pregame_assign: 15 * 60 * SECOND,
            discovery_window: 6 * 3600 * SECOND,
            redis_timeout: 60 * SECOND,
            log_timeout: 2_250_000,
            redis_interval: 10 * SECOND,
            final_confirm: 30 * SECOND,
            ask_absent: 300 * SECOND,
            ask_markets: 60 * SECOND,
            tell_markets: 300 * SECOND,
            settle: 2 * SECOND,
        }
    }
}

/// `text`, cut to [`MAX_TEXT`].
#[must_use]
pub fn short(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// Events in one append at most; the server takes 1,000 in an atomic batch.
pub const MAX_BATCH: usize = 1_000;
/// A command to a Redis-only shard is repeated at most this seldom.
pub const MAX_RESEND: i64 = 60 * SECOND;
/// Finished games leave the state this long after their end, in event time: late corrections still find them.
pub const KEEP_ENDED: i64 = 72 * 3600 * SECOND;
/// Candidates recorded with a placement.
pub const MAX_CANDIDATES: usize = 10;
/// Characters of a text that somebody sent and an event takes over: enough for any version, process or market id.
pub const MAX_TEXT: usize = 256;
/// Bytes of one event at most. The server's own bound is 1 MiB; an event above it could never be stored.
pub const MAX_EVENT: usize = 256 << 10;
/// Games one beat may report; a payload with more is cut there, so that no sender can fill the memory.
pub const MAX_REPORTED: usize = 10_000;
