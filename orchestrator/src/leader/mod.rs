//! The orchestrator's loop. A standby follows the log and listens; who has the key leads: it takes one input and all that is
//! ready, decides, appends, and only then lets effects go.

mod answers;
mod effects;
mod folding;
mod summary;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use arbees_core::alerts::Alerter;
use arbees_core::bus::Bus;
use arbees_core::espn::Espn;
use arbees_core::exit::Exit;
use arbees_core::health::Health;
use arbees_core::log::{AppendError, Asked, CONTROL, Key, Log, ReadError};
use arbees_core::metrics::{gauge, histogram};
use arbees_core::monitor;
use arbees_core::shutdown::spawn;
use arbees_core::time::{micros, now, now_us, steady_us};
use arbees_fleet::append::Outcome;
use arbees_fleet::decide::Turn;
use arbees_fleet::{Effect, Fleet, Input, Skip};
use arbees_proto::envelope::HEADER_TYPE;
use arbees_proto::{Sealed, v1};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::alerting::{self, Alerting};
use crate::beat::{self, Heart, Pulse};
use crate::config::Config;
use crate::discovery;
use crate::inbox::{self, Mail};
use crate::operator::Answer;
use crate::others::Others;
use crate::outbox::{Errand, Outbox};
use crate::sentry::{self, Sentry};
use crate::tenure::Tenure;
use folding::{Before, fold};
use summary::Summary;

/// How often time itself is an input.
const TICK_US: i64 = 200_000;
/// How often a leader that waits for an append looks after its key.
const RENEW_LOOK: Duration = Duration::from_millis(100);
/// Room a turn must have left to take another input: the largest slate makes no more events than this.
const ROOM_FOR_ONE: usize = 400;
/// Inputs in one turn at most: what was decided must get into the log, however fast inputs come.
const MOST_INPUTS: usize = 1_000;
/// Events whose notifications a new leader repeats at most: a second of a busy fleet.
const MOST_REPEATED: u64 = 1_000;
/// How long the tasks may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// How a term, or the wait for one, ended.
enum Ended {
    /// The key lapsed, or another orchestrator wrote.
    Deposed,
    /// The state decided on is not the log's.
    FoldAnew,
    Stopped,
}

/// Leads or stands by until asked to stop.
pub async fn run(
    config: &Config,
    log: &Log,
    bus: &Bus,
    espn: &Espn,
    health: &Health,
    stop: &CancellationToken,
) -> Result<(), Exit> {
    let me = v1::Producer {
        service: "orchestrator".to_owned(),
        instance: config.instance.clone(),
        process: config.process.clone(),
    };
    // Read before the log is folded: what was published before must be in it.
    let before = Before::read(log).await;
    let Some(state) = fold(log, stop).await else { return Ok(()) };
    let generation = before.generation_over(&state.head);
    let fleet = Fleet::new(state, config.settings.clone(), log.names().clone(), me.clone(), now());
    let started_at_us = now_us();
    let (sender, inbox) = mpsc::channel(inbox::CAPACITY);
    let (tasks, ending) = (TaskTracker::new(), CancellationToken::new());
    let (gone_out, effects_through) = watch::channel(0);
    let (outbox, emptying) = Outbox::new(bus.clone(), espn.clone(), sender.clone(), gone_out);
    let head = fleet.state().head.clone();
    let pulse = Pulse { head, leads: false, appending_since_us: None, another_leads: true };
    let (pulse, watching) = watch::channel(pulse);
    let (log_ok, is_log_ok) = watch::channel(true);
    let log_is_there = is_log_ok.clone();
    let (open_to, open) = watch::channel(None);
    let (alerter, alerts) = Alerter::new(log.clone(), Some(bus.clone()), me.clone());
    let heart = Heart {
        log: log.clone(),
        bus: bus.clone(),
        producer: me.clone(),
        started_at_us,
        pulse: watching.clone(),
        effects_through,
        log_ok,
        health: health.clone(),
    };
    let sentry = Sentry {
        bus: bus.clone(),
        alerter: alerter.clone(),
        pulse: watching.clone(),
        monitor_url: config.monitor_url.clone(),
        replicas: config.log.replicas,
        shadow: config.settings.shadow,
    };
    let alerting = Alerting {
        log: log.clone(),
        bus: bus.clone(),
        config: config.alerts.clone(),
        pulse: watching,
        log_ok: is_log_ok,
        health: health.clone(),
        alerter: alerter.clone(),
        open: open_to,
    };
    inbox::start(log, bus, &me, sender.clone(), &tasks, &ending).await.map_err(|e| Exit::Failed(e.to_string()))?;
    spawn(&tasks, &ending, emptying);
    spawn(&tasks, &ending, alerts);
    spawn(&tasks, &ending, beat::run(heart));
    spawn(&tasks, &ending, monitor::run(config.monitor_every, health.clone(), log.clone(), Some(bus.clone())));
    spawn(&tasks, &ending, sentry::run(sentry));
    spawn(&tasks, &ending, alerting::run(alerting, tasks.clone(), ending.clone()));
    let (may_be_free, free) = watch::channel(1);
    let watched = log.clone();
    spawn(&tasks, &ending, async move { watched.watch_key(may_be_free).await });
    let mut desk = Desk {
        config,
        log,
        espn,
        me,
        started_at_us,
        snapshot_at: fleet.state().head.sequence,
        fleet,
        leads: false,
        inbox,
        sender,
        free,
        outbox,
        pulse,
        alerter,
        open,
        log_is_there,
        generation,
        effects_through: before.effects_through,
        tasks: &tasks,
        asked: Vec::new(),
        rival: None,
        others: before.others,
        answers: Vec::new(),
        summary: Summary::new(health.clone(), micros(config.monitor_every)),
    };
    health.ok("leader");
    let result = desk.serve(stop).await;
    ending.cancel();
    tasks.close();
    if tokio::time::timeout(STOP_LIMIT, tasks.wait()).await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
    result
}

