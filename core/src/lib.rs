//! What Arbees' services share.
//!
//! Owns every socket: the log (JetStream), the bus (Redis), the database (Postgres), ESPN, and the small HTTP face of each
//! program. Knows nothing of what is decided; that is `arbees-fleet`.

pub mod alerts;
pub mod breaker;
pub mod bus;
pub mod config;
pub mod db;
pub mod espn;
pub mod exit;
pub mod health;
pub mod log;
pub mod metrics;
pub mod monitor;
pub mod policy;
pub mod retry;
pub mod shutdown;
pub mod start;
pub mod telemetry;
pub mod time;
pub mod traces;
pub mod variables;

/// Installs the TLS provider that all clients of this process share. Calling it twice is harmless.
pub fn install_tls() {
    // An error says that a provider is already there, which is all that is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
