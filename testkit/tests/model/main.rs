//! Lease, hand-over and leadership, checked in every order of events that a small world allows: two orchestrators, two
//! shards, one game; at most two crashes, one pause and one lost acknowledgement, at every point.
//!
//! What is the production code: the shard's [`arbees_fleet::lease::Lease`], the leader's [`arbees_fleet::silence::Silence`]
//! and [`arbees_fleet::echo::Echo`], the append protocol [`arbees_fleet::append::Append`].
//!
//! What is assumed:
//! - time goes on in steps of half a heartbeat; within a step every process that runs gets one turn, in every order. A turn
//!   is not interrupted by others unless the pause falls into it: then it stops between composing a request and the server's
//!   serving it, or between that and the answer, for any number of steps;
//! - clocks run at one rate (the margin of the lease is what drift may use up; the simulation has drift);
//! - the server is one, executes one request after the other, and stays; only answers get lost;
//! - a process that crashed comes back as a new one after a step, or as its game moves: after five;
//! - probes are never answered, no shard says goodbye, nobody asks for moves: games move off lost shards only;
//! - a batch is stored as a whole (the append protocol has property tests of its own for prefixes).

mod world;

use std::hash::Hash;
use std::time::Instant;

use arbees_fleet::settings::Settings;
use stateright::{Checker, HasDiscoveries, Model, Property};

use world::{Mind, Pending, Rules, SHARDS, Server, TICK_US, What, fold};

const PROCESSES: usize = 4;
/// Faults fall into the first steps; nothing depends on how long all was well before.
const FIRST_FAULT: u8 = 2;
/// The first step in which anything can go wrong: by then the leader trusts what it hears.
const START: u8 = 12;
/// Half steps in the longest turn.
const MOST_HALF_STEPS: u8 = 12;
/// No step is this late.
const NEVER: u8 = u8::MAX;
/// All is well so many steps after the last fault.
const PATIENCE: u8 = 22;

/// A process, in whatever state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    life: u8,
    state: Liveness,
    mind: Mind,
    pending: Option<Pending>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Liveness {
    Runs,
    /// Until this step.
    Frozen(u8),
    /// Back at this step.
    Dead(u8),
}

/// Faults that may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Budget {
    crashes: u8,
    pauses: u8,
    losses: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    tick: u8,
    /// Who has had a turn in this step.
    ran: [bool; PROCESSES],
    /// Who goes on when the others have had their turns.
    last: Option<usize>,
    server: Server,
    processes: Vec<Process>,
    left: Budget,
    last_fault: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Ends; back after so many steps.
    Crash(u8),
    /// Freezes for so many steps; for 0, it goes on in this one, after the others.
    Pause(u8),
    /// The answer gets lost.
    Lose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// The process has its turn, with the fault after so many of its half steps.
    Turn(usize, Option<(u8, Fault)>),
    Tick,
    /// No more faults: one order of turns, to the end.
    Settle,
}

/// In which order processes have their turns within a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Orders {
    Every,
    /// Shards before orchestrators.
    ShardsFirst,
    /// Orchestrators before shards, and who takes a game before who loses it.
    ShardsLast,
}

#[derive(Clone, Debug)]
struct Plane {
    rules: Rules,
    budget: Budget,
    /// Faults happen before this step; a game that is still with a dead shard is moved by the last one.
    faults_until: u8,
    until: u8,
    /// In this many steps, every order of turns is tried.
    orders_until: u8,
    orders: Orders,
    /// Without the other orchestrator nobody writes while the leader is paused: what it decided is stored late.
    has_standby: bool,
}

impl Plane {
    fn new(budget: Budget, faults_until: u8) -> Self {
        let settings = Settings::default();
        let rules = Rules {
            settings,
            fence_is_conditional: true,
            fenced_must_wait: true,
            wait_is_inherited: true,
            append_is_conditional: true,
        };
        // What was begun by the last fault is over, and so is every order of turns in it, two steps after.
        let orders_until = faults_until + 2;
        let until = orders_until + 9 + PATIENCE;
        Self { rules, budget, faults_until, until, orders_until, orders: Orders::Every, has_standby: true }
    }

