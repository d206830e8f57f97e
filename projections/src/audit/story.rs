//! An event as a line that people read.

use arbees_core::log::Stored;
use arbees_proto::{EventId, Payload, subject, v1};
use schemars::JsonSchema;
use serde::Serialize;

/// One event, told.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Line {
    pub sequence: u64,
    /// Microseconds since the Unix epoch.
    pub at_us: i64,
    pub event_type: String,
    /// What happened, in a sentence.
    pub text: String,
    /// Why, and by which rule; empty where nothing was decided.
    pub cause: String,
    pub rule: String,
    pub event_id: String,
    /// The event or heartbeat that led to it; empty: none did.
    pub causation_id: String,
}

/// The event of `stored`, told; none when it is no event.
#[must_use]
pub fn line(stored: &Stored) -> Option<Line> {
    let event = stored.event().ok()?;
    Some(line_of(stored.sequence, &event))
}

/// `event` at `sequence`, told.
#[must_use]
pub fn line_of(sequence: u64, event: &v1::Event) -> Line {
    let id = |bytes: &[u8]| EventId::from_bytes(bytes).map(|id| id.to_string()).unwrap_or_default();
    let reason = event.reason.clone().unwrap_or_default();
    Line {
        sequence,
        at_us: event.occurred_at_us,
        event_type: event.payload.as_ref().map_or("nothing", subject::type_name).to_owned(),
        text: event.payload.as_ref().map(text).unwrap_or_default(),
        cause: reason.cause,
        rule: reason.rule,
        event_id: id(&event.id),
        causation_id: id(&event.causation_id),
    }
}

/// The incidents that an event of ALERTS is about.
#[must_use]
pub fn incidents(payload: &Payload) -> Vec<&str> {
    match payload {
        Payload::AlertRaised(e) => vec![&e.incident],
        Payload::AlertResolved(e) => vec![&e.incident],
        Payload::AlertSuppressed(e) => vec![&e.incident],
        Payload::AlertAcknowledged(e) => vec![&e.incident],
        Payload::AlertDelivered(e) => e.incidents.iter().map(String::as_str).collect(),
        Payload::AlertDeliveryFailed(e) => e.incidents.iter().map(String::as_str).collect(),
        _ => Vec::new(),
    }
}

fn game(game: Option<&v1::Game>) -> &str {
    game.map_or("?", |g| g.id.as_str())
}

fn teams(game: Option<&v1::Game>) -> String {
    let name = |team: Option<&v1::Team>| team.map_or("?", |t| t.name.as_str()).to_owned();
    game.map(|g| format!("{} at {}", name(g.away.as_ref()), name(g.home.as_ref()))).unwrap_or_default()
}

fn service(service: Option<&v1::Service>) -> String {
    service.map_or_else(|| "?".to_owned(), |s| format!("{} {}", s.kind, s.instance))
}

#[allow(clippy::cast_precision_loss)]
fn seconds(us: i64) -> f64 {
    us as f64 / 1e6
}

