//! Looks now and then at all that a program stands on, and tells it as health. Nothing is decided by it: alerts come from events.

use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use crate::bus::Bus;
use crate::config::Env;
use crate::health::Health;
use crate::log::{CONTROL, Log};

/// An answer later than this is none.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// `SYSTEM_MONITOR_INTERVAL_SECS`.
pub fn interval<F: Fn(&str) -> Option<String>>(env: &mut Env<F>) -> Duration {
    env.seconds("SYSTEM_MONITOR_INTERVAL_SECS", 30.0, 0.1..=3_600.0)
}

/// Looks every so often at the log and at Redis, until canceled.
pub async fn run(every: Duration, health: Health, log: Log, bus: Option<Bus>) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        tokio::join!(look_at_log(&health, &log), look_at_redis(&health, bus.as_ref()));
    }
}

async fn look_at_log(health: &Health, log: &Log) {
    let asked = Instant::now();
    let detail = match tokio::time::timeout(ANSWER_WITHIN, log.bounds(CONTROL)).await {
        Ok(Ok((_, end))) => format!("CONTROL ends at {end}, told after {:.1?}", asked.elapsed()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", ANSWER_WITHIN.as_secs()),
    };
    // Whether it is there is watched all the time.
    health.detail("log", detail);
    if let Ok(Ok(behind)) = tokio::time::timeout(ANSWER_WITHIN, log.copies_behind()).await {
        match behind.as_slice() {
            [] => health.ok("copies"),
            some => health.failed("copies", format!("not current: {}", some.join(", "))),
        }
    }
}

async fn look_at_redis(health: &Health, bus: Option<&Bus>) {
    let Some(bus) = bus else { return };
    match bus.health_check_result().await {
        Ok(took) => {
            health.ok("redis");
            health.detail("redis", format!("answers after {took:.1?}"));
        }
        Err(error) => health.failed("redis", error.to_string()),
    }
}
