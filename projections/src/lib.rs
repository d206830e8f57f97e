//! Tables derived from the log: kept exact by the projector, proved exact by `verify`, read by `queries`.
//!
//! Owns the schema `arbees`. Never decides, and never writes a stream.

pub mod alerts;
pub mod api;
pub mod audit;
pub mod checkpoint;
pub mod control;
pub mod game_states;
pub mod heartbeats;
pub mod letters;
pub mod monitor;
pub mod projector;
pub mod queries;
pub mod rebuild;
pub mod rows;
pub mod verify;