/// What happened, in a sentence.
#[must_use]
pub fn text(payload: &Payload) -> String {
    match payload {
        Payload::LeaderElected(e) => format!("{} leads", e.instance),
        Payload::GameDiscovered(e) => {
            format!("{} is made known: {}", game(e.game.as_ref()), teams(e.game.as_ref()))
        }
        Payload::GameWentLive(e) => format!("{} is live", e.game),
        Payload::GameSuspended(e) => format!("{} is suspended ({})", e.game, e.status),
        Payload::GameResumed(e) => format!("{} goes on", e.game),
        Payload::GamePostponed(e) => format!("{} is postponed ({})", e.game, e.status),
        Payload::GameCanceled(e) => format!("{} is canceled ({})", e.game, e.status),
        Payload::GameFinished(e) => format!("{} is over ({})", e.game, e.status),
        Payload::GameQueued(e) => format!("{} waits: no shard may take it", e.game),
        Payload::MarketsMatched(e) => {
            let count = e.markets.as_ref().map_or(0, |m| m.by_type.len());
            format!("{} has {count} kind(s) of market", e.game)
        }
        Payload::GamePinned(e) => format!("{} is pinned to {}", e.game, e.shard),
        Payload::GameUnpinned(e) => format!("{} is pinned no more", e.game),
        Payload::GameAssigned(e) => format!("{} is given to {}", game(e.game.as_ref()), e.shard),
        Payload::GameReassigned(e) => format!("{} moves from {} to {}", game(e.game.as_ref()), e.from, e.shard),
        Payload::GameReleased(e) => format!("{} is taken from {}", e.game, e.shard),
        Payload::AssignmentConfirmed(e) => format!("{} watches {}", e.shard, game(e.game.as_ref())),
        Payload::AssignmentAmended(e) => format!("{} is told more of {}", e.shard, game(e.game.as_ref())),
        Payload::AssignmentFailed(e) => {
            format!("{} does not take up {} ({} in a row)", e.shard, e.game, e.failures)
        }
        Payload::ServiceRegistered(e) => format!("{} is known", service(e.service.as_ref())),
        Payload::ServiceRestarted(e) => format!("{} has restarted", service(e.service.as_ref())),
        Payload::ServiceStatusChanged(e) => {
            let checks =
                if e.failed_checks.is_empty() { String::new() } else { format!(": {}", e.failed_checks.join(", ")) };
            format!("{} {} was {} and is {}{checks}", e.kind, e.instance, e.from, e.to)
        }
        Payload::ServiceLost(e) => {
            let (kind, name, silent) = (&e.kind, &e.instance, seconds(e.silent_us));
            let beat = match (e.heartbeat_sequence, e.fence_sequence) {
                (0, _) => String::new(),
                (beat, fence) => format!("; its last heartbeat is {beat} of HEARTBEATS, fenced by {fence}"),
            };
            format!("{kind} {name} is lost after {silent:.1} s of silence, with {} game(s){beat}", e.games.len())
        }
        Payload::ServiceRecovered(e) => {
            format!("{} {} is heard again after {:.1} s", e.kind, e.instance, seconds(e.unwell_us))
        }
        Payload::ResyncCompleted(e) => format!("{} {} was told its {} game(s) again", e.kind, e.instance, e.games),
        Payload::CircuitOpened(e) => format!("{} is given no more games: {}", e.shard, e.reason),
        Payload::CircuitHalfOpened(e) => format!("{} is tried with one game", e.shard),
        Payload::CircuitClosed(e) => format!("{} is given games again", e.shard),
        Payload::DrainStarted(e) => format!("{} is drained by {}", e.shard, e.operator),
        Payload::DrainCompleted(e) => format!("{} is empty", e.shard),
        Payload::DrainCanceled(e) => format!("{} is drained no more, by {}", e.shard, e.operator),
        Payload::OperatorVerb(e) => {
            let words: [&str; 5] = [&e.operator, "asks:", &e.verb, &e.game, &e.shard];
            words.into_iter().filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ")
        }
        Payload::BrakeEngaged(e) => format!("{} of {} fell silent at once: moves trickle", e.silent.len(), e.of),
        Payload::BrakeReleased(e) => format!("moves run freely again after {:.1} s", seconds(e.engaged_us)),
        Payload::MovesPaused(e) => format!("automatic moves are paused by {}", e.operator),
        Payload::MovesResumed(e) => format!("automatic moves go on, by {}", e.operator),
        Payload::ShadowMode(e) => format!("shadow mode is {}", if e.on { "on" } else { "off" }),
        Payload::Heartbeat(e) => {
            format!("{} beats: {}, {} game(s)", service(e.service.as_ref()), e.status, e.games.len())
        }
        Payload::Fence(e) => format!("{} {} is fenced behind heartbeat {}", e.kind, e.instance, e.heartbeat_sequence),
        Payload::GameStateChanged(e) => {
            let score = |score: Option<u32>| score.map_or_else(|| "?".to_owned(), |n| n.to_string());
            format!("{} sees {}: {} {}-{}", e.shard, e.game, e.status, score(e.away_score), score(e.home_score))
        }
        Payload::AlertRaised(e) => format!("[{}] {}: {}", e.severity, e.incident, e.summary),
        Payload::AlertResolved(e) => format!("{} is over", e.incident),
        Payload::AlertDelivered(e) => {
            let (what, of, after) = (&e.what, e.incidents.join(" "), seconds(e.latency_us));
            format!("told by {} ({what}), which answered after {after:.1} s: {of}", e.channel)
        }
        Payload::AlertDeliveryFailed(e) => format!("not told by {}: {}", e.channel, e.error),
        Payload::AlertSuppressed(e) => format!("{} is held back: {}", e.incident, e.reason),
        Payload::AlertAcknowledged(e) => {
            let verdict = if e.false_alarm { "is a false alarm" } else { "was seen" };
            format!("{} {verdict}, says {}", e.incident, e.operator)
        }
        Payload::AlertSilenced(e) => format!("{} is silenced by {}", e.kind, e.operator),
    }
}