    /// One half of a step of `who`: composes a request, or has it served, or hears the answer. False: its turn is over.
    fn half_step(&self, world: &mut World, who: usize) -> bool {
        let now_us = i64::from(world.tick) * TICK_US;
        let process = &mut world.processes[who];
        let me = (who, process.life);
        let composed = match process.pending.take() {
            None => match &mut process.mind {
                Mind::Shard(shard) => match shard.next(who, &world.server, now_us) {
                    Ok(request) => request,
                    Err(()) => {
                        process.state = Liveness::Dead(NEVER);
                        None
                    }
                },
                Mind::Orchestrator(o) => o.next(me, &world.server, now_us, &self.rules),
            },
            Some(pending) if pending.answer.is_none() => {
                let answer = world.server.serve(who, process.life, now_us, &pending.request, &self.rules);
                process.pending = Some(Pending { answer: Some(answer), ..pending });
                return true;
            }
            Some(pending) => match &mut process.mind {
                Mind::Shard(shard) => {
                    shard.hear(process.life, now_us, pending, &self.rules);
                    return true;
                }
                Mind::Orchestrator(o) => match o.hear(me, &world.server, now_us, pending, &self.rules) {
                    Some(request) => Some(request),
                    None => return true,
                },
            },
        };
        let goes_on = composed.is_some();
        process.pending = composed.map(|request| Pending { request, asked_us: now_us, answer: None });
        goes_on
    }

    fn turn(&self, world: &mut World, who: usize, fault: Option<(u8, Fault)>) -> bool {
        for half in 0_u8.. {
            if let Some((_, fault)) = fault.filter(|(at, _)| *at == half) {
                if !strike(world, who, half, fault) {
                    return false;
                }
                match fault {
                    Fault::Lose => {}
                    Fault::Pause(0) => return true,
                    _ => break,
                }
            }
            assert!(half < 60, "a turn ends");
            if world.processes[who].state != Liveness::Runs || !self.half_step(world, who) {
                if fault.is_some_and(|(at, _)| at > half) {
                    return false;
                }
                break;
            }
        }
        world.ran[who] = true;
        true
    }

    fn acting(world: &World) -> usize {
        let now_us = i64::from(world.tick) * TICK_US;
        let acts = |p: &&Process| {
            !matches!(p.state, Liveness::Dead(_))
                && matches!(&p.mind, Mind::Shard(s) if s.holds.is_some() && s.lease.may_act(now_us))
        };
        world.processes.iter().filter(acts).count()
    }

    fn pass_time(&self, world: &mut World) {
        world.tick += 1;
        world.ran = [false; PROCESSES];
        world.last = None;
        let now_us = i64::from(world.tick) * TICK_US;
        for who in 0..PROCESSES {
            if world.processes[who].state == Liveness::Frozen(world.tick) {
                world.processes[who].state = Liveness::Runs;
            }
            if world.processes[who].state == Liveness::Dead(world.tick) {
                let life = world.processes[who].life + 1;
                let mind = Mind::new(who, now_us, &self.rules, &world.server);
                world.processes[who] = Process { life, state: Liveness::Runs, mind, pending: None };
            }
        }
    }
}

/// The fault happens, if there is anything for it to happen to, and if it is not the same as a moment before.
fn strike(world: &mut World, who: usize, half: u8, fault: Fault) -> bool {
    world.last_fault = world.tick;
    let (tick, left, process) = (world.tick, &mut world.left, &mut world.processes[who]);
    let is_answered = process.pending.as_ref().is_some_and(|p| p.answer.is_some());
    match fault {
        Fault::Crash(_) if half > 0 && !is_answered => false,
        Fault::Pause(_) if half > 0 && process.pending.is_none() => false,
        Fault::Crash(after) => {
            left.crashes -= 1;
            process.state = Liveness::Dead(tick + after);
            process.pending = None;
            true
        }
        Fault::Pause(0) => {
            left.pauses -= 1;
            world.last = Some(who);
            true
        }
        Fault::Pause(steps) => {
            left.pauses -= 1;
            process.state = Liveness::Frozen(tick + steps);
            world.last_fault = tick + steps;
            true
        }
        Fault::Lose => {
            left.losses -= 1;
            match process.pending.as_mut().and_then(|p| p.answer.as_mut()) {
                Some(answer @ (world::Answer::Stored(_) | world::Answer::Refused)) => {
                    *answer = world::Answer::Log(0);
                    true
                }
                _ => false,
            }
        }
    }
}

