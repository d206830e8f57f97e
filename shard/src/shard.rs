//! The shard's loop: games from the log, polls for them, and their changes told, for as long as the lease lasts.

use std::collections::BTreeMap;
use std::time::Duration;

use arbees_core::bus::Bus;
use arbees_core::espn::Espn;
use arbees_core::exit::Exit;
use arbees_core::health::Health;
use arbees_core::log::{Beaten, Log, Stored, Tail};
use arbees_core::metrics::{figure, gauge};
use arbees_core::monitor;
use arbees_core::retry::{Policy, retry};
use arbees_core::shutdown::spawn;
use arbees_core::time::{micros, now_us, steady_us};
use arbees_core::{alerts, bus::contract, traces};
use arbees_fleet::lease::Step;
use arbees_fleet::{Lease, Watcher, checks};
use arbees_proto::{Epoch, GameId, League, ServiceKind, v1};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::beat;
use crate::claim::{self, Claim, News};
use crate::config::Config;
use crate::publish::{self, Permit, Told};
use crate::watch::{Polled, Polls, state_of};

/// Polls that may wait for the loop: one for each league is all there can be at a time.
const POLLS: usize = 16;
/// News of the lease that may wait: a handful of answers and a few orchestrators' words a second.
const NEWS: usize = 256;
/// Failed polls in a row that make a league's data bad; fewer are a hiccup.
const FAILED_POLLS: u32 = 5;
/// How long a stopping shard watches on until its games are handed over.
const HAND_OVER_LIMIT: i64 = 10_000_000;
/// Nobody hands anything over when no orchestrator was heard for this long.
const LEADERLESS: i64 = 2_000_000;
/// How long the last states and the last word may take.
const STOP_LIMIT: Duration = Duration::from_secs(3);
/// The longest sleep: a lease must be seen to end, and a clock that was stopped be read again.
const LOOK_EVERY_US: i64 = 200_000;

/// Watches until asked to stop, or until another process has this shard's name.
pub async fn run(
    config: Config,
    log: Log,
    bus: Bus,
    espn: Espn,
    health: &Health,
    stop: &CancellationToken,
) -> Result<(), Exit> {
    let policy = Policy::patient();
    let recovered = retry("recovery", &policy, stop, |_| true, || log.recover(&config.shard));
    let Ok((set, tail, asked_us)) = recovered.await else { return Ok(()) };
    health.ok("recovered");
    let mut lease = Lease::new(micros(config.lease_ttl), micros(config.log_beat_every));
    lease.tail_at_end(asked_us);
    let producer = v1::Producer {
        service: "shard".to_owned(),
        instance: config.shard.to_string(),
        process: config.process.clone(),
    };
    let (tasks, cut, ending) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
    let (states, to_tell) = mpsc::channel(publish::CAPACITY);
    let (permit, permitted) = watch::channel(Permit::default());
    tasks.spawn(publish::run(to_tell, log.clone(), bus.clone(), producer.clone(), permitted, cut.clone()));
    let (polled_to, polled) = mpsc::channel(POLLS);
    let (news_to, news) = mpsc::channel(NEWS);
    let (beat, beating) = watch::channel(v1::Heartbeat::default());
    let (redis_to, redis) = watch::channel(true);
    spawn(&tasks, &ending, beat::run(bus.clone(), config.redis_beat_every, beating, redis_to));
    spawn(&tasks, &ending, monitor::run(config.monitor_every, health.clone(), log.clone(), Some(bus.clone())));
    spawn(&tasks, &ending, claim::hear_words(bus.clone(), news_to.clone()));
    spawn(&tasks, &ending, claim::answer_probes(log.clone(), config.shard.clone()));
    let mut shard = Shard {
        watcher: Watcher::new(set, usize::try_from(config.max_games).unwrap_or(usize::MAX), lease),
        claim: Claim::new(log.clone(), producer.clone(), config.shard.clone(), news_to, ending.clone()),
        polls: Polls::new(espn, config.poll_every, polled_to),
        states,
        permit,
        beat,
        watched: BTreeMap::new(),
        failures: BTreeMap::new(),
        redis_ok: true,
        acts: false,
        heard_leader_us: steady_us(),
        started_at_us: now_us(),
        config,
    };
    shard.settle();
    let ended = shard.watch(tail, Sources { polled, news, redis }, stop).await;
    let last_word = shard.beat.borrow().clone();
    drop(shard);
    ending.cancel();
    tasks.close();
    if let Err(Exit::Superseded(why)) = &ended {
        cut.cancel();
        let instance = producer.instance.clone();
        alerts::raise(&log, &bus, &producer, alerts::duplicate_instance(&instance, why)).await;
    } else if tokio::time::timeout(STOP_LIMIT, say_goodbye(&bus, &last_word, &tasks)).await.is_err() {
        cut.cancel();
        tracing::warn!("stopped before the last states were acknowledged");
    }
    ended
}

