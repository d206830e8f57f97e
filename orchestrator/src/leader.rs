//! The leader's loop: take one input and all that is ready, decide, append, and only then let effects go.

use std::time::{Duration, Instant};

use arbees_core::bus::{Bus, contract};
use arbees_core::espn::Espn;
use arbees_core::exit::Exit;
use arbees_core::health::Health;
use arbees_core::log::{AppendError, Log, SNAPSHOT_EVERY};
use arbees_core::time::now_us;
use arbees_fleet::append::Outcome;
use arbees_fleet::decide::Turn;
use arbees_fleet::{Fleet, Input};
use arbees_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::beat::{Heart, Pulse};
use crate::config::Config;
use crate::inbox::{self, Mail};
use crate::outbox::{Errand, Outbox};
use crate::{beat, discovery};

/// How often time itself is an input.
const TICK: Duration = Duration::from_millis(200);
/// Room a turn must have left to take another input: the largest slate makes no more events than this.
const ROOM_FOR_ONE: usize = 400;
/// Inputs in one turn at most: what was decided must get into the log, however fast inputs come.
const MOST_INPUTS: usize = 1_000;
/// How long the tasks may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// How a turn ended.
enum Ended {
    Stored,
    /// The state decided on is not the log's: fold it anew, and go on in this generation at least.
    FoldAnew {
        generation: u64,
    },
    Stopped,
}

/// Leads until asked to stop, or until another orchestrator leads.
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
    let (sender, mut inbox) = mpsc::channel(inbox::CAPACITY);
    let tasks = TaskTracker::new();
    let ending = stop.child_token();
    let (outbox, emptying) = Outbox::new(bus.clone(), espn.clone(), sender.clone());
    let fleet = take_office(config, log, &me, 0, stop).await?;
    let Some(mut fleet) = fleet else { return Ok(()) };
    let (pulse, watching) = watch::channel(Pulse { head: fleet.state().head.clone(), appending_since: None });
    let heart =
        Heart { log: log.clone(), bus: bus.clone(), producer: me.clone(), started_at_us: now_us(), pulse: watching };
    inbox::start(log, bus, sender.clone(), &tasks, &ending).await.map_err(|e| Exit::Failed(e.to_string()))?;
    spawn(&tasks, &ending, emptying);
    spawn(&tasks, &ending, beat::run(heart));
    spawn(&tasks, &ending, discovery::run(espn.clone(), config.discovery_every, config.schedule_every, sender));
    health.ok("leader");
    let mut desk =
        Desk { log, outbox, pulse, health, snapshot_at: fleet.state().head.sequence, tasks: &tasks, asked: Vec::new() };
    let result = loop {
        match desk.lead(&mut fleet, &mut inbox, stop).await {
            Ok(Ended::Stopped) => break Ok(()),
            Ok(Ended::Stored) => {}
            Ok(Ended::FoldAnew { generation }) => match take_office(config, log, &me, generation, stop).await {
                Ok(Some(anew)) => fleet = anew,
                Ok(None) => break Ok(()),
                Err(exit) => break Err(exit),
            },
            Err(exit) => break Err(exit),
        }
    };
    ending.cancel();
    tasks.close();
    if tokio::time::timeout(STOP_LIMIT, tasks.wait()).await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
    result
}

fn spawn(tasks: &TaskTracker, stop: &CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    let stop = stop.clone();
    tasks.spawn(async move { stop.run_until_cancelled(work).await });
}

/// Folds the log and makes the first decision of a new term. Whoever led before is refused from then on.
async fn take_office(
    config: &Config,
    log: &Log,
    me: &v1::Producer,
    generation: u64,
    stop: &CancellationToken,
) -> Result<Option<Fleet>, Exit> {
    loop {
        let began = Instant::now();
        let folded = stop.run_until_cancelled(log.fold(None)).await;
        let state = match folded {
            None => return Ok(None),
            Some(Ok(state)) => state,
            Some(Err(error)) => {
                tracing::warn!(%error, "log cannot be folded now, trying again");
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
        };
        let expected = state.head.sequence;
        let mut fleet = Fleet::new(state, config.settings.clone(), log.names().clone(), me.clone(), now_us());
        fleet.take_office(now_us(), generation);
        let turn = fleet.end_turn();
        match log.append(expected, &turn.events, stop).await {
            Ok(Outcome::Stored { .. }) => {
                let head = &fleet.state().head;
                let (games, ms) = (fleet.state().games.len(), began.elapsed().as_millis());
                tracing::info!(term = head.term, sequence = head.sequence, games, ms, "leading");
                return Ok(Some(fleet));
            }
            // Another orchestrator wrote in between, or the log changed: read it and try again.
            Ok(Outcome::Deposed | Outcome::Prefix { .. }) | Err(AppendError::LostTail { .. }) => {}
            Err(AppendError::Canceled | AppendError::Empty) => return Ok(None),
        }
    }
}

/// What the loop works with.
struct Desk<'a> {
    log: &'a Log,
    outbox: Outbox,
    pulse: watch::Sender<Pulse>,
    health: &'a Health,
    /// Sequence of the last snapshot.
    snapshot_at: u64,
    tasks: &'a TaskTracker,
    /// Kinds of services that asked for their start-up state in this turn.
    asked: Vec<String>,
}