impl Model for Plane {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let server = Server::default();
        let process = |who| Process {
            life: 0,
            state: if who + 1 < PROCESSES || self.has_standby { Liveness::Runs } else { Liveness::Dead(NEVER) },
            mind: Mind::new(who, 0, &self.rules, &server),
            pending: None,
        };
        let processes = (0..PROCESSES).map(process).collect();
        let mut world = World {
            tick: 0,
            ran: [false; PROCESSES],
            last: None,
            server: server.clone(),
            processes,
            left: self.budget,
            last_fault: 0,
        };
        // Until the leader trusts what it hears.
        while world.tick < START {
            for who in [2, 3, 0, 1] {
                if world.processes[who].state == Liveness::Runs {
                    self.turn(&mut world, who, None);
                }
            }
            self.pass_time(&mut world);
        }
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let since = world.tick - START;
        if since >= self.until {
            return;
        }
        if since >= self.orders_until || (world.left == self.budget && since >= FIRST_FAULT) {
            actions.push(Action::Settle);
            return;
        }
        let waiting =
            |who: &usize| !world.ran[*who] && world.processes[*who].state == Liveness::Runs && world.last != Some(*who);
        let mut next: Vec<usize> = (0..PROCESSES).filter(waiting).collect();
        if next.is_empty() {
            next.extend(world.last.filter(|who| !world.ran[*who]));
        }
        match self.orders {
            // Shards do not touch what the other one does, and whichever orchestrator is first is a step before the other.
            Orders::Every => next.retain(|who| who % 2 == 0 || !waiting(&(who - 1))),
            Orders::ShardsFirst => next.truncate(1),
            Orders::ShardsLast => drop(next.drain(..next.len().saturating_sub(1))),
        }
        if next.is_empty() {
            actions.push(Action::Tick);
        }
        for who in next {
            actions.push(Action::Turn(who, None));
            if since >= self.faults_until {
                continue;
            }
            // One that leads no more is like one that never did: when an orchestrator comes back is all the same.
            let backs: &[u8] = if who < SHARDS { &[1, 5] } else { &[1] };
            for half in 0..MOST_HALF_STEPS {
                let mut strike = |fault| actions.push(Action::Turn(who, Some((half, fault))));
                if world.left.crashes > 0 {
                    backs.iter().for_each(|back| strike(Fault::Crash(*back)));
                }
                if world.left.pauses > 0 {
                    [0, 1, 5, 9].into_iter().for_each(|steps| strike(Fault::Pause(steps)));
                }
                if world.left.losses > 0 {
                    strike(Fault::Lose);
                }
            }
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Turn(who, fault) => {
                if !self.turn(&mut next, who, fault) {
                    return None;
                }
            }
            Action::Tick => self.pass_time(&mut next),
            Action::Settle => {
                while next.tick < START + self.until && Self::acting(&next) <= 1 {
                    for who in 0..PROCESSES {
                        if !next.ran[who] && next.processes[who].state == Liveness::Runs {
                            self.turn(&mut next, who, None);
                        }
                    }
                    self.pass_time(&mut next);
                }
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one shard at most may act for the game", |_, world: &World| Self::acting(world) <= 1),
            Property::always("nobody writes after a newer leader", |_, world: &World| {
                let mut leader = None;
                let mut term = 0;
                world.server.log.iter().all(|entry| {
                    if entry.what == What::Elected {
                        (leader, term) = (Some(entry.writer), term + 1);
                    }
                    leader == Some(entry.writer) && entry.term == term
                })
            }),
            Property::always("every decision stands on the log before it, once", |_, world: &World| {
                let log = &world.server.log;
                log.iter().enumerate().all(|(at, entry)| {
                    let before = fold(&log[..at]);
                    let is_valid = match entry.what {
                        What::Elected => true,
                        What::Lost { shard } => !before.lost[shard],
                        What::Recovered { .. } => true,
                        What::Moved { from, to } => from == before.owner && to != from && before.lost[from],
                    };
                    is_valid && !log[..at].iter().any(|e| e.id == entry.id)
                })
            }),
            Property::always("who can watch it does so in the end", |plane: &Self, world: &World| {
                let runs = |who: usize| world.processes[who].state == Liveness::Runs;
                let may_be_late = world.tick < START + plane.until || world.last_fault + PATIENCE > world.tick;
                may_be_late || !(runs(0) || runs(1)) || !(runs(2) || runs(3)) || Self::acting(world) == 1
            }),
            Property::sometimes("a game moves and is watched", |_, world: &World| {
                fold(&world.server.log).owner == 1 && Self::acting(world) == 1
            }),
            Property::sometimes("a paused leader is deposed", |plane: &Self, world: &World| {
                fold(&world.server.log).term > 1 && world.left == Budget { pauses: 0, ..plane.budget }
            }),
        ]
    }
}