async fn say_goodbye(bus: &Bus, beat: &v1::Heartbeat, tasks: &TaskTracker) {
    beat::say(bus, &v1::Heartbeat { status: contract::STOPPING.to_owned(), ..beat.clone() }).await;
    tasks.wait().await;
}

/// What the loop listens to beside the log.
struct Sources {
    polled: mpsc::Receiver<Polled>,
    news: mpsc::Receiver<News>,
    redis: watch::Receiver<bool>,
}

struct Shard {
    config: Config,
    watcher: Watcher,
    claim: Claim,
    polls: Polls,
    states: mpsc::Sender<Told>,
    permit: watch::Sender<Permit>,
    beat: watch::Sender<v1::Heartbeat>,
    /// The games that are watched, each with its epoch and the last state handed over.
    watched: BTreeMap<GameId, (Epoch, Option<v1::GameStateChanged>)>,
    /// Failed polls in a row, by league.
    failures: BTreeMap<League, u32>,
    redis_ok: bool,
    /// Whether it acted when it last looked.
    acts: bool,
    /// When an orchestrator was last heard.
    heard_leader_us: i64,
    started_at_us: i64,
}

impl Shard {
    async fn watch(&mut self, mut tail: Tail, mut from: Sources, stop: &CancellationToken) -> Result<(), Exit> {
        let mut stopping_since_us = None;
        loop {
            if tail.is_lost() {
                self.watcher.lease.read_anew();
            }
            let wait_us = self.follow_lease()?;
            if let Some(since_us) = stopping_since_us
                && self.is_handed_over(since_us)
            {
                return Ok(());
            }
            tokio::select! {
                () = stop.cancelled(), if stopping_since_us.is_none() => {
                    stopping_since_us = Some(steady_us());
                    self.watcher.stop();
                }
                heard = tail.next_or_end(), if !tail.is_lost() => match heard {
                    Some(heard) => self.follow(heard, &mut tail),
                    None if tail.is_lost() => {}
                    None => return Ok(()),
                },
                Some(answer) = from.polled.recv() => self.see(answer),
                Some(news) = from.news.recv() => {
                    if let Some(anew) = self.hear(news) {
                        tail = anew;
                    }
                }
                Ok(()) = from.redis.changed() => {
                    self.redis_ok = *from.redis.borrow_and_update();
                    self.watcher.lease.beat_soon();
                }
                () = tokio::time::sleep(wait_us) => {}
            }
        }
    }

    /// Whether a shard that stops since `since_us` may go: its games are another's, or nobody will take them, and its last
    /// beat said so.
    fn is_handed_over(&self, since_us: i64) -> bool {
        let now_us = steady_us();
        let has_said = self.beat.borrow().status == contract::STOPPING && self.watcher.lease.is_quiet();
        let is_leaderless = now_us - self.heard_leader_us > LEADERLESS && now_us - since_us > LEADERLESS;
        (has_said && (self.watcher.set().held().is_empty() || is_leaderless)) || now_us - since_us > HAND_OVER_LIMIT
    }

