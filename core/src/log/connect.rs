//! Connecting: tries until the server is there, and refuses one that is too old.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Log;
use crate::config::LogConfig;
use crate::retry::{GaveUp, Policy, retry};

/// Older servers can commit a part of an atomic batch in a cluster.
pub const MIN_SERVER: (u64, u64, u64) = (2, 14, 4);
/// A subscription's buffer, in messages. Flow control keeps the server from sending more than fits.
const SUBSCRIPTION_CAPACITY: usize = 65_536;
/// A server that does not answer within this is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that answers no ping is dead, whatever the kernel thinks: found within three of them.
const PING_EVERY: Duration = Duration::from_secs(1);
/// Between tries to reconnect at most: a returning server is found within a heartbeat.
const MAX_RECONNECT_DELAY: Duration = Duration::from_millis(500);

/// Why there is no log to work with.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("credentials file {path:?} cannot be used")]
    Credentials {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("NATS server {found} is too old: at least {}.{}.{} is needed", MIN_SERVER.0, MIN_SERVER.1, MIN_SERVER.2)]
    TooOld { found: String },
    #[error("NATS server refuses to let this program in: {0}")]
    Refused(String),
    #[error("NATS server is away: {0}")]
    Away(String),
    #[error("canceled")]
    Canceled,
}

/// Connects to the log, for as long as it takes.
///
/// # Errors
/// What waiting does not mend: a server that is too old, credentials that are refused; or canceled.
pub async fn connect(program: &str, config: &LogConfig, cancel: &CancellationToken) -> Result<Log, ConnectError> {
    let is_away = |e: &ConnectError| matches!(e, ConnectError::Away(_));
    let connected = retry("nats", &Policy::patient(), cancel, is_away, || connect_once(program, config)).await;
    let (client, breaks) = connected.map_err(|gave_up| match gave_up {
        GaveUp::Canceled => ConnectError::Canceled,
        GaveUp::Permanent(error) | GaveUp::Exhausted { last: error, .. } => error,
    })?;
    let found = client.server_info().version;
    if parse_version(&found).is_none_or(|v| v < MIN_SERVER) {
        return Err(ConnectError::TooOld { found });
    }
    Ok(Log { client, names: config.names.clone(), replicas: config.replicas, breaks, traced: Arc::default() })
}

async fn connect_once(
    program: &str,
    config: &LogConfig,
) -> Result<(async_nats::Client, watch::Receiver<u64>), ConnectError> {
    let (break_noted, breaks) = watch::channel(0);
    let mut options = async_nats::ConnectOptions::new()
        .name(program)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .connection_timeout(CONNECT_TIMEOUT)
        .ping_interval(PING_EVERY)
        .request_timeout(Some(super::api::REQUEST_TIMEOUT))
        .reconnect_delay_callback(|tries| {
            let doubled = Duration::from_millis(20) * (1 << tries.min(5));
            doubled.min(MAX_RECONNECT_DELAY)
        })
        .event_callback(move |event| {
            if matches!(event, async_nats::Event::Disconnected) {
                break_noted.send_modify(|count| *count += 1);
            }
            async move { note(&event) }
        });
    if let Some(path) = &config.creds {
        options = options
            .credentials_file(path)
            .await
            .map_err(|source| ConnectError::Credentials { path: path.clone(), source })?;
    }
    let servers: Vec<&str> = config.url.split(',').map(str::trim).collect();
    let client = options.connect(servers).await.map_err(|e| match e.kind() {
        async_nats::ConnectErrorKind::Authentication | async_nats::ConnectErrorKind::AuthorizationViolation => {
            ConnectError::Refused(e.to_string())
        }
        _ => ConnectError::Away(e.to_string()),
    })?;
    Ok((client, breaks))
}

fn note(event: &async_nats::Event) {
    match event {
        async_nats::Event::Connected => tracing::info!("connected to nats"),
        async_nats::Event::Disconnected => tracing::warn!("disconnected from nats"),
        async_nats::Event::ServerError(error) => tracing::warn!(%error, "nats server says"),
        async_nats::Event::SlowConsumer(_) => tracing::warn!("a subscription is full: messages were dropped"),
        _ => {}
    }
}

fn parse_version(text: &str) -> Option<(u64, u64, u64)> {
    let core = text.split(['-', '+']).next()?;
    let mut parts = core.splitn(3, '.').map(|p| p.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(parse_version("2.15.1"), Some((2, 15, 1)));
        assert_eq!(parse_version("2.14.4-RC.1"), Some((2, 14, 4)));
        assert!(parse_version("2.9.10").unwrap() < MIN_SERVER);
        assert_eq!(parse_version("devel"), None);
    }
}