impl Desk<'_> {
    /// Turns of the loop, until one ends other than well.
    async fn lead(
        &mut self,
        fleet: &mut Fleet,
        inbox: &mut mpsc::Receiver<Mail>,
        stop: &CancellationToken,
    ) -> Result<Ended, Exit> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let first = tokio::select! {
                () = stop.cancelled() => return Ok(Ended::Stopped),
                _ = ticks.tick() => Mail::Input(Input::Tick),
                mail = inbox.recv() => match mail {
                    Some(mail) => mail,
                    None => return Ok(Ended::Stopped),
                },
            };
            self.take(fleet, first);
            for _ in 1..MOST_INPUTS {
                let Some(next) = (fleet.room() > ROOM_FOR_ONE).then(|| inbox.try_recv().ok()).flatten() else { break };
                self.take(fleet, next);
            }
            match self.finish(fleet, stop).await? {
                Ended::Stored => {}
                other => return Ok(other),
            }
        }
    }

    fn take(&mut self, fleet: &mut Fleet, mail: Mail) {
        match mail {
            Mail::Input(input) => fleet.decide(now_us(), input),
            Mail::StateAsked(monitor_type) => self.asked.push(monitor_type),
        }
    }

    /// Answers those who asked what there is, out of what is in the log.
    fn answer(&mut self, fleet: &Fleet) {
        for monitor_type in self.asked.drain(..) {
            let owned = fleet.owned().filter_map(|(_, g)| Some((g, g.owner.as_ref()?)));
            let all: Vec<_> = owned.map(|(g, o)| contract::assignment(&g.info, o.shard.as_str(), o.since_us)).collect();
            self.outbox.put(Errand::Say {
                channel: contract::state_response_channel(&monitor_type),
                payload: contract::state_response(&monitor_type, &all),
            });
        }
    }

    /// Appends what the turn decided; only then do its effects go out.
    async fn finish(&mut self, fleet: &mut Fleet, stop: &CancellationToken) -> Result<Ended, Exit> {
        let Turn { events, effects } = fleet.end_turn();
        if !events.is_empty() {
            let head = fleet.state().head.clone();
            let expected = head.sequence - events.len() as u64;
            self.pulse.send_modify(|p| p.appending_since = Some(Instant::now()));
            let outcome = self.log.append(expected, &events, stop).await;
            match outcome {
                Ok(Outcome::Stored { .. }) => {}
                Ok(Outcome::Prefix { count }) => {
                    tracing::error!(count, of = events.len(), "only a part of a batch is in the log, folding it anew");
                    return Ok(Ended::FoldAnew { generation: head.generation });
                }
                Err(AppendError::LostTail { expected, end }) => {
                    tracing::error!(
                        expected,
                        end,
                        "the log has lost its tail, going on from its end in a new generation"
                    );
                    return Ok(Ended::FoldAnew { generation: head.generation + 1 });
                }
                Ok(Outcome::Deposed) => {
                    self.health.failed("leader", "another orchestrator leads");
                    return Err(Exit::Superseded("another orchestrator leads".to_owned()));
                }
                Err(AppendError::Canceled | AppendError::Empty) => return Ok(Ended::Stopped),
            }
            self.pulse.send_replace(Pulse { head, appending_since: None });
            for event in &events {
                tracing::info!(subject = event.subject, "{}", event.event_type);
            }
            self.snapshot_if_due(fleet);
        }
        for effect in effects {
            self.outbox.put(Errand::Effect(effect));
        }
        self.answer(fleet);
        Ok(Ended::Stored)
    }

    fn snapshot_if_due(&mut self, fleet: &Fleet) {
        let sequence = fleet.state().head.sequence;
        if sequence - self.snapshot_at < SNAPSHOT_EVERY {
            return;
        }
        self.snapshot_at = sequence;
        let (log, state) = (self.log.clone(), fleet.state().clone());
        self.tasks.spawn(async move {
            match log.save_snapshot(&state).await {
                Ok(()) => tracing::info!(sequence, "snapshot kept"),
                Err(error) => tracing::warn!(sequence, %error, "snapshot not kept"),
            }
        });
    }
}
