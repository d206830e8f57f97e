//! Why a game is where it is: each time it changed hands, with the chain of causes behind it, who else was thought of, and who
//! was told.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use arbees_core::alerts::incident_of;
use arbees_core::log::{ALERTS, CONTROL, Stored};
use arbees_proto::{EventId, GameId, Payload, ServiceKind, v1};
use schemars::JsonSchema;
use serde::Serialize;

use super::story::{Line, incidents, line_of};
use super::{AuditError, Source};

/// Owners that are told of: the last ones.
const MOST_STINTS: usize = 50;
/// Causes that are followed back from one decision.
const MOST_CAUSES: usize = 8;
/// People are told of what befell a shard within this, or not of that.
const TOLD_WITHIN: i64 = 3_600_000_000;
/// An alert is in its stream this long after the decision it is about, at the latest.
const RAISED_WITHIN: i64 = 10_000_000;

/// One shard's time with the game.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Stint {
    pub shard: String,
    pub epoch: u64,
    /// Sequence of the decision, and who led then.
    pub sequence: u64,
    pub term: u64,
    pub leader: String,
    /// From the decision on, in microseconds since the Unix epoch.
    pub from_us: i64,
    pub confirmed_us: Option<i64>,
    /// None: it lasts, or lasted at the moment asked for.
    pub until_us: Option<i64>,
    /// Who had it before; none: nobody.
    pub before: Option<String>,
    pub cause: String,
    pub rule: String,
    /// What led to the decision, the last cause first.
    pub because: Vec<Line>,
    /// The best candidates with their scores, best first.
    #[schemars(with = "Vec<serde_json::Map<String, serde_json::Value>>")]
    pub candidates: Vec<v1::Candidate>,
    /// How many shards were passed over, by why.
    #[schemars(with = "Vec<serde_json::Map<String, serde_json::Value>>")]
    pub rejections: Vec<v1::Rejection>,
    /// What people were told of what befell the shard before.
    pub told: Vec<Line>,
}

/// A game and everybody who ever had it, the last one first.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Explanation {
    pub game: String,
    pub home: String,
    pub away: String,
    pub phase: String,
    /// CONTROL up to here.
    pub sequence: u64,
    /// Since when it waits for a shard.
    pub waits_since_us: Option<i64>,
    pub stints: Vec<Stint>,
    /// Older ones that are not told.
    pub left_out: usize,
}

/// Events by their ids, with their sequences.
type Known = BTreeMap<Vec<u8>, (u64, v1::Event)>;

/// Explains `game` with what had happened up to `sequence`.
///
/// # Errors
/// [`AuditError::Unknown`] for a game of which nothing is known by then.
pub async fn explain(source: &Source, game: &GameId, sequence: u64) -> Result<Explanation, AuditError> {
    let is_now = sequence == source.end().await?;
    let filters = source.names().game(&game.to_string());
    let mut known = Known::new();
    let events = events(source, CONTROL, &filters, sequence).await?;
    if events.is_empty() {
        return Err(AuditError::Unknown(game.to_string()));
    }
    let mut explained = Explanation {
        game: game.to_string(),
        home: String::new(),
        away: String::new(),
        phase: "scheduled".to_owned(),
        sequence,
        waits_since_us: None,
        stints: Vec::new(),
        left_out: 0,
    };
    for (at, event) in events {
        explained.take(at, &event);
        known.insert(event.id.clone(), (at, event));
    }
    explained.stints.reverse();
    explained.left_out = explained.stints.len().saturating_sub(MOST_STINTS);
    explained.stints.truncate(MOST_STINTS);
    let elected = self::events(source, CONTROL, &[source.names().leader()], sequence).await?;
    // What people were told after the moment that is asked about is none of it.
    let until_us = source.time_at_or_before(sequence, 0).await?.1.filter(|_| !is_now).unwrap_or(i64::MAX);
    let mut alerts = BTreeMap::new();
    for kind in ["shard_lost", "breaker_opened"] {
        let mut all = self::events(source, ALERTS, &[source.names().alert(kind)], super::ALL).await?;
        all.retain(|(_, event)| event.occurred_at_us <= until_us);
        alerts.insert(kind, all);
    }
    for stint in &mut explained.stints {
        stint.leader = leader_at(&elected, stint.sequence);
        stint.because = causes(source, &mut known, stint).await?;
        stint.told = told(&alerts, stint);
    }
    Ok(explained)
}

