//! Private servers, cut-able links and an ESPN feed, for `arbees up` and for tests.
//!
//! Owns every child process and every free port. Never touches a service that it did not start itself.

pub mod feed;
pub mod history;
pub mod link;
pub mod process;
pub mod programs;
pub mod receiver;
pub mod recordings;
pub mod servers;
pub mod simulation;
pub mod tls;
pub mod wait;
