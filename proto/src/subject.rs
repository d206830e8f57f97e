//! Subject names: built here, read back here, nowhere else spelt.
//!
//! `{root}.control.assignment.{game}.{from}.{to}` and the rest of the table in `docs/ARCHITECTURE.md`. An id that a subject
//! token can't hold is escaped: every byte outside letters, digits, `_` and `-` becomes `=` and two hex digits.

use std::fmt::Write as _;

use crate::ids::{GameId, NONE, ServiceKind};
use crate::v1::event::Payload;

/// What stands in front of every subject.
const ROOT: &str = "arbees";

/// Escapes `id` into one subject token.
#[must_use]
pub fn escape(id: &str) -> String {
    let mut out = String::with_capacity(id.len());
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "={byte:02x}");
        }
    }
    out
}

/// The id that `token` was made from; none when it is not one of ours.
#[must_use]
pub fn unescape(token: &str) -> Option<String> {
    let mut bytes = token.bytes();
    let mut out = Vec::with_capacity(token.len());
    while let Some(byte) = bytes.next() {
        if byte == b'=' {
            let hex = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    let id = String::from_utf8(out).ok()?;
    (escape(&id) == token).then_some(id)
}

/// Builds the subjects and stream names of one deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    root: String,
    stream_prefix: String,
}

impl Names {
    /// The names of the deployment `prefix`; empty for the one that needs none.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        if prefix.is_empty() {
            Self { root: ROOT.to_owned(), stream_prefix: String::new() }
        } else {
            Self { root: format!("{prefix}.{ROOT}"), stream_prefix: format!("{prefix}_") }
        }
    }

    /// The name of the stream `base` (`CONTROL`, …).
    #[must_use]
    pub fn stream(&self, base: &str) -> String {
        format!("{}{base}", self.stream_prefix)
    }

    /// All of CONTROL.
    #[must_use]
    pub fn control_all(&self) -> String {
        format!("{}.control.>", self.root)
    }

    /// All heartbeats.
    #[must_use]
    pub fn heartbeat_all(&self) -> String {
        format!("{}.heartbeat.*.*", self.root)
    }

    /// All alerts.
    #[must_use]
    pub fn alert_all(&self) -> String {
        format!("{}.alert.*", self.root)
    }

    /// All game states.
    #[must_use]
    pub fn game_state_all(&self) -> String {
        format!("{}.game_state.*", self.root)
    }

    /// Where the instance's own heartbeats go.
    #[must_use]
    pub fn heartbeat(&self, kind: ServiceKind, instance: &str) -> String {
        format!("{}.heartbeat.{kind}.{}", self.root, escape(instance))
    }

    /// Where the instance is asked whether it is there.
    #[must_use]
    pub fn probe(&self, kind: ServiceKind, instance: &str) -> String {
        format!("{}.probe.{kind}.{}", self.root, escape(instance))
    }

    /// Where the leader takes what operators ask for.
    #[must_use]
    pub fn operator(&self) -> String {
        format!("{}.operator", self.root)
    }

    /// Where alerts of `kind` go.
    #[must_use]
    pub fn alert(&self, kind: &str) -> String {
        format!("{}.alert.{}", self.root, escape(kind))
    }

    /// The heartbeats of all instances of a kind.
    #[must_use]
    pub fn heartbeats_of(&self, kind: ServiceKind) -> String {
        format!("{}.heartbeat.{kind}.*", self.root)
    }

    /// Where the states of `game` go.
    #[must_use]
    pub fn game_state(&self, game: &GameId) -> String {
        format!("{}.game_state.{game}", self.root)
    }

    /// The two filters that together are a shard's own stream: its games going, and its games coming.
    #[must_use]
    pub fn shard_filters(&self, shard: &str) -> [String; 2] {
        let me = escape(shard);
        [format!("{}.control.assignment.*.{me}.*", self.root), format!("{}.control.assignment.*.*.{me}", self.root)]
    }

    /// What CONTROL tells of one service.
    #[must_use]
    pub fn service(&self, kind: ServiceKind, instance: &str) -> String {
        format!("{}.control.service.{kind}.{}", self.root, escape(instance))
    }

    /// The two filters that together are all that CONTROL tells of one game.
    #[must_use]
    pub fn game(&self, game: &str) -> [String; 2] {
        let id = escape(game);
        [format!("{}.control.game.{id}", self.root), format!("{}.control.assignment.{id}.*.*", self.root)]
    }

    /// What CONTROL tells of leaders.
    #[must_use]
    pub fn leader(&self) -> String {
        format!("{}.control.leader", self.root)
    }

    /// What CONTROL tells of the fleet as a whole.
    #[must_use]
    pub fn fleet(&self) -> String {
        format!("{}.control.fleet", self.root)
    }

    /// What operators asked for.
    #[must_use]
    pub fn operators(&self) -> String {
        format!("{}.control.operator.*", self.root)
    }

    /// The subject on which `payload` belongs in CONTROL; none for what belongs elsewhere.
    #[must_use]
    pub fn control(&self, payload: &Payload) -> Option<String> {
        let root = &self.root;
        let game = |id: &str| Some(format!("{root}.control.game.{}", escape(id)));
        let assignment = |id: &str, from: &str, to: &str| {
            Some(format!("{root}.control.assignment.{}.{}.{}", escape(id), escape(from), escape(to)))
        };
        let instance = |kind: &str, id: &str| Some(format!("{root}.control.service.{}.{}", escape(kind), escape(id)));
        let service = |s: Option<&crate::v1::Service>| s.and_then(|s| instance(&s.kind, &s.instance));
        match payload {
            Payload::LeaderElected(_) => Some(self.leader()),
            Payload::GameDiscovered(e) => e.game.as_ref().and_then(|g| game(&g.id)),
            Payload::GameWentLive(e) => game(&e.game),
            Payload::GameSuspended(e) => game(&e.game),
            Payload::GameResumed(e) => game(&e.game),
            Payload::GamePostponed(e) => game(&e.game),
            Payload::GameCanceled(e) => game(&e.game),
            Payload::GameFinished(e) => game(&e.game),
            Payload::GameQueued(e) => game(&e.game),
            Payload::MarketsMatched(e) => game(&e.game),
            Payload::GameAssigned(e) => e.game.as_ref().and_then(|g| assignment(&g.id, NONE, &e.shard)),
            Payload::GameReleased(e) => assignment(&e.game, &e.shard, NONE),
            Payload::AssignmentConfirmed(e) => e.game.as_ref().and_then(|g| assignment(&g.id, &e.shard, &e.shard)),
            Payload::AssignmentAmended(e) => e.game.as_ref().and_then(|g| assignment(&g.id, &e.shard, &e.shard)),
            Payload::ServiceRegistered(e) => service(e.service.as_ref()),
            Payload::ServiceRestarted(e) => service(e.service.as_ref()),
            Payload::GamePinned(e) => game(&e.game),
            Payload::GameUnpinned(e) => game(&e.game),
            Payload::GameReassigned(e) => e.game.as_ref().and_then(|g| assignment(&g.id, &e.from, &e.shard)),
            Payload::ServiceStatusChanged(e) => instance(&e.kind, &e.instance),
            Payload::ServiceLost(e) => instance(&e.kind, &e.instance),
            Payload::ServiceRecovered(e) => instance(&e.kind, &e.instance),
            Payload::ResyncCompleted(e) => instance(&e.kind, &e.instance),
            Payload::AssignmentFailed(e) => instance(SHARD, &e.shard),
            Payload::CircuitOpened(e) => instance(SHARD, &e.shard),
            Payload::CircuitHalfOpened(e) => instance(SHARD, &e.shard),
            Payload::CircuitClosed(e) => instance(SHARD, &e.shard),
            Payload::DrainStarted(e) => instance(SHARD, &e.shard),
            Payload::DrainCompleted(e) => instance(SHARD, &e.shard),
            Payload::DrainCanceled(e) => instance(SHARD, &e.shard),
            Payload::OperatorVerb(e) => Some(format!("{root}.control.operator.{}", escape(&e.verb))),
            Payload::BrakeEngaged(_)
            | Payload::BrakeReleased(_)
            | Payload::MovesPaused(_)
            | Payload::MovesResumed(_)
            | Payload::ShadowMode(_) => Some(self.fleet()),
            Payload::Heartbeat(_)
            | Payload::Fence(_)
            | Payload::GameStateChanged(_)
            | Payload::AlertRaised(_)
            | Payload::AlertResolved(_)
            | Payload::AlertDelivered(_)
            | Payload::AlertDeliveryFailed(_)
            | Payload::AlertSuppressed(_)
            | Payload::AlertAcknowledged(_)
            | Payload::AlertSilenced(_) => None,
        }
    }
}

