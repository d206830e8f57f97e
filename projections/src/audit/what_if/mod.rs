//! What other settings would have done: recorded heartbeats, slates and operators' words are fed to the leader's own mind, and
//! what comes of it is counted beside what happened.
//!
//! A replay knows what was recorded and no more. Services that beat over Redis alone left no heartbeats: they are taken to have
//! beaten until the silence that they were declared lost for. A shard that misses no beat takes up what it is given a moment later,
//! unless it left that very game out in truth. Whoever is asked whether it is there does not answer, unless its silence was judged by
//! nobody though it lasted for long enough. One leader leads throughout, and has listened for long enough to judge when it begins.

mod measure;
mod recording;
mod replayed;
#[cfg(test)]
mod samples;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;

use arbees_core::log::{ALERTS, CONTROL, HEARTBEATS, Log, Stored};
use arbees_fleet::decide::Now;
use arbees_fleet::{SECOND, Settings};
use arbees_proto::{Payload, v1};
use serde::Serialize;

use self::measure::Measure;
use self::recording::{News, Recording};
use self::replayed::Replayed;
use super::{AuditError, Moment, PROGRESS_EVERY, Source, sequence_at};

/// How often time itself is an input, as for a leader.
const TICK: i64 = SECOND / 5;
/// So long before the beginning a replayed leader listens: whoever beats has beaten by then.
const LISTENS: i64 = 15 * SECOND;
/// Heartbeats are read so many intervals ahead at least, for whoever misses two is not there.
const AHEAD: i64 = 3;
/// How often a league's whole slate is read.
const SLATE_EVERY: i64 = 30 * SECOND;

/// Kinds of alerts that the leader's mind alone raises.
const KINDS: [&str; 9] = [
    "all_shards_degraded",
    "all_shards_unhealthy",
    "brake_engaged",
    "breaker_opened",
    "duplicate_instance",
    "external_dependency",
    "no_healthy_shards",
    "no_market_discovery",
    "shard_lost",
];

/// A game that moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Move {
    pub at_us: i64,
    pub game: String,
    pub from: String,
    pub to: String,
    pub why: String,
}

/// What decisions came to. Times in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Under which settings; empty: what happened.
    pub name: String,
    pub moves: Vec<Move>,
    /// Shards declared lost.
    pub lost: u64,
    /// Of those, how many beat again under the same process: they were alive.
    pub came_back: u64,
    pub braked: u64,
    /// Game-seconds in play with nobody who watches, and of which game the most.
    pub unwatched_us: i64,
    pub worst: Option<(String, i64)>,
    /// The longest time at a stretch, of any game.
    pub longest_us: i64,
    /// Incidents raised, by kind.
    pub alerts: BTreeMap<String, u64>,
    /// Operators' requests that could not be done there.
    pub refused: Vec<String>,
}

impl Outcome {
    /// Takes in a decision.
    fn count(&mut self, at_us: i64, event: &v1::Event) {
        match &event.payload {
            Some(Payload::GameReassigned(e)) => self.moves.push(Move {
                at_us,
                game: e.game.as_ref().map(|g| g.id.clone()).unwrap_or_default(),
                from: e.from.clone(),
                to: e.shard.clone(),
                why: event.reason.as_ref().map(|r| format!("{} ({})", r.cause, r.rule)).unwrap_or_default(),
            }),
            Some(Payload::ServiceLost(e)) if e.kind == "shard" => self.lost += 1,
            Some(Payload::ServiceRecovered(e)) if e.kind == "shard" && e.from == "dead" => self.came_back += 1,
            Some(Payload::BrakeEngaged(_)) => self.braked += 1,
            _ => {}
        }
    }

    fn raised(&mut self, kind: &str) {
        if KINDS.contains(&kind) {
            *self.alerts.entry(kind.to_owned()).or_default() += 1;
        }
    }

    fn measured(&mut self, measure: &Measure) {
        self.unwatched_us = measure.totals().values().sum();
        self.longest_us = measure.longest_us();
        let worst = measure.totals().iter().max_by_key(|(_, us)| **us);
        self.worst = worst.map(|(game, us)| (game.to_string(), *us));
    }
}

/// What happened, beside what would have.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    pub from_us: i64,
    pub until_us: i64,
    /// The first heartbeat that is kept.
    pub kept_from_us: i64,
    pub heartbeats: u64,
    pub happened: Outcome,
    pub replayed: Vec<Outcome>,
}

