//! Arbees' events: their protobuf types, identifiers, subject names and envelope.
//!
//! Owns every name that travels on the log. Never does I/O, never reads a clock.

pub mod envelope;
pub mod epoch;
pub mod ids;
pub mod subject;

/// The generated types of `arbees.events.v1`.
#[allow(clippy::all, missing_debug_implementations)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/arbees.events.v1.rs"));
}

pub use envelope::{EventId, Sealed};
pub use epoch::Epoch;
pub use ids::{GameId, InstanceId, League, ServiceKind, ShardId};
pub use v1::event::Payload;
