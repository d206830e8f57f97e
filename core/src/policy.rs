//! What decisions go by, as deployments may set it: read by the orchestrator, and by whoever asks what other settings would
//! have done.

use std::collections::BTreeMap;
use std::time::Duration;

use arbees_fleet::{SECOND, Settings};

use crate::config::{ConfigErrors, Env};
use crate::time::micros;

/// Reads the settings of decisions.
pub fn read<F: Fn(&str) -> Option<String>>(env: &mut Env<F>) -> Settings {
    let beat_ms: u64 = env.number("LOG_HEARTBEAT_MS", 1_000, 50..=60_000);
    let ttl_ms: u64 = env.number("LEASE_TTL_MS", 2_000, 100..=600_000);
    let margin_ms: u64 = env.number("LEASE_MARGIN_MS", 250, 0..=60_000);
    env.check(ttl_ms >= 2 * beat_ms, "LEASE_TTL_MS must be at least twice LOG_HEARTBEAT_MS");
    let pregame_minutes: i64 = env.number("PREGAME_ASSIGN_MINUTES", 15, 0..=1_440);
    let window_hours: i64 = env.number("PREGAME_DISCOVERY_WINDOW_HOURS", 6, 0..=48);
    let mode = env.one_of("ORCHESTRATOR_MODE", "live", &["live", "shadow"]);
    Settings {
        pregame_assign: pregame_minutes * 60 * SECOND,
        discovery_window: window_hours * 3_600 * SECOND,
        redis_timeout: micros(env.seconds("SHARD_TIMEOUT_SECS", 60.0, 1.0..=3_600.0)),
        redis_interval: micros(env.seconds("HEARTBEAT_INTERVAL_SECS", 10.0, 0.1..=600.0)),
        lease_ttl: micros(Duration::from_millis(ttl_ms)),
        lease_margin: micros(Duration::from_millis(margin_ms)),
        log_interval: micros(Duration::from_millis(beat_ms)),
        resync_debounce: micros(env.seconds("RESYNC_DEBOUNCE_SECS", 5.0, 0.0..=600.0)),
        resync_rate: env.number("RESYNC_RATE_LIMIT_GAMES_PER_SEC", 10, 1..=10_000),
        circuit_failures: env.number("ASSIGNMENT_CIRCUIT_FAILURE_THRESHOLD", 3, 1..=1_000),
        circuit_successes: env.number("ASSIGNMENT_CIRCUIT_SUCCESS_THRESHOLD", 2, 1..=1_000),
        circuit_half_open: micros(env.seconds("ASSIGNMENT_CIRCUIT_HALF_OPEN_TIMEOUT_SECS", 30.0, 0.1..=3_600.0)),
        brake_share: env.number("BRAKE_SHARE_PCT", 50, 1..=100),
        brake_hold: micros(env.seconds("BRAKE_HOLD_SECS", 15.0, 0.0..=3_600.0)),
        degraded_patience: micros(env.seconds("DEGRADED_PATIENCE_SECS", 10.0, 0.0..=3_600.0)),
        rebalance_share: env.number("REBALANCE_SHARE_PCT", 20, 1..=100),
        shadow: mode == "shadow",
        ..Settings::default()
    }
}

/// The settings that `file` makes of those around it: lines of `NAME=VALUE` with the names of variables, `#` before remarks.
/// What it does not name, `around` gives. Also the lines, by name.
///
/// # Errors
/// Everything that is wrong with it: lines that are none, names that no decision goes by, values that are not allowed.
pub fn of_file(
    file: &str,
    around: impl Fn(&str) -> Option<String>,
) -> Result<(Settings, BTreeMap<String, String>), ConfigErrors> {
    let (mut lines, mut errors) = (BTreeMap::new(), Vec::new());
    for (number, line) in file.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        match line.split_once('=') {
            _ if line.is_empty() => {}
            Some((name, value)) => {
                lines.insert(name.trim().to_owned(), value.trim().to_owned());
            }
            None => errors.push(format!("line {}: {line:?} is no NAME=VALUE", number + 1)),
        }
    }
    let mut env = Env::new(|name: &str| lines.get(name).cloned().or_else(|| around(name)));
    let settings = read(&mut env);
    let known: Vec<String> = env.asked().all().into_iter().map(|v| v.name).collect();
    let unknown = lines.keys().filter(|name| !known.contains(name));
    errors.extend(unknown.map(|name| format!("no decision goes by {name}; allowed are {}", known.join(" "))));
    match env.finish(settings) {
        Ok(settings) if errors.is_empty() => Ok((settings, lines)),
        Ok(_) => Err(ConfigErrors(errors)),
        Err(wrong) => Err(ConfigErrors(errors.into_iter().chain(wrong.0).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_fleet() {
        assert_eq!(read(&mut crate::config::empty_env()), Settings::default());
    }

    #[test]
    fn a_file_overrides_what_is_around_it() {
        let around = |name: &str| (name == "BRAKE_SHARE_PCT").then(|| "80".to_owned());
        let (settings, lines) = of_file("# slower\nLEASE_TTL_MS = 5000 # five\n\n", around).unwrap();
        assert_eq!((settings.lease_ttl, settings.brake_share), (5 * SECOND, 80));
        assert_eq!(lines.into_iter().collect::<Vec<_>>(), [("LEASE_TTL_MS".to_owned(), "5000".to_owned())]);
    }

    #[test]
    fn all_that_is_wrong_with_a_file_is_said_at_once() {
        let error = of_file("LEASE_TTL_MS=soon\nSLACK_WEBHOOK_URL=x\nwhat", |_| None).unwrap_err().to_string();
        for part in ["line 3", "SLACK_WEBHOOK_URL", "LEASE_TTL_MS=\"soon\"", "100 to 600000", "BRAKE_HOLD_SECS"] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}