impl Explanation {
    fn take(&mut self, sequence: u64, event: &v1::Event) {
        let at = event.occurred_at_us;
        match &event.payload {
            Some(Payload::GameDiscovered(e)) => {
                let name = |t: Option<&v1::Team>| t.map(|t| t.name.clone()).unwrap_or_default();
                let info = e.game.clone().unwrap_or_default();
                (self.home, self.away) = (name(info.home.as_ref()), name(info.away.as_ref()));
            }
            Some(Payload::GameWentLive(_) | Payload::GameResumed(_)) => "live".clone_into(&mut self.phase),
            Some(Payload::GameSuspended(_)) => "suspended".clone_into(&mut self.phase),
            Some(Payload::GamePostponed(_)) => self.over("postponed"),
            Some(Payload::GameCanceled(_)) => self.over("canceled"),
            Some(Payload::GameFinished(_)) => self.over("finished"),
            Some(Payload::GameQueued(_)) => self.waits_since_us = Some(at),
            Some(Payload::GameAssigned(e)) => self.begin(sequence, event, &e.shard, None),
            Some(Payload::GameReassigned(e)) => self.begin(sequence, event, &e.shard, Some(e.from.clone())),
            Some(Payload::GameReleased(_)) => self.end(at),
            Some(Payload::AssignmentConfirmed(e)) => {
                self.waits_since_us = None;
                if let Some(stint) = self.stints.last_mut().filter(|s| s.epoch == e.epoch) {
                    stint.confirmed_us.get_or_insert(at);
                }
            }
            _ => {}
        }
    }

    fn over(&mut self, phase: &str) {
        phase.clone_into(&mut self.phase);
        self.waits_since_us = None;
    }

    fn end(&mut self, at: i64) {
        if let Some(stint) = self.stints.last_mut() {
            stint.until_us.get_or_insert(at);
        }
    }

    fn begin(&mut self, sequence: u64, event: &v1::Event, shard: &str, before: Option<String>) {
        let at = event.occurred_at_us;
        self.end(at);
        self.waits_since_us = None;
        let reason = event.reason.clone().unwrap_or_default();
        self.stints.push(Stint {
            shard: shard.to_owned(),
            epoch: arbees_proto::Epoch::new(event.generation, sequence).0,
            sequence,
            term: event.term,
            leader: String::new(),
            from_us: at,
            confirmed_us: None,
            until_us: None,
            before,
            cause: reason.cause,
            rule: reason.rule,
            because: Vec::new(),
            candidates: reason.candidates,
            rejections: reason.rejections,
            told: Vec::new(),
        });
    }
}

/// The events that `filters` match up to `to`.
pub(super) async fn events(
    source: &Source,
    stream: &str,
    filters: &[String],
    to: u64,
) -> Result<Vec<(u64, v1::Event)>, AuditError> {
    let mut events = Vec::new();
    let keep = |stored: Stored| {
        if let Ok(event) = stored.event() {
            events.push((stored.sequence, event));
        }
        ControlFlow::Continue(())
    };
    source.read(stream, filters, 1, to, keep).await?;
    Ok(events)
}

fn leader_at(elected: &[(u64, v1::Event)], sequence: u64) -> String {
    let name = |event: &v1::Event| match &event.payload {
        Some(Payload::LeaderElected(e)) => Some(e.instance.clone()),
        _ => None,
    };
    let before = elected.iter().rev().filter(|(at, _)| *at < sequence);
    before.filter_map(|(_, event)| name(event)).next().unwrap_or_default()
}