fn check(name: &str, plane: Plane) -> Vec<&'static str> {
    let begun = Instant::now();
    let checker = plane.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let (states, unique) = (checker.state_count(), checker.unique_state_count());
    println!("{name}: {unique} states, {states} steps, depth {}, in {:.1?}", checker.max_depth(), begun.elapsed());
    let discoveries = checker.discoveries();
    let mut broken = Vec::new();
    for property in checker.model().properties() {
        let found = discoveries.get(property.name);
        if (property.expectation == stateright::Expectation::Sometimes) == found.is_some() {
            continue;
        }
        broken.push(property.name);
        if let Some(path) = found {
            println!("{}:", property.name);
            for action in path.clone().into_actions() {
                println!("    {action:?}");
            }
            println!("{:#?}", path.last_state().server);
        }
    }
    broken
}

const fn budget(crashes: u8, pauses: u8, losses: u8) -> Budget {
    Budget { crashes, pauses, losses }
}

/// All faults within `ARBEES_MODEL_STEPS` steps (4) of the first possible one; then fewer of them over a longer time: until
/// after the game has moved. With one order of turns in each step, or with every order.
#[test]
fn the_protocol_keeps_its_rules() {
    let steps: u8 = std::env::var("ARBEES_MODEL_STEPS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    for (crashes, pauses, losses, longer, orders, has_standby) in [
        (2, 1, 1, 0, Orders::ShardsFirst, true),
        (2, 1, 0, 3, Orders::ShardsFirst, true),
        (1, 1, 1, 4, Orders::ShardsFirst, true),
        (1, 1, 0, 5, Orders::Every, true),
        (0, 1, 1, 5, Orders::Every, true),
        (2, 1, 0, 6, Orders::ShardsLast, false),
    ] {
        let plane = Plane { orders, has_standby, ..Plane::new(budget(crashes, pauses, losses), steps + longer) };
        let alone = if has_standby { "" } else { ", no standby" };
        let name = format!("{crashes} crashes, {pauses} pause, {losses} lost answers, {orders:?}{alone}");
        assert_eq!(check(&name, plane), [] as [&str; 0]);
    }
}

/// Each part of the protocol is there for a reason: without it, some order of events breaks a rule.
#[test]
fn without_any_of_its_parts_it_does_not() {
    type Plant = fn(&mut Plane);
    let planted: [(&str, Budget, u8, Plant); 5] = [
        ("a fence whatever was beaten meanwhile", budget(0, 2, 0), 8, |p| p.rules.fence_is_conditional = false),
        ("a fenced shard goes on when it has read the log", budget(1, 1, 0), 8, |p| p.rules.fenced_must_wait = false),
        ("whoever follows a shard that waits does not", budget(2, 1, 0), 10, |p| {
            p.rules.wait_is_inherited = false;
            (p.has_standby, p.orders) = (false, Orders::ShardsLast);
        }),
        ("an append wherever the log ends", budget(1, 1, 0), 8, |p| p.rules.append_is_conditional = false),
        ("a verdict before the lease is over", budget(0, 1, 0), 8, |p| p.rules.settings.lease_margin = -TICK_US),
    ];
    for (name, budget, steps, plant) in planted {
        let mut plane = Plane::new(budget, steps);
        plant(&mut plane);
        assert_ne!(check(name, plane), [] as [&str; 0], "{name}");
    }
}