/// What the loop works with.
struct Desk<'a> {
    config: &'a Config,
    log: &'a Log,
    espn: &'a Espn,
    me: v1::Producer,
    started_at_us: i64,
    fleet: Fleet,
    leads: bool,
    inbox: mpsc::Receiver<Mail>,
    sender: mpsc::Sender<Mail>,
    /// Counts moments at which the key may be free.
    free: watch::Receiver<u64>,
    outbox: Outbox,
    pulse: watch::Sender<Pulse>,
    alerter: Alerter,
    /// The incidents that last, as ALERTS has them; none before it was read to its end.
    open: watch::Receiver<Option<BTreeSet<String>>>,
    log_is_there: watch::Receiver<bool>,
    /// What the log must at least be in: one more than before when it was seen to have lost its tail.
    generation: u64,
    /// How far some leader's effects have gone out.
    effects_through: u64,
    /// Sequence of the last snapshot.
    snapshot_at: u64,
    tasks: &'a TaskTracker,
    /// Kinds of services that asked for their start-up state in this turn.
    asked: Vec<String>,
    /// A younger process under this orchestrator's name.
    rival: Option<String>,
    /// The other orchestrators.
    others: Others,
    /// Answers to operators, sent when what they tell of is stored.
    answers: Vec<(Asked, Answer)>,
    summary: Summary,
}

