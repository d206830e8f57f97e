//! The pure part of the control plane.
//!
//! Owns the fleet's state, how events change it, what is decided about it, a shard's game set and the append protocol.
//! Never reads a clock, waits, guesses or does I/O: the same events and inputs give the same bytes, on any machine.

pub mod append;
pub mod checks;
pub mod decide;
pub mod echo;
pub mod epoch_gate;
pub mod fold;
pub mod game_set;
pub mod incidents;
pub mod lease;
pub mod placement;
pub mod settings;
pub mod silence;
pub mod slate;
pub mod state;
pub mod watcher;

pub use decide::{Effect, Fleet, Input, Turn};
pub use epoch_gate::EpochGate;
pub use fold::{Entry, Skip, Touched};
pub use game_set::GameSet;
pub use incidents::{Incidents, incident_of};
pub use lease::Lease;
pub use settings::Settings;
pub use slate::{GameReport, ReportedPhase};
pub use state::{Phase, State, Status};
pub use watcher::Watcher;

/// Microseconds in a second: the unit of time in this crate is microseconds since the Unix epoch, UTC.
pub const SECOND: i64 = 1_000_000;
