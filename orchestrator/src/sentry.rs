//! Looks for what endangers the promise from outside: a log that acknowledges before it has written, and another orchestrator's
//! commands on Redis. Speaks while this orchestrator leads.

use std::time::Duration;

use arbees_core::alerts::{Alerter, Severity};
use arbees_core::bus::{Bus, contract};
use arbees_core::log::syncs_always;
use arbees_core::time::steady_us;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::beat::Pulse;

/// How often the log's server is asked. It changes its mind only when it is started anew.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// How often it looks whether another orchestrator has fallen silent.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Another orchestrator that was not heard for this long is gone. Microseconds.
const SILENT_US: i64 = 60_000_000;

const DURABILITY: &str = "durability_not_guaranteed";
const FOREIGN: &str = "foreign_orchestrator";

/// What it works with.
#[derive(Debug)]
pub struct Sentry {
    pub bus: Bus,
    pub alerter: Alerter,
    pub pulse: watch::Receiver<Pulse>,
    /// Where the log's server tells of itself; none: nobody can know.
    pub monitor_url: Option<String>,
    /// Copies of each stream: several need no disk to be sure of.
    pub replicas: u32,
    /// The other orchestrator is meant to be there.
    pub shadow: bool,
}

/// Looks until canceled.
pub async fn run(sentry: Sentry) {
    tokio::join!(watch_durability(&sentry), watch_commands(&sentry));
}

impl Sentry {
    fn leads(&self) -> bool {
        self.pulse.borrow().leads
    }
}

async fn watch_durability(sentry: &Sentry) {
    let url = sentry.monitor_url.as_ref().filter(|_| sentry.replicas == 1);
    if sentry.replicas == 1 && url.is_none() {
        tracing::info!("NATS_MONITOR_URL is not set: whether acknowledged events survive a power cut is not known");
    }
    let mut pulse = sentry.pulse.clone();
    loop {
        let asked = match url {
            Some(url) => syncs_always(url).await,
            // Several servers need no disk to be sure of; and of one that nobody can ask, nothing is said.
            None => Ok(true),
        };
        match asked {
            Err(error) => tracing::warn!(error, "NATS_MONITOR_URL does not answer: durability is not known"),
            Ok(_) if !sentry.leads() => {}
            Ok(true) => sentry.alerter.settle(DURABILITY, ""),
            Ok(false) => {
                let summary = "the log's only server acknowledges before it has written: a power cut loses what was \
                               acknowledged; set sync_interval: always";
                sentry.alerter.raise(DURABILITY, "", Severity::Warning, summary.to_owned());
            }
        }
        // Whoever takes over says so at once.
        let changes = async { while pulse.changed().await.is_ok() && !sentry.leads() {} };
        if sentry.leads() {
            tokio::time::sleep(ASK_EVERY).await;
        } else {
            changes.await;
        }
    }
}

async fn watch_commands(sentry: &Sentry) {
    let mut heard = sentry.bus.subscribe(&[], &[contract::SHARD_COMMANDS]);
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What was heard before this one listened counts as heard just now.
    let mut heard_us = steady_us();
    loop {
        tokio::select! {
            message = heard.next() => {
                let Some(message) = message else { return };
                if sentry.shadow || contract::is_own_command(&message.payload) {
                    continue;
                }
                heard_us = steady_us();
                if sentry.leads() {
                    let channel = &message.channel;
                    let summary = format!("a command on {channel} is not this fleet's: another orchestrator is at work");
                    sentry.alerter.raise(FOREIGN, "", Severity::Critical, summary);
                }
            }
            _ = ticks.tick() => {
                if sentry.leads() && steady_us() - heard_us > SILENT_US {
                    sentry.alerter.settle(FOREIGN, "");
                }
            }
        }
    }
}
