//! Retrying: one policy type, one function. The only place that knows the `backoff` crate.

use std::future::Future;
use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;
use tokio_util::sync::CancellationToken;

/// How often and how fast something is tried again.
#[derive(Clone, Debug)]
pub struct Policy {
    pub first: Duration,
    pub most: Duration,
    /// How far each delay may be off, as a share of it.
    pub jitter: f64,
}

impl Policy {
    /// For what must come back some day: from 100 ms to 2 s, for ever.
    #[must_use]
    pub const fn patient() -> Self {
        Self { first: Duration::from_millis(100), most: Duration::from_secs(2), jitter: 0.1 }
    }

    /// The delays between tries.
    #[must_use]
    pub fn delays(&self) -> Delays {
        Delays(ExponentialBackoff {
            initial_interval: self.first,
            current_interval: self.first,
            max_interval: self.most,
            multiplier: 2.0,
            randomization_factor: self.jitter,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        })
    }
}

/// Delays that double up to a bound.
#[derive(Debug)]
pub struct Delays(ExponentialBackoff);

impl Delays {
    /// How long to wait now.
    pub fn next_delay(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(self.0.max_interval)
    }

    /// Begins anew.
    pub fn reset(&mut self) {
        self.0.reset();
    }

    /// Waits; false when canceled.
    pub async fn wait(&mut self, cancel: &CancellationToken) -> bool {
        let delay = self.next_delay();
        cancel.run_until_cancelled(tokio::time::sleep(delay)).await.is_some()
    }
}

/// Why a retried operation ended without success.
#[derive(Debug, thiserror::Error)]
pub enum GaveUp<E: std::error::Error + 'static> {
    #[error("canceled")]
    Canceled,
    #[error(transparent)]
    Permanent(E),
}

/// Does `op` until it succeeds, `is_retryable` says that it never will, or `cancel` fires. The first
/// failure is logged, later ones are not: being away is one fact, however often it is found out.
///
/// # Errors
/// [`GaveUp`].
pub async fn retry<T, E, Op, Fut>(
    what: &'static str,
    policy: &Policy,
    cancel: &CancellationToken,
    is_retryable: impl Fn(&E) -> bool,
    mut op: Op,
) -> Result<T, GaveUp<E>>
where
    E: std::error::Error + 'static,
    Op: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let mut delays = policy.delays();
    let mut tries = 0;
    loop {
        tries += 1;
        let error = match op().await {
            Ok(value) => {
                if tries > 1 {
                    tracing::info!(what, tries, "back");
                }
                return Ok(value);
            }
            Err(error) => error,
        };
        if !is_retryable(&error) {
            return Err(GaveUp::Permanent(error));
        }
        if tries == 1 {
            tracing::warn!(what, %error, "away, trying again");
        }
        if !delays.wait(cancel).await {
            return Err(GaveUp::Canceled);
        }
    }
}
