//! Clocks, read in one place.

use chrono::{DateTime, SecondsFormat, Utc};

/// Microseconds since the Unix epoch, UTC.
#[must_use]
pub fn now_us() -> i64 {
    Utc::now().timestamp_micros()
}

/// Microseconds of a clock that never jumps and goes on in suspend: Linux' `CLOCK_BOOTTIME` (clock_gettime(2)); elsewhere the
/// monotonic clock. The standard library's `Instant` stops in suspend, and a lease must not.
#[must_use]
pub fn steady_us() -> i64 {
    #[cfg(target_os = "linux")]
    let clock = nix::time::ClockId::CLOCK_BOOTTIME;
    #[cfg(not(target_os = "linux"))]
    let clock = nix::time::ClockId::CLOCK_MONOTONIC;
    // It fails for clocks the kernel does not know alone; a time that stands still ends every lease.
    clock.now().map_or(0, |t| t.tv_sec() * 1_000_000 + t.tv_nsec() / 1_000)
}

/// `duration` in microseconds.
#[must_use]
pub fn micros(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Both clocks, as decisions take them.
#[must_use]
pub fn now() -> arbees_fleet::decide::Now {
    arbees_fleet::decide::Now { wall_us: now_us(), steady_us: steady_us() }
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