/// Replays what is recorded from one moment to another under the settings that were in force and under those of a policy. What is
/// before the first heartbeat that is kept cannot be replayed: it begins there. Heartbeats come as they were recorded, whatever
/// interval the policy names. `progress` is told how many of them were replayed, of how many.
///
/// # Errors
/// When a moment is beyond the end, no heartbeat is kept, or the streams cannot be read whole.
pub async fn what_if(
    log: &Log,
    as_set: &Settings,
    policy: &Settings,
    from: Moment,
    to: Moment,
    progress: impl Fn(u64, u64),
) -> Result<Compared, AuditError> {
    let source = Source::Log(log.clone());
    let (_, last) = log.bounds(HEARTBEATS).await?;
    let (Some(first), Some(newest)) = (log.first_from(HEARTBEATS, 1).await?, log.first_from(HEARTBEATS, last).await?)
    else {
        return Err(AuditError::NoHeartbeats);
    };
    let (kept_from_us, newest_us) = (stored_us(&first), stored_us(&newest));
    let earliest_us = kept_from_us + LISTENS;
    // The events that had happened by the beginning, and by the end.
    let (before, from_us) = match time_of(&source, from).await? {
        (_, at_us) if at_us < earliest_us => (sequence_at(&source, Moment::Time(earliest_us)).await?, earliest_us),
        found => found,
    };
    let (end, until_us) = match time_of(&source, to).await? {
        (_, at_us) if at_us > newest_us => (source.end().await?, newest_us),
        found => found,
    };
    if before > end || from_us >= until_us {
        return Err(AuditError::Backwards);
    }
    let state = source.fold(before).await?;
    let mut control = Vec::new();
    let keep = |stored| {
        control.push(stored);
        ControlFlow::Continue(())
    };
    source.read(CONTROL, &[], before + 1, end, keep).await?;
    let start = at(from_us - LISTENS);
    let policy =
        Settings { log_interval: as_set.log_interval, redis_interval: as_set.redis_interval, ..policy.clone() };
    let both = [("as set", as_set), ("with the policy", &policy)];
    let mut replayed =
        both.map(|(name, settings)| Replayed::new(name, state.clone(), settings, log.names().clone(), start));
    let mut happened = Outcome::default();
    let mut open = BTreeSet::new();
    let alerts = |stored: Stored| {
        let (at_us, event) = (stored_us(&stored), stored.event().ok());
        // A shard tells of some of these by itself.
        let is_leaders = |e: &v1::Event| e.producer.as_ref().is_some_and(|p| p.service == "orchestrator");
        match event.filter(is_leaders).and_then(|e| e.payload) {
            Some(Payload::AlertRaised(raised)) if at_us < from_us => drop(open.insert(raised.incident)),
            Some(Payload::AlertResolved(over)) if at_us < from_us => drop(open.remove(&over.incident)),
            Some(Payload::AlertRaised(raised)) if at_us <= until_us => happened.raised(&raised.kind),
            _ => {}
        }
        ControlFlow::Continue(())
    };
    source.read(ALERTS, &[], 1, super::ALL, alerts).await?;
    let mut film = Film {
        recording: Recording::new(state, control, as_set, until_us),
        happened,
        open,
        to_come: VecDeque::new(),
        // And so far that it is known whether a silence was one to be judged.
        ahead_us: (AHEAD * as_set.log_interval).max(as_set.log_timeout() + SECOND),
        measure: Measure::new(from_us),
        from_us,
        news: News::default(),
        tick_us: from_us,
        slate_us: from_us,
        has_begun: false,
    };
    let mut heartbeats = 0;
    let (begin, of) = (first_stored_after(log, first.sequence, last, from_us - LISTENS).await?, last);
    let beat = |stored: Stored| {
        let now_us = stored_us(&stored);
        if now_us > until_us {
            // These only tell who is still there at the end.
            film.will_beat(now_us, &stored);
            return if now_us > until_us + film.ahead_us { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        }
        heartbeats += u64::from(now_us >= from_us);
        if stored.sequence.is_multiple_of(PROGRESS_EVERY) {
            progress(stored.sequence - begin, of - begin);
        }
        film.beat(now_us, &stored, &mut replayed);
        ControlFlow::Continue(())
    };
    source.read(HEARTBEATS, &[], begin, last, beat).await?;
    film.play(i64::MAX, &mut replayed);
    film.run_to(until_us, &mut replayed);
    let Film { mut happened, mut measure, recording, .. } = film;
    measure.look(until_us, recording.state(), recording.beats());
    measure.end(until_us);
    happened.measured(&measure);
    let replayed = replayed.into_iter().map(|r| r.finish(until_us)).collect();
    Ok(Compared { from_us, until_us, kept_from_us, heartbeats, happened, replayed })
}

/// When the server stored it.
const fn stored_us(stored: &Stored) -> i64 {
    stored.stored_at_ns / 1_000
}

/// Heartbeats and decisions are played by the clock of the server that stored them. What the events themselves tell is by their
/// leader's.
const fn at(us: i64) -> Now {
    Now { wall_us: us, steady_us: us }
}

/// The last event that had happened by `moment`, and when that was.
async fn time_of(source: &Source, moment: Moment) -> Result<(u64, i64), AuditError> {
    let sequence = sequence_at(source, moment).await?;
    let at_us = match moment {
        Moment::Time(at_us) => at_us,
        Moment::Now => i64::MAX,
        Moment::Sequence(sequence) => source.time_at_or_before(sequence, 0).await?.1.unwrap_or(0),
    };
    Ok((sequence, at_us))
}

/// The first message of HEARTBEATS from `first` to `last` that was stored at `at_us` or later.
async fn first_stored_after(log: &Log, first: u64, last: u64, at_us: i64) -> Result<u64, AuditError> {
    let (mut before, mut after) = (first - 1, last);
    while after - before > 1 {
        let middle = before + (after - before) / 2;
        // The stream lets go of its oldest meanwhile.
        match log.first_from(HEARTBEATS, middle).await? {
            Some(stored) if stored_us(&stored) < at_us => before = stored.sequence.min(after - 1),
            _ => after = middle,
        }
    }
    Ok(after)
}

/// What was recorded, as it is played, with the count of what happened.
struct Film {
    recording: Recording,
    happened: Outcome,
    measure: Measure,
    from_us: i64,
    /// Incidents that lasted when it began.
    open: BTreeSet<String>,
    /// Heartbeats that were read and not yet played, and for how long they wait.
    to_come: VecDeque<(i64, u64, v1::Event)>,
    ahead_us: i64,
    /// What came since the last tick.
    news: News,
    /// The next tick.
    tick_us: i64,
    /// The next reading of whole slates.
    slate_us: i64,
    has_begun: bool,
}

impl Film {
    /// Plays all ticks up to `to_us`, and what was decided meanwhile.
    fn run_to(&mut self, to_us: i64, replayed: &mut [Replayed]) {
        while self.tick_us <= to_us {
            let now = at(self.tick_us);
            if !self.has_begun {
                self.has_begun = true;
                replayed.iter_mut().for_each(|r| r.begin(now, &self.open, &self.recording));
            }
            self.hear_to(self.tick_us);
            let mut news = std::mem::take(&mut self.news);
            if self.tick_us >= self.slate_us {
                self.slate_us += SLATE_EVERY;
                news.reports.extend(self.recording.slate());
            }
            for one in replayed.iter_mut() {
                one.run_to(self.tick_us, &self.recording);
                one.tick(now, &news, &self.recording);
            }
            self.measure.look(self.tick_us, self.recording.state(), self.recording.beats());
            self.tick_us += TICK;
        }
    }

    /// Plays CONTROL up to `to_us`.
    fn hear_to(&mut self, to_us: i64) {
        let news = self.recording.run_to(to_us);
        for (at_us, event) in &news.decided {
            self.happened.count(*at_us, event);
        }
        self.news.reports.extend(news.reports);
        self.news.asked.extend(news.asked);
        self.news.heard.extend(news.heard);
    }

    /// Takes in a heartbeat that is to come, and plays those that are old enough.
    fn beat(&mut self, now_us: i64, stored: &Stored, replayed: &mut [Replayed]) {
        if let Some(event) = self.will_beat(now_us, stored) {
            self.to_come.push_back((now_us, stored.sequence, event));
        }
        self.play(now_us - self.ahead_us, replayed);
    }

    /// Notes who will beat, if it is a valid heartbeat.
    fn will_beat(&mut self, now_us: i64, stored: &Stored) -> Option<v1::Event> {
        let event = stored.event().ok()?;
        self.recording.will_beat(now_us, &event);
        Some(event)
    }

    /// Plays all heartbeats up to `to_us`.
    fn play(&mut self, to_us: i64, replayed: &mut [Replayed]) {
        while self.to_come.front().is_some_and(|(at_us, ..)| *at_us <= to_us) {
            let Some((at_us, sequence, event)) = self.to_come.pop_front() else { break };
            self.run_to(at_us, replayed);
            self.play_one(at_us, sequence, &event, replayed);
        }
    }

    fn play_one(&mut self, now_us: i64, sequence: u64, event: &v1::Event, replayed: &mut [Replayed]) {
        let is_before = now_us < self.from_us;
        // What a heartbeat tells is held against what was so by then.
        self.hear_to(now_us);
        // Until then the sender had not beaten.
        if !is_before {
            replayed.iter_mut().for_each(|one| one.run_to(now_us, &self.recording));
        }
        self.recording.beat(now_us, event);
        for one in replayed.iter_mut() {
            if is_before {
                one.listen(at(now_us), event, sequence);
            } else {
                one.beat(at(now_us), event, sequence, &self.recording);
            }
        }
    }
}
