//! What a scoreboard says of a game, in the terms of decisions.

use arbees_proto::{GameId, v1};

/// Where a game stands, as its league reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReportedPhase {
    /// Not begun, also when its start is delayed.
    Pre,
    /// In play, also when play is delayed.
    Live,
    /// Stopped, to be taken up again.
    Suspended,
    /// Will be played on another day, under another id or this one.
    Postponed,
    /// Will not be played to its end: canceled, abandoned or forfeited.
    Canceled,
    /// Over.
    Final,
}

/// One game of a slate.
#[derive(Clone, Debug, PartialEq)]
pub struct GameReport {
    /// Which game.
    pub id: GameId,
    /// Teams and start; markets are left out.
    pub info: v1::Game,
    /// Where it stands.
    pub phase: ReportedPhase,
    /// ESPN's own word for it, as in `STATUS_IN_PROGRESS`.
    pub status: String,
}