    /// Does what the lease asks for; how long to wait then.
    fn follow_lease(&mut self) -> Result<Duration, Exit> {
        let now_us = steady_us();
        let step = self.watcher.lease.step(now_us);
        if let Step::Superseded { by } = &step {
            let shard = &self.config.shard;
            return Err(Exit::Superseded(format!("another process ({by}) beats as {shard}")));
        }
        if matches!(step, Step::Send { .. }) {
            let beat = self.watcher.beat(now_us, self.about());
            self.beat.send_replace(beat);
        }
        let beat = || self.beat.borrow().clone();
        self.claim.take(&step, beat);
        self.note_acting(now_us);
        gauge!("arbees_shard_games").set(figure(self.watched.len()));
        let left_us = self.permit.borrow().until_us.map_or(0, |until| (until - now_us).max(0));
        #[allow(clippy::cast_precision_loss)]
        gauge!("arbees_lease_seconds").set(left_us as f64 / 1e6);
        let until_us = match step {
            Step::Wait { until_us } => until_us,
            _ => now_us + LOOK_EVERY_US,
        };
        let wait_us = (until_us - now_us).clamp(1_000, LOOK_EVERY_US);
        Ok(Duration::from_micros(u64::try_from(wait_us).unwrap_or(0)))
    }

    /// Keeps the permit true: until when what may be told.
    fn note_acting(&mut self, now_us: i64) {
        let until_us = self.watcher.lease.acts_until_us(now_us);
        // A lease that lapsed and came back between two looks lapsed all the same: what was to be told then was not.
        let has_lapsed = self.permit.borrow().until_us.is_some_and(|until| until <= now_us);
        let acts = until_us.is_some();
        if acts && has_lapsed {
            self.watched.values_mut().for_each(|(_, last)| *last = None);
        }
        if acts != self.acts {
            self.acts = acts;
            if acts {
                tracing::info!("acting: the lease is held");
                // What was seen meanwhile was not told.
                self.watched.values_mut().for_each(|(_, last)| *last = None);
            } else {
                tracing::warn!(games = self.watched.len(), "not acting: the lease is over");
            }
        }
        let epochs = || self.watched.iter().map(|(id, (epoch, _))| (id.clone(), *epoch)).collect();
        self.permit.send_if_modified(|permit| {
            let is_same = permit.until_us == until_us && permit.epochs.len() == self.watched.len();
            if is_same && self.watched.iter().all(|(id, (epoch, _))| permit.epochs.get(id) == Some(epoch)) {
                return false;
            }
            *permit = Permit { until_us, epochs: epochs() };
            true
        });
    }

    fn hear(&mut self, news: News) -> Option<Tail> {
        let now_us = steady_us();
        self.claim.note(&news);
        let lease = &mut self.watcher.lease;
        match news {
            News::Beaten { number, outcome: Beaten::Stored { sequence } } => lease.acked(number, sequence),
            News::Beaten { number, outcome: Beaten::Refused } => lease.refused(number),
            News::Beaten { outcome: Beaten::Unknown, .. } | News::Looked { last: None, .. } => {}
            News::Looked { asked_us, last: Some(last) } => {
                tracing::info!(?last, "looked at the own heartbeat subject");
                lease.looked(asked_us, now_us, last);
            }
            News::Word { instance, log_ok } => {
                self.heard_leader_us = now_us;
                lease.heard(now_us, &instance, log_ok);
            }
            News::Rejoined { asked_us, set, tail } => {
                tracing::info!(games = set.held().len(), "rejoined");
                self.watcher.rejoined(set, asked_us);
                self.settle();
                return Some(tail);
            }
        }
        None
    }

    fn follow(&mut self, heard: Result<Stored, i64>, tail: &mut Tail) {
        let proof_us = match heard {
            Ok(stored) => {
                self.apply(&stored);
                None
            }
            Err(at_us) => Some(at_us),
        };
        while let Some(stored) = tail.ready() {
            self.apply(&stored);
        }
        if let Some(at_us) = proof_us {
            self.watcher.lease.tail_at_end(at_us);
        } else {
            self.settle();
        }
    }