/// What led to the decision: each event names the one before. What is not about the game is about the shard that had it, the
/// fleet, or an operator's word.
async fn causes(source: &Source, known: &mut Known, stint: &Stint) -> Result<Vec<Line>, AuditError> {
    if let Some(before) = &stint.before {
        let names = source.names();
        let mut filters = vec![names.service(ServiceKind::Shard, before), names.fleet()];
        filters.push(names.operators());
        for (at, event) in events(source, CONTROL, &filters, stint.sequence).await? {
            known.insert(event.id.clone(), (at, event));
        }
    }
    let decision = known.values().find(|(at, _)| *at == stint.sequence);
    let Some(mut next) = decision.map(|(_, event)| event.causation_id.clone()) else { return Ok(Vec::new()) };
    let mut because = Vec::new();
    while let Some((at, event)) = known.get(&next).filter(|_| because.len() < MOST_CAUSES) {
        because.push(line_of(*at, event));
        next.clone_from(&event.causation_id);
    }
    // A brake that was on explains why it took so long.
    let brake = |(_, event): &&(u64, v1::Event)| {
        matches!(event.payload, Some(Payload::BrakeEngaged(_) | Payload::BrakeReleased(_)))
    };
    let last = known.values().filter(|(at, _)| *at < stint.sequence).filter(brake).max_by_key(|(at, _)| *at);
    if let Some((at, event)) = last.filter(|(_, e)| matches!(e.payload, Some(Payload::BrakeEngaged(_)))) {
        because.push(line_of(*at, event));
    }
    if because.is_empty() && EventId::from_bytes(&next).is_some() {
        because.push(heartbeat(&next));
    }
    Ok(because)
}

/// A cause that is no event of CONTROL: a heartbeat, of which HEARTBEATS may still hold the bytes.
fn heartbeat(id: &[u8]) -> Line {
    let event = v1::Event { id: id.to_vec(), ..v1::Event::default() };
    let at_us = EventId::from_bytes(id).map_or(0, |id| id.millis() * 1_000);
    Line { at_us, event_type: "Heartbeat".to_owned(), text: "a heartbeat".to_owned(), ..line_of(0, &event) }
}

/// What people were told of what befell the shard that had the game before.
fn told(alerts: &BTreeMap<&str, Vec<(u64, v1::Event)>>, stint: &Stint) -> Vec<Line> {
    let Some(before) = &stint.before else { return Vec::new() };
    let mut lines = Vec::new();
    for (kind, all) in alerts {
        // An operator's word needs no alert.
        let is_cause = match *kind {
            "shard_lost" => stint.because.iter().any(|l| l.event_type == "ServiceLost"),
            _ => stint.because.iter().any(|l| l.event_type == "CircuitOpened"),
        };
        if !is_cause {
            continue;
        }
        let incident = incident_of(kind, before);
        let about =
            |event: &v1::Event| event.payload.as_ref().is_some_and(|p| incidents(p).contains(&incident.as_str()));
        let all: Vec<_> = all.iter().filter(|(_, event)| about(event)).collect();
        // It is raised right after the decision about the shard, and so before or after the game's own move.
        let raised = |(_, event): &&(u64, v1::Event)| matches!(event.payload, Some(Payload::AlertRaised(_)));
        let is_its = |e: &v1::Event| (e.occurred_at_us - stint.from_us).abs() < TOLD_WITHIN;
        let by_then = |e: &v1::Event| e.occurred_at_us <= stint.from_us + RAISED_WITHIN;
        let Some(first) = all.iter().rposition(|e| raised(e) && by_then(&e.1) && is_its(&e.1)) else { continue };
        let next = all.iter().skip(first + 1).position(raised).map_or(all.len(), |n| first + 1 + n);
        lines.extend(all[first..next].iter().map(|(at, event)| line_of(*at, event)));
    }
    lines
}
