//! The main job, end to end, on real servers and real processes.

mod alerts;
mod api;
mod audit;
mod dashboard;
mod disk_full;
mod espn_away;
mod faults;
mod figures;
mod first_day;
mod ground;
mod masses;
mod nats_away;
mod old_shard;
mod plane;
mod postgres_away;
mod projector;
mod real_day;
mod rebuild;
mod redis;
mod redis_away;
mod restarts;
mod sentry;
mod traces;
mod up;
mod variables;
mod what_if;