    fn apply(&mut self, stored: &Stored) {
        match stored.event() {
            Ok(event) => {
                if let Some(change) = self.watcher.follow(stored.sequence, &event) {
                    tracing::info!(sequence = stored.sequence, ?change, "game set changed");
                    traces::took("watch", stored, self.config.shard.as_str());
                }
            }
            Err(error) => tracing::warn!(sequence = stored.sequence, %error, "message of CONTROL skipped"),
        }
    }

    /// Watches what the log gives to it, up to `max_games`.
    fn settle(&mut self) {
        let wanted = self.watcher.watched();
        self.watched.retain(|id, (epoch, _)| wanted.get(id) == Some(epoch));
        for (id, epoch) in wanted {
            self.watched.entry(id).or_insert((epoch, None));
        }
        self.polls.follow(self.watched.keys());
        self.failures.retain(|league, _| self.watched.keys().any(|id| id.league() == *league));
        self.note_acting(steady_us());
    }

    fn see(&mut self, (league, answer): Polled) {
        let before = self.failures.get(&league).copied().unwrap_or(0);
        let slate = match answer {
            Ok(slate) => {
                self.failures.remove(&league);
                if before >= FAILED_POLLS {
                    tracing::info!(%league, failed = before, "polls work again");
                    self.watcher.lease.beat_soon();
                }
                slate
            }
            Err(error) => {
                self.failures.insert(league, before.saturating_add(1));
                if before == 0 {
                    tracing::warn!(%error, "poll failed");
                } else if before + 1 == FAILED_POLLS {
                    self.watcher.lease.beat_soon();
                }
                return;
            }
        };
        let now_us = steady_us();
        for seen in &slate.games {
            let id = &seen.report.id;
            let Some((epoch, last)) = self.watched.get_mut(id) else { continue };
            let Some(held) = self.watcher.set().held().get(id) else { continue };
            if !self.watcher.may_tell(now_us, id, *epoch) {
                continue;
            }
            let state = state_of(&self.config.shard, held, seen);
            if last.as_ref() == Some(&state) {
                continue;
            }
            let told = Told { game: id.clone(), state: state.clone() };
            // A full queue keeps the old state in place: the difference is seen again at the next poll.
            if self.states.try_send(told).is_ok() {
                *last = Some(state);
            }
        }
    }

    /// What only the shell knows of the next heartbeat.
    fn about(&self) -> v1::Heartbeat {
        let check = |name: &str, ok: bool| v1::Check { name: name.to_owned(), ok };
        let failing: Vec<_> = self.failures.iter().filter(|(_, n)| **n >= FAILED_POLLS).collect();
        let espn_ok = failing.is_empty();
        let mut checks = vec![check("redis_ok", self.redis_ok), check(checks::ESPN, espn_ok)];
        checks.extend(failing.iter().map(|(league, _)| check(&checks::espn(**league), false)));
        #[allow(clippy::cast_precision_loss)]
        let metric = |name: &str, value: usize| v1::Metric { name: name.to_owned(), value: value as f64 };
        let service = v1::Service {
            kind: ServiceKind::Shard.as_str().to_owned(),
            instance: self.config.shard.to_string(),
            process: self.config.process.clone(),
            started_at_us: self.started_at_us,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            shard_type: self.config.shard_type.to_owned(),
            max_games: self.config.max_games,
            on_log: true,
        };
        v1::Heartbeat {
            service: Some(service),
            status: if espn_ok { "healthy" } else { "degraded" }.to_owned(),
            checks,
            metrics: vec![
                metric("games_monitoring", self.watched.len()),
                metric("max_games", usize::try_from(self.config.max_games).unwrap_or(0)),
            ],
            ..v1::Heartbeat::default()
        }
    }
}
