//! The shard's loop: games from the log, polls for them, and their changes told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use arbees_core::bus::Bus;
use arbees_core::espn::Espn;
use arbees_core::health::Health;
use arbees_core::log::{Log, Stored, Tail};
use arbees_core::retry::{Policy, retry};
use arbees_core::time::now_us;
use arbees_fleet::GameSet;
use arbees_proto::{GameId, League, ServiceKind, v1};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::beat::Heart;
use crate::config::Config;
use crate::publish::{self, Told};
use crate::watch::{Polled, Polls, state_of};

/// Polls that may wait for the loop: one for each league is all there can be at a time.
const POLLS: usize = 16;
/// How long the last states and the last word may take.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Watches until asked to stop.
pub async fn run(config: Config, log: Log, bus: Bus, espn: Espn, health: &Health, stop: &CancellationToken) {
    let policy = Policy::patient();
    let recovered = retry("recovery", &policy, stop, |_| true, || log.recover(&config.shard));
    let Ok((set, mut tail)) = recovered.await else { return };
    health.ok("recovered");
    let started_at_us = now_us();
    let producer = v1::Producer {
        service: "shard".to_owned(),
        instance: config.shard.to_string(),
        process: config.process.clone(),
    };
    let tasks = TaskTracker::new();
    let (states, to_tell) = mpsc::channel(publish::CAPACITY);
    let cut = CancellationToken::new();
    tasks.spawn(publish::run(to_tell, log.clone(), bus.clone(), producer.clone(), cut.clone()));
    let (polled_to, mut polled) = mpsc::channel(POLLS);
    let (beat, beating) = watch::channel(v1::Heartbeat::default());
    let (redis_to, mut redis) = watch::channel(true);
    let mut shard = Shard {
        polls: Polls::new(espn, config.poll_every, polled_to),
        states,
        beat,
        set,
        watched: BTreeMap::new(),
        failing: BTreeSet::new(),
        redis_ok: true,
        started_at_us,
        config: config.clone(),
    };
    shard.settle();
    let heart = Heart {
        log,
        bus,
        producer,
        log_every: config.log_beat_every,
        redis_every: config.redis_beat_every,
        beat: beating,
    };
    let beats = [tokio::spawn(heart.clone().beat_log()), tokio::spawn(heart.clone().beat_redis(redis_to))];
    shard.watch(&mut tail, &mut polled, &mut redis, stop).await;
    beats.iter().for_each(tokio::task::JoinHandle::abort);
    drop(shard);
    tasks.close();
    let ending = async {
        heart.last_word().await;
        tasks.wait().await;
    };
    if tokio::time::timeout(STOP_LIMIT, ending).await.is_err() {
        cut.cancel();
        tracing::warn!("stopped before the last states were acknowledged");
    }
}

struct Shard {
    config: Config,
    set: GameSet,
    polls: Polls,
    states: mpsc::Sender<Told>,
    beat: watch::Sender<v1::Heartbeat>,
    /// The games that are watched, each with the last state handed over.
    watched: BTreeMap<GameId, Option<v1::GameStateChanged>>,
    /// Leagues whose last poll failed.
    failing: BTreeSet<League>,
    redis_ok: bool,
    started_at_us: i64,
}

impl Shard {
    async fn watch(
        &mut self,
        tail: &mut Tail,
        polled: &mut mpsc::Receiver<Polled>,
        redis: &mut watch::Receiver<bool>,
        stop: &CancellationToken,
    ) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                stored = tail.next() => match stored {
                    Some(stored) => {
                        self.follow(&stored);
                        while let Some(stored) = tail.ready() {
                            self.follow(&stored);
                        }
                        self.settle();
                    }
                    None => return,
                },
                Some(answer) = polled.recv() => self.see(answer),
                Ok(()) = redis.changed() => {
                    self.redis_ok = *redis.borrow_and_update();
                    self.tell();
                }
            }
        }
    }

    fn follow(&mut self, stored: &Stored) {
        match stored.event() {
            Ok(event) => {
                if let Some(change) = self.set.apply(stored.sequence, &event) {
                    tracing::info!(sequence = stored.sequence, ?change, "game set changed");
                }
            }
            Err(error) => tracing::warn!(sequence = stored.sequence, %error, "message of CONTROL skipped"),
        }
    }

    /// Watches what the set holds, the oldest assignments first, up to `max_games`.
    fn settle(&mut self) {
        let mut by_age: Vec<_> = self.set.held().iter().map(|(id, held)| (held.epoch, id.clone())).collect();
        by_age.sort();
        by_age.truncate(usize::try_from(self.config.max_games).unwrap_or(usize::MAX));
        let chosen: BTreeSet<GameId> = by_age.into_iter().map(|(_, id)| id).collect();
        self.watched.retain(|id, _| chosen.contains(id));
        for id in chosen {
            self.watched.entry(id).or_default();
        }
        self.polls.follow(self.watched.keys());
        self.failing.retain(|league| self.watched.keys().any(|id| id.league() == *league));
        self.tell();
    }

    fn see(&mut self, (league, answer): Polled) {
        let is_failure = answer.is_err();
        let was_failing = if is_failure { !self.failing.insert(league) } else { self.failing.remove(&league) };
        if was_failing != is_failure {
            self.tell();
        }
        let slate = match answer {
            Ok(slate) => slate,
            Err(error) => {
                if !was_failing {
                    tracing::warn!(%error, "poll failed");
                }
                return;
            }
        };
        for seen in &slate.games {
            let Some(last) = self.watched.get_mut(&seen.report.id) else { continue };
            let Some(held) = self.set.held().get(&seen.report.id) else { continue };
            let state = state_of(&self.config.shard, held, seen);
            if last.as_ref() == Some(&state) {
                continue;
            }
            let told = Told { game: seen.report.id.clone(), state: state.clone() };
            // A full queue keeps the old state in place: the difference is seen again at the next poll.
            if self.states.try_send(told).is_ok() {
                *last = Some(state);
            }
        }
    }

    /// Makes the next heartbeat true.
    fn tell(&self) {
        let entry = |(id, held): (&GameId, &arbees_fleet::game_set::Held)| {
            (self.watched.contains_key(id), v1::Watched { game: id.to_string(), epoch: held.epoch.0 })
        };
        let (games, rejected): (Vec<_>, Vec<_>) =
            self.set.held().iter().map(entry).partition(|(is_watched, _)| *is_watched);
        let check = |name: &str, ok: bool| v1::Check { name: name.to_owned(), ok };
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
        self.beat.send_replace(v1::Heartbeat {
            service: Some(service),
            status: "healthy".to_owned(),
            checks: vec![check("redis_ok", self.redis_ok), check("espn_api_ok", self.failing.is_empty())],
            metrics: vec![
                metric("games_monitoring", games.len()),
                metric("max_games", usize::try_from(self.config.max_games).unwrap_or(0)),
            ],
            games: games.into_iter().map(|(_, w)| w).collect(),
            rejected: rejected.into_iter().map(|(_, w)| w).collect(),
            last_applied: self.set.last_applied(),
            head: None,
        });
    }
}