impl Desk<'_> {
    /// Stands by and leads, in turns.
    async fn serve(&mut self, stop: &CancellationToken) -> Result<(), Exit> {
        loop {
            let Some(key) = self.stand_by(stop).await? else { return Ok(()) };
            let term = stop.child_token();
            let ended = self.lead(key, stop, &term).await?;
            term.cancel();
            self.leads = false;
            self.pulse.send_modify(|p| p.leads = false);
            self.outbox.forget();
            gauge!("arbees_leader").set(0.0);
            match ended {
                Ended::Stopped => return Ok(()),
                Ended::Deposed => tracing::warn!("no longer leading, standing by"),
                Ended::FoldAnew => {}
            }
            // What this leader decided last may not be what the log holds.
            if self.fold_anew(stop).await.is_none() {
                return Ok(());
            }
        }
    }

    /// Follows the log until the key is this orchestrator's.
    async fn stand_by(&mut self, stop: &CancellationToken) -> Result<Option<Key>, Exit> {
        let holder = format!("{}/{}", self.me.instance, self.me.process);
        self.summarise_nothing();
        let mut tail = self.log.tail(CONTROL, Vec::new(), self.fleet.state().head.sequence + 1);
        self.free.mark_changed();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(None),
                stored = tail.next() => {
                    let Some(stored) = stored else {
                        if !tail.is_lost() {
                            return Ok(None);
                        }
                        if self.fold_anew(stop).await.is_none() {
                            return Ok(None);
                        }
                        tail = self.log.tail(CONTROL, Vec::new(), self.fleet.state().head.sequence + 1);
                        continue;
                    };
                    self.log.remember_trace(&stored);
                    if let Err(skip) = self.fleet.follow(&stored.entry()) {
                        tracing::error!(sequence = stored.sequence, %skip, "message of CONTROL is no valid event");
                        if skip == Skip::Unchained {
                            // Somebody else's message; or the log lost its tail unseen and has grown again since, and nothing
                            // that is known is a measure any more.
                            if self.fold_anew(stop).await.is_none() {
                                return Ok(None);
                            }
                            tail = self.log.tail(CONTROL, Vec::new(), self.fleet.state().head.sequence + 1);
                            continue;
                        }
                    }
                    let head = self.fleet.state().head.clone();
                    let is_elected = stored.header(HEADER_TYPE) == "LeaderElected";
                    self.pulse.send_modify(|p| {
                        p.head = head;
                        p.another_leads |= is_elected;
                    });
                }
                mail = self.inbox.recv() => match mail {
                    Some(mail) => self.take(mail)?,
                    None => return Ok(None),
                },
                Ok(()) = self.free.changed() => {
                    self.free.mark_unchanged();
                    match self.log.take_key(&holder).await {
                        Ok(Some(key)) => return Ok(Some(key)),
                        Ok(None) => {}
                        Err(error) => tracing::debug!(%error, "the leader's key cannot be had now"),
                    }
                }
            }
        }
    }

    /// Reads what is left of the log and makes the first decision of a new term. Whoever led before is refused from then on.
    async fn take_office(&mut self, tenure: &mut Tenure, stop: &CancellationToken) -> Result<Option<Ended>, ReadError> {
        let (_, end) = self.log.bounds(CONTROL).await?;
        let mut reader = self.log.read(CONTROL, Vec::new(), self.fleet.state().head.sequence + 1, end).await?;
        while let Some(stored) = reader.next().await? {
            self.log.remember_trace(&stored);
            // What else is no valid event was told by the standby, or is by `verify`.
            if self.fleet.follow(&stored.entry()) == Err(Skip::Unchained) {
                return Ok(Some(Ended::FoldAnew));
            }
        }
        let repeat_from = self.effects_through.max(end.saturating_sub(MOST_REPEATED)) + 1;
        if self.effects_through > 0 && repeat_from <= end {
            self.repeat_notifications(repeat_from, end).await?;
        }
        tenure.renew_if_due();
        if !tenure.is_held() {
            return Ok(Some(Ended::Deposed));
        }
        let expected = self.fleet.state().head.sequence;
        self.fleet.take_office(now(), self.generation);
        let turn = self.fleet.end_turn();
        let outcome = self.append_renewing(expected, &turn.events, tenure, stop).await;
        let head = self.fleet.state().head.clone();
        Ok(match outcome {
            Ok(Outcome::Stored { .. }) => {
                // What whoever led before has kept is nearer to its slot than what we would keep now.
                self.snapshot_at = head.sequence;
                self.pulse.send_modify(|p| (p.head, p.leads, p.another_leads) = (head.clone(), true, false));
                let games = self.fleet.state().games.len();
                tracing::info!(term = head.term, sequence = head.sequence, games, "leading");
                None
            }
            // Another orchestrator wrote in between, or the log changed: read it and try again.
            Ok(Outcome::Deposed | Outcome::Prefix { .. }) => Some(Ended::Deposed),
            Err(AppendError::LostTail { end, .. }) => {
                self.log_is_shorter(&head, end);
                Some(Ended::FoldAnew)
            }
            Err(AppendError::Canceled | AppendError::Empty) => Some(Ended::Stopped),
        })
    }

    /// Leads for as long as the key is held.
    async fn lead(&mut self, key: Key, stop: &CancellationToken, term: &CancellationToken) -> Result<Ended, Exit> {
        let mut tenure = Tenure::new(key);
        match self.take_office(&mut tenure, stop).await {
            Ok(None) => {}
            Ok(Some(ended)) => return Ok(ended),
            Err(error) => {
                tracing::warn!(%error, "office cannot be taken now");
                return Ok(Ended::Deposed);
            }
        }
        self.leads = true;
        let (every, schedule) = (self.config.discovery_every, self.config.schedule_every);
        spawn(
            self.tasks,
            term,
            discovery::run(self.espn.clone(), every, schedule, self.sender.clone(), self.alerter.clone()),
        );
        let mut tick_at_us = steady_us();
        loop {
            tenure.renew_if_due();
            if !tenure.is_held() {
                return Ok(Ended::Deposed);
            }
            let now_us = steady_us();
            let wake_us = self.fleet.wake_at_us().unwrap_or(i64::MAX).min(tick_at_us).min(tenure.renew_at_us);
            let wait = Duration::from_micros(u64::try_from(wake_us - now_us).unwrap_or(0));
            let first = tokio::select! {
                () = stop.cancelled() => {
                    tenure.key.give_back().await;
                    return Ok(Ended::Stopped);
                }
                mail = self.inbox.recv() => mail,
                () = tokio::time::sleep(wait) => None,
            };
            let began = Instant::now();
            if let Some(mail) = first {
                self.take(mail)?;
            }
            for _ in 1..MOST_INPUTS {
                let has_room = self.fleet.room() > ROOM_FOR_ONE;
                let Some(next) = has_room.then(|| self.inbox.try_recv().ok()).flatten() else { break };
                self.take(next)?;
            }
            let now = now();
            let is_due = self.fleet.wake_at_us().is_some_and(|at| now.steady_us >= at);
            if now.steady_us >= tick_at_us || is_due {
                tick_at_us = now.steady_us + TICK_US;
                self.others.tell(&self.me.instance, now.steady_us, &self.alerter);
                self.summarise();
                // While the log is away, ALERTS tells nothing new: the own word counts on.
                if let Some(open) = self.open.borrow().as_ref().filter(|_| *self.log_is_there.borrow()) {
                    self.fleet.know_open(now, open);
                }
                self.fleet.decide(now, Input::Tick);
            }
            histogram!("arbees_decide_seconds").record(began.elapsed());
            match self.finish(&mut tenure, stop).await {
                None => {}
                Some(ended) => return Ok(ended),
            }
        }
    }

    fn take(&mut self, mail: Mail) -> Result<(), Exit> {
        match mail {
            Mail::Input(input) if self.leads => self.fleet.decide(now(), input),
            Mail::Input(input) => self.fleet.observe(now(), &input),
            Mail::StateAsked(monitor_type) if self.leads && !self.asked.contains(&monitor_type) => {
                self.asked.push(monitor_type);
            }
            Mail::StateAsked(_) => {}
            Mail::Asked(asked) if self.leads => self.operate(asked),
            Mail::Asked(_) => {}
            Mail::Orchestrator { instance, effects_through } => {
                self.effects_through = self.effects_through.max(effects_through);
                self.others.heard(instance, steady_us());
            }
            Mail::Rival { process, started_at_us } if started_at_us > self.started_at_us => {
                let instance = &self.me.instance;
                return Err(Exit::Superseded(format!("a younger process ({process}) beats as {instance}")));
            }
            Mail::Rival { process, .. } => {
                if self.rival.as_ref() != Some(&process) {
                    tracing::warn!(process, "an older process beats under this name");
                    self.rival = Some(process);
                }
            }
        }
        Ok(())
    }

    /// Appends what the turn decided; only then, and only while the key is held, do its effects go out.
    async fn finish(&mut self, tenure: &mut Tenure, stop: &CancellationToken) -> Option<Ended> {
        let Turn { events, effects } = self.fleet.end_turn();
        if !events.is_empty()
            && let Some(ended) = self.append(&events, tenure, stop).await
        {
            return Some(ended);
        }
        if !tenure.is_held() {
            // What is in the log must be told, whoever leads now; all else is the next leader's.
            effects
                .into_iter()
                .filter(|e| matches!(e, Effect::Alert(_) | Effect::Resolve(_)))
                .for_each(|e| self.send(e));
            return Some(Ended::Deposed);
        }
        for event in &events {
            tracing::info!(subject = event.subject, "{}", event.event_type);
            summary::count(&event.event, self.fleet.state());
            self.notify(&event.event);
        }
        for effect in effects {
            self.send(effect);
        }
        if !events.is_empty() {
            self.outbox.put(Errand::Through(self.fleet.state().head.sequence));
            self.snapshot_if_due();
        }
        self.answer();
        self.answer_operators();
        None
    }

    /// Appends, and keeps the key meanwhile: to wait for a slow log is not to hang.
    async fn append_renewing(
        &self,
        expected: u64,
        events: &[Sealed],
        tenure: &mut Tenure,
        stop: &CancellationToken,
    ) -> Result<Outcome, AppendError> {
        self.pulse.send_modify(|p| p.appending_since_us = Some(steady_us()));
        let appending = self.log.append(expected, events, stop);
        tokio::pin!(appending);
        let outcome = loop {
            tokio::select! {
                outcome = &mut appending => break outcome,
                () = tokio::time::sleep(RENEW_LOOK) => {
                    tenure.renew_if_due();
                    if !tenure.is_held() {
                        gauge!("arbees_leader").set(0.0);
                    }
                }
            }
        };
        self.pulse.send_modify(|p| p.appending_since_us = None);
        outcome
    }

    async fn append(&mut self, events: &[Sealed], tenure: &mut Tenure, stop: &CancellationToken) -> Option<Ended> {
        let head = self.fleet.state().head.clone();
        let expected = head.sequence - events.len() as u64;
        match self.append_renewing(expected, events, tenure, stop).await {
            Ok(Outcome::Stored { .. }) => {
                self.pulse.send_modify(|p| p.head = head);
                None
            }
            Ok(Outcome::Prefix { count }) => {
                tracing::error!(count, of = events.len(), "only a part of a batch is in the log, folding it anew");
                Some(Ended::FoldAnew)
            }
            Err(AppendError::LostTail { end, .. }) => {
                self.log_is_shorter(&head, end);
                Some(Ended::FoldAnew)
            }
            Ok(Outcome::Deposed) => Some(Ended::Deposed),
            Err(AppendError::Canceled | AppendError::Empty) => Some(Ended::Stopped),
        }
    }
}