const SHARD: &str = ServiceKind::Shard.as_str();

/// The name of an event's type, as it stands in the header `Arbees-Type`.
#[must_use]
pub const fn type_name(payload: &Payload) -> &'static str {
    match payload {
        Payload::LeaderElected(_) => "LeaderElected",
        Payload::GameDiscovered(_) => "GameDiscovered",
        Payload::GameWentLive(_) => "GameWentLive",
        Payload::GameSuspended(_) => "GameSuspended",
        Payload::GameResumed(_) => "GameResumed",
        Payload::GamePostponed(_) => "GamePostponed",
        Payload::GameCanceled(_) => "GameCanceled",
        Payload::GameFinished(_) => "GameFinished",
        Payload::GameQueued(_) => "GameQueued",
        Payload::MarketsMatched(_) => "MarketsMatched",
        Payload::GameAssigned(_) => "GameAssigned",
        Payload::GameReleased(_) => "GameReleased",
        Payload::AssignmentConfirmed(_) => "AssignmentConfirmed",
        Payload::AssignmentAmended(_) => "AssignmentAmended",
        Payload::ServiceRegistered(_) => "ServiceRegistered",
        Payload::ServiceRestarted(_) => "ServiceRestarted",
        Payload::GamePinned(_) => "GamePinned",
        Payload::GameUnpinned(_) => "GameUnpinned",
        Payload::GameReassigned(_) => "GameReassigned",
        Payload::ServiceStatusChanged(_) => "ServiceStatusChanged",
        Payload::ServiceLost(_) => "ServiceLost",
        Payload::ServiceRecovered(_) => "ServiceRecovered",
        Payload::AssignmentFailed(_) => "AssignmentFailed",
        Payload::ResyncCompleted(_) => "ResyncCompleted",
        Payload::CircuitOpened(_) => "CircuitOpened",
        Payload::CircuitHalfOpened(_) => "CircuitHalfOpened",
        Payload::CircuitClosed(_) => "CircuitClosed",
        Payload::DrainStarted(_) => "DrainStarted",
        Payload::DrainCompleted(_) => "DrainCompleted",
        Payload::DrainCanceled(_) => "DrainCanceled",
        Payload::OperatorVerb(_) => "OperatorVerb",
        Payload::BrakeEngaged(_) => "BrakeEngaged",
        Payload::BrakeReleased(_) => "BrakeReleased",
        Payload::MovesPaused(_) => "MovesPaused",
        Payload::MovesResumed(_) => "MovesResumed",
        Payload::ShadowMode(_) => "ShadowMode",
        Payload::Fence(_) => "Fence",
        Payload::AlertRaised(_) => "AlertRaised",
        Payload::AlertResolved(_) => "AlertResolved",
        Payload::AlertDelivered(_) => "AlertDelivered",
        Payload::AlertDeliveryFailed(_) => "AlertDeliveryFailed",
        Payload::AlertSuppressed(_) => "AlertSuppressed",
        Payload::AlertAcknowledged(_) => "AlertAcknowledged",
        Payload::AlertSilenced(_) => "AlertSilenced",
        Payload::Heartbeat(_) => "Heartbeat",
        Payload::GameStateChanged(_) => "GameStateChanged",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_id_survives_escaping_as_one_token(id in "\\PC{1,64}") {
            let token = escape(&id);
            prop_assert!(!token.contains(['.', '*', '>', ' ']));
            prop_assert_eq!(unescape(&token), Some(id));
        }
    }

    #[test]
    fn tokens_that_are_not_ours_are_not_read() {
        for foreign in ["a=", "a=z1", "a=41", "a=2E", "a.b"] {
            assert_eq!(unescape(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_shards_filters_see_its_games_come_and_go() {
        let [going, coming] = Names::new("").shard_filters("shard_01");
        assert_eq!(going, "arbees.control.assignment.*.shard_01.*");
        assert_eq!(coming, "arbees.control.assignment.*.*.shard_01");
        assert_eq!(Names::new("staging").stream("CONTROL"), "staging_CONTROL");
        assert_eq!(Names::new("staging").control_all(), "staging.arbees.control.>");
    }
}
