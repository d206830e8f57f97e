//! What a scoreboard's report of a game leads to.

use arbees_proto::{Epoch, GameId, Payload, v1};

use super::{Draft, Fleet, reason};
use crate::slate::{GameReport, ReportedPhase};
use crate::state::{Game, Phase};

impl Fleet {
    pub(super) fn on_report(&mut self, report: &GameReport, schedule: bool) {
        if self.state.games.contains_key(&report.id) || self.is_news(report, schedule) {
            self.learn(report);
            self.follow_phase(report);
        }
        if let Some(at) = self.seen.on_slate.get_mut(&report.id) {
            *at = self.now.steady_us;
        }
    }

    /// Whether a game that nobody knows yet is worth knowing: one that was over when first seen is not.
    fn is_news(&self, report: &GameReport, schedule: bool) -> bool {
        let ahead = report.info.starts_at_us - self.now.wall_us;
        let known_start = report.info.starts_at_us != 0;
        match report.phase {
            ReportedPhase::Live | ReportedPhase::Suspended | ReportedPhase::Postponed => true,
            ReportedPhase::Pre if schedule => known_start && ahead <= self.settings.discovery_window,
            ReportedPhase::Pre => known_start && ahead <= self.settings.pregame_assign,
            ReportedPhase::Canceled | ReportedPhase::Final => false,
        }
    }

    /// Records a game that is new, or whose teams or start have changed.
    fn learn(&mut self, report: &GameReport) {
        let known = self.state.games.get(&report.id);
        let same = |g: &Game| {
            v1::Game { markets: None, ..g.info.clone() } == v1::Game { markets: None, ..report.info.clone() }
        };
        if known.is_some_and(same) {
            return;
        }
        let discovered = Payload::GameDiscovered(v1::GameDiscovered { game: Some(report.info.clone()) });
        if known.is_some() {
            let why = reason("the league changed teams or start", "the slate is followed");
            self.emit_game(&report.id, discovered, why, None);
            return;
        }
        let why = reason("first seen on the slate", "due or in play");
        let made = self.emit(Draft { payload: discovered, reason: why, cause: None, correlation: None });
        if made.is_some() {
            let same_event = self.seen.by_event.entry(report.id.event().to_owned()).or_default();
            if !same_event.contains(&report.id) {
                same_event.push(report.id.clone());
            }
        }
    }

    fn follow_phase(&mut self, report: &GameReport) {
        let Some(phase) = self.state.games.get(&report.id).map(|g| g.phase) else { return };
        if report.phase != ReportedPhase::Final {
            self.seen.finals.remove(&report.id);
        }
        let (game, status) = (report.id.to_string(), report.status.clone());
        let payload = match (phase, report.phase) {
            (Phase::Suspended, ReportedPhase::Live) => Payload::GameResumed(v1::GameResumed { game }),
            (Phase::Live, ReportedPhase::Live) => return,
            (_, ReportedPhase::Live) => Payload::GameWentLive(v1::GameWentLive { game }),
            // Only play opens again what is over: a stale or odd report does not.
            (known, ReportedPhase::Suspended) if known.is_over() || known == Phase::Suspended => return,
            (_, ReportedPhase::Suspended) => Payload::GameSuspended(v1::GameSuspended { game, status }),
            (Phase::Postponed | Phase::Canceled | Phase::Finished, _) | (_, ReportedPhase::Pre) => return,
            (_, ReportedPhase::Postponed) => Payload::GamePostponed(v1::GamePostponed { game, status }),
            (_, ReportedPhase::Canceled) => Payload::GameCanceled(v1::GameCanceled { game, status }),
            (_, ReportedPhase::Final) if self.is_confirmed_final(&report.id) => {
                Payload::GameFinished(v1::GameFinished { game, status })
            }
            (_, ReportedPhase::Final) => return,
        };
        let why = reason(&report.status, "the slate is followed");
        self.emit_game(&report.id, payload, why, None);
        self.release_if_over(&report.id, &report.status);
    }

    /// Final in two reports far enough apart.
    fn is_confirmed_final(&mut self, id: &GameId) -> bool {
        let now_us = self.now.steady_us;
        let first = *self.seen.finals.entry(id.clone()).or_insert(now_us);
        now_us - first >= self.settings.final_confirm
    }

    fn release_if_over(&mut self, id: &GameId, status: &str) {
        let Some(game) = self.state.games.get(id).filter(|g| g.phase.is_over()) else { return };
        let Some(owner) = game.owner.clone() else { return };
        let released = v1::GameReleased { game: id.to_string(), shard: owner.shard.to_string(), epoch: owner.epoch.0 };
        self.emit_game(id, Payload::GameReleased(released), reason(status, "the game is over"), None);
        if self.state.games.get(id).is_none_or(|g| g.owner.is_none()) {
            self.seen.finals.remove(id);
            self.seen.on_slate.remove(id);
            let epoch = Epoch::new(self.state.head.generation, self.state.head.sequence);
            self.command(&owner.shard, id, epoch, false, "over");
        }
    }

    /// Releases games that are over and still owned: a crash between end and release leaves such.
    pub(super) fn release_leftovers(&mut self) {
        let over: Vec<_> = self
            .state
            .games
            .iter()
            .filter(|(_, g)| g.phase.is_over() && g.owner.is_some())
            .map(|(id, g)| (id.clone(), g.status.clone()))
            .collect();
        for (id, status) in over {
            self.release_if_over(&id, &status);
        }
    }
}
