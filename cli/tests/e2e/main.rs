//! The main job, end to end, on real servers and real processes.

mod alerts;
mod api;
mod audit;
mod faults;
mod first_day;
mod ground;
mod masses;
mod old_shard;
mod plane;
mod projector;
mod real_day;
mod redis;
mod restarts;
mod sentry;
mod up;
