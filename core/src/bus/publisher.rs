//! The one connection by which messages go out. Made anew when it broke; while it cannot be made, nobody waits long to hear so.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use tokio::sync::Mutex;

use super::place::{Place, settings};
use super::{ANSWER_WITHIN, BusError};

/// After a failed try to connect, others are told of it for so long instead of trying again.
const FAILED_FOR: Duration = Duration::from_millis(100);

/// Sends commands.
pub struct Publisher {
    place: Place,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<MultiplexedConnection>,
    /// Counts connections: who saw an old one break must not drop the new one.
    number: u64,
    failed: Option<(Instant, String)>,
}

impl Publisher {
    pub fn new(place: Place) -> Self {
        Self { place, state: Mutex::default() }
    }

    /// Sends `command`; once more on a new connection when the one it went out on was already broken.
    pub async fn command(&self, command: &redis::Cmd) -> Result<(), BusError> {
        let (broken, why) = match self.try_once(command).await {
            Ok(()) => return Ok(()),
            Err((number, error)) => (number, error),
        };
        if !why.is_refusal() {
            self.forget(broken).await;
        }
        let is_worth_another = matches!(&why, BusError::Away(e) if broken.is_some() && e.is_connection_dropped());
        let result = if is_worth_another { self.try_once(command).await.map_err(|(_, error)| error) } else { Err(why) };
        if result.is_err() {
            ::metrics::counter!("arbees_redis_publish_failures_total").increment(1);
        }
        result
    }

    /// Which connection it went out on, and why it failed.
    async fn try_once(&self, command: &redis::Cmd) -> Result<(), (Option<u64>, BusError)> {
        let (number, mut connection) = self.connection().await.map_err(|error| (None, error))?;
        let answer = tokio::time::timeout(ANSWER_WITHIN, command.query_async::<redis::Value>(&mut connection)).await;
        match answer {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err((Some(number), BusError::Away(error))),
            Err(_) => Err((Some(number), BusError::Late)),
        }
    }

    async fn connection(&self) -> Result<(u64, MultiplexedConnection), BusError> {
        let mut state = self.state.lock().await;
        if let Some(connection) = &state.connection {
            return Ok((state.number, connection.clone()));
        }
        if let Some((_, why)) = state.failed.as_ref().filter(|(at, _)| at.elapsed() < FAILED_FOR) {
            return Err(BusError::StillAway(why.clone()));
        }
        let made = async {
            let client = self.place.client(ANSWER_WITHIN).await?;
            client.get_multiplexed_async_connection_with_config(&settings(ANSWER_WITHIN)).await
        };
        // The lock is held for no longer than this, so that nobody waits long to hear the same.
        match tokio::time::timeout(2 * ANSWER_WITHIN, made).await {
            Ok(Ok(connection)) => {
                state.failed = None;
                state.number += 1;
                state.connection = Some(connection.clone());
                Ok((state.number, connection))
            }
            Ok(Err(error)) => {
                state.failed = Some((Instant::now(), error.to_string()));
                Err(BusError::Away(error))
            }
            Err(_) => {
                state.failed = Some((Instant::now(), BusError::Late.to_string()));
                Err(BusError::Late)
            }
        }
    }

    async fn forget(&self, number: Option<u64>) {
        if number.is_none() {
            return;
        }
        let mut state = self.state.lock().await;
        if Some(state.number) == number {
            state.connection = None;
        }
    }
}
