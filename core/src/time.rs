//! Clocks, read in one place.

use chrono::{DateTime, SecondsFormat, Utc};

/// Microseconds since the Unix epoch, UTC.
#[must_use]
pub fn now_us() -> i64 {
    Utc::now().timestamp_micros()
}

/// `at_us` as RFC 3339 in UTC with microseconds; the epoch itself for what no calendar holds.
#[must_use]
pub fn rfc3339(at_us: i64) -> String {
    DateTime::<Utc>::from_timestamp_micros(at_us).unwrap_or_default().to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Microseconds since the Unix epoch of an RFC 3339 time.
#[must_use]
pub fn parse_us(text: &str) -> Option<i64> {
    DateTime::parse_from_rfc3339(text).ok().map(|t| t.timestamp_micros())
}
