//! How every service starts: health first, then the ground it stands on, waited for when it is away and refused when it is
//! wrong.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use tokio_util::sync::CancellationToken;

use crate::config::LogConfig;
use crate::exit::Exit;
use crate::health::{self, Health};
use crate::log::{self, ConnectError, EnsureError, Log};
use crate::retry::{GaveUp, Policy, retry};
use crate::{shutdown, telemetry};

/// Starts logging, listens for signals, and serves health on `listen` with `parts` not yet reached.
///
/// # Errors
/// When the address cannot be bound.
pub async fn begin(listen: SocketAddr, parts: &[&'static str]) -> Result<(CancellationToken, Health), Exit> {
    begin_with(listen, parts, Router::new()).await
}

/// The same, and serves `more` beside health.
///
/// # Errors
/// When the address cannot be bound.
pub async fn begin_with(
    listen: SocketAddr,
    parts: &[&'static str],
    more: Router,
) -> Result<(CancellationToken, Health), Exit> {
    telemetry::start();
    let stop = shutdown::on_signal().map_err(|e| Exit::Failed(format!("listening for signals: {e}")))?;
    let health = Health::new(parts);
    let bound = health::serve(listen, health.clone(), more, stop.clone()).await;
    let address = bound.map_err(|e| Exit::Failed(format!("HTTP_LISTEN {listen}: {e}")))?;
    tracing::info!(%address, "health is served");
    Ok((stop, health))
}

/// The log, connected and with its streams as they must be; none when asked to stop before that.
///
/// # Errors
/// [`Exit::Ground`] for what waiting does not mend.
pub async fn log(
    program: &str,
    config: &LogConfig,
    health: &Health,
    stop: &CancellationToken,
) -> Result<Option<Log>, Exit> {
    let log = match log::connect(program, config, stop).await {
        Ok(log) => log,
        Err(ConnectError::Canceled) => return Ok(None),
        Err(error) => return Err(Exit::Ground(error.to_string())),
    };
    let policy = Policy::patient();
    match retry("streams", &policy, stop, EnsureError::is_retryable, || log.ensure_streams()).await {
        Ok(()) => {
            health.ok("log");
            tokio::spawn(watch_connection(log.clone(), health.clone(), stop.clone()));
            Ok(Some(log))
        }
        Err(GaveUp::Canceled) => Ok(None),
        Err(GaveUp::Permanent(error)) => Err(Exit::Ground(crate::exit::whole(&error))),
    }
}

/// How often readiness looks at the connection.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Keeps what readiness says of the log true for as long as the program runs.
async fn watch_connection(log: Log, health: Health, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        if log.is_connected() {
            health.ok("log");
        } else {
            health.failed("log", "not connected");
        }
    }
}
