//! The leader's voice: follows ALERTS, decides what people are told, and sends it. A standby follows, and says nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use arbees_core::alerts::channel::Channel;
use arbees_core::alerts::delivery::Delivery;
use arbees_core::alerts::{AlertConfig, Alerter, Desk, Severity, incident_of};
use arbees_core::bus::Bus;
use arbees_core::health::Health;
use arbees_core::log::{ALERTS, Log};
use arbees_core::time::{now_us, steady_us};
use arbees_proto::{Payload, v1};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::beat::{Pulse, TAKES};

/// How often it looks whether something is due.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The log, or Redis, is away when it has not answered for this long: longer than an election of three servers takes to be
/// noticed, shorter than anybody waits for.
const AWAY_AFTER_US: i64 = 3_000_000;
const REDIS_AWAY_AFTER_US: i64 = 5_000_000;
/// How often Redis is asked.
const PING_EVERY_US: i64 = 2_000_000;

const LOG_KIND: &str = "log_unavailable";
const REDIS_KIND: &str = "redis_connectivity";

/// What it works with.
#[derive(Debug)]
pub struct Alerting {
    pub log: Log,
    pub bus: Bus,
    pub config: AlertConfig,
    pub pulse: watch::Receiver<Pulse>,
    /// Whether the log is there.
    pub log_ok: watch::Receiver<bool>,
    /// It knows why the log did not take the last heartbeat.
    pub health: Health,
    pub alerter: Alerter,
    /// The incidents that last.
    /// As ALERTS has them; none before it was read to its end.
    pub open: watch::Sender<Option<BTreeSet<String>>>,
}

/// Follows and tells until canceled.
pub async fn run(alerting: Alerting, tasks: TaskTracker, stop: CancellationToken) {
    let channels = match Channel::all(&alerting.config, Some(&alerting.bus)) {
        Ok(channels) => channels,
        Err(error) => {
            tracing::error!(%error, "alerts cannot be sent");
            return;
        }
    };
    let channels = if alerting.config.enabled { channels } else { Vec::new() };
    if channels.is_empty() {
        tracing::warn!("CRITICAL_ALERTS_ENABLED is false: alerts are events in ALERTS, and nobody is told");
    } else {
        let names: Vec<&str> = channels.iter().map(Channel::name).collect();
        tracing::info!(channels = names.join(" "), "alerts are sent");
    }
    let names: BTreeSet<String> = channels.iter().map(|c| c.name().to_owned()).collect();
    let delivery = Delivery::start(channels, &alerting.alerter, &tasks, &stop);
    let desk = Desk::new(alerting.config.rules);
    Voice { alerting, desk, delivery, names, leads: false, led: false, log_away_us: None, redis: Redis::default() }
        .follow()
        .await;
}

#[derive(Default)]
struct Redis {
    asked_us: i64,
    away_since_us: Option<i64>,
}

struct Voice {
    alerting: Alerting,
    desk: Desk,
    delivery: Delivery,
    names: BTreeSet<String>,
    leads: bool,
    /// Whether it was the last that led, as far as it knows: who then speaks of a log that is away.
    led: bool,
    log_away_us: Option<i64>,
    redis: Redis,
}

impl Voice {
    async fn follow(mut self) {
        let mut tail = self.alerting.log.tail(ALERTS, Vec::new(), 1);
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_current = false;
        loop {
            tokio::select! {
                heard = tail.next_or_end() => match heard {
                    Some(Ok(stored)) => {
                        if let Ok(event) = stored.event() {
                            self.desk.apply(&event);
                        }
                        while let Some(stored) = tail.ready() {
                            if let Ok(event) = stored.event() {
                                self.desk.apply(&event);
                            }
                        }
                        if is_current {
                            self.publish_open();
                        }
                    }
                    // All that was told before is known.
                    Some(Err(_)) => {
                        is_current = true;
                        self.publish_open();
                    }
                    None if tail.is_lost() => {
                        self.desk = Desk::new(self.alerting.config.rules);
                        tail = self.alerting.log.tail(ALERTS, Vec::new(), 1);
                        is_current = false;
                        self.alerting.open.send_replace(None);
                    }
                    None => return,
                },
                _ = ticks.tick() => {
                    if is_current {
                        self.look().await;
                    }
                }
            }
        }
    }

    fn publish_open(&self) {
        let open = Some(self.desk.open());
        self.alerting.open.send_if_modified(|was| {
            let is_new = *was != open;
            *was = open;
            is_new
        });
    }

    async fn look(&mut self) {
        if *self.alerting.log_ok.borrow() {
            // While the log is away, ALERTS tells nothing new: the own word counts on.
            self.alerting.alerter.know(&self.desk.open());
        }
        let pulse = self.alerting.pulse.borrow().clone();
        // What this one itself told is in its own queues still.
        if pulse.leads && !self.leads && !self.led {
            for notice in self.desk.left_over(now_us(), &self.names) {
                self.delivery.send(&notice);
            }
        }
        self.led = pulse.leads || (self.led && !pulse.another_leads);
        self.leads = pulse.leads;
        self.watch_log();
        let speaks = self.leads || (self.led && self.log_away_us.is_some());
        if !speaks {
            return;
        }
        if self.leads {
            self.watch_redis().await;
        }
        let (notices, suppressed) = self.desk.due(now_us());
        for notice in &notices {
            self.delivery.send(notice);
        }
        for held in suppressed {
            self.alerting.alerter.say(Payload::AlertSuppressed(held));
        }
        if !notices.is_empty() {
            self.publish_open();
        }
    }

    /// That the log is away is said at once, and written when it is back.
    fn watch_log(&mut self) {
        let now = steady_us();
        let is_open = self.desk.open().contains(LOG_KIND);
        if *self.alerting.log_ok.borrow() {
            self.log_away_us = None;
            if is_open && self.leads {
                let over = v1::AlertResolved { kind: LOG_KIND.to_owned(), incident: LOG_KIND.to_owned() };
                self.say(Payload::AlertResolved(over));
            }
            return;
        }
        let since = *self.log_away_us.get_or_insert(now);
        if self.led && !is_open && now - since >= AWAY_AFTER_US {
            let why = self.alerting.health.why(TAKES).unwrap_or_else(|| "it does not answer".to_owned());
            let summary = format!("the log takes nothing ({why}): nothing is decided, shards hold their leases");
            self.say(Payload::AlertRaised(v1::AlertRaised {
                kind: LOG_KIND.to_owned(),
                incident: incident_of(LOG_KIND, ""),
                severity: Severity::Critical.as_str().to_owned(),
                summary,
            }));
        }
    }

    /// Takes an event in before the log has it.
    fn say(&mut self, payload: Payload) {
        let event = self.alerting.alerter.say(payload);
        self.desk.apply(&event);
    }

    async fn watch_redis(&mut self) {
        let now = steady_us();
        if now - self.redis.asked_us < PING_EVERY_US {
            return;
        }
        self.redis.asked_us = now;
        match self.alerting.bus.health_check_result().await {
            Ok(_) => {
                self.redis.away_since_us = None;
                self.alerting.alerter.settle(REDIS_KIND, "");
            }
            Err(error) => {
                let since = *self.redis.away_since_us.get_or_insert(now);
                if steady_us() - since >= REDIS_AWAY_AFTER_US {
                    let summary = format!("{error}: services that know only Redis hear nothing");
                    self.alerting.alerter.raise(REDIS_KIND, "", Severity::Critical, summary);
                }
            }
        }
    }
}
