//! Retrying: one policy type, one function. The only place that knows the `backoff` crate.

use std::future::Future;
use std::time::{Duration, Instant};

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
    /// Tries in all before it is given up; none: for ever.
    pub tries: Option<u32>,
}

impl Policy {
    /// For what must come back some day: from 100 ms to 2 s, for ever.
    #[must_use]
    pub const fn patient() -> Self {
        Self { first: Duration::from_millis(100), most: Duration::from_secs(2), jitter: 0.1, tries: None }
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
    #[error("given up after {tries} tries in {took:.1?}: {}; at last: {last}", earlier.join("; "))]
    Exhausted {
        tries: u32,
        took: Duration,
        /// What the tries before the last one said.
        earlier: Vec<String>,
        last: E,
    },
}

/// Does `op` until it succeeds, `is_retryable` says that it never will, the tries are used up, or `cancel` fires. The first
/// failure is logged, later ones are not: being away is one fact, however often it is found out. Where the tries are counted
/// none is: the error tells all of them.
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
    let begun = Instant::now();
    let mut earlier = Vec::new();
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
        if policy.tries.is_some_and(|most| tries >= most) {
            return Err(GaveUp::Exhausted { tries, took: begun.elapsed(), earlier, last: error });
        }
        if policy.tries.is_some() {
            earlier.push(error.to_string());
        }
        if tries == 1 && policy.tries.is_none() {
            tracing::warn!(what, %error, "away, trying again");
        }
        if !delays.wait(cancel).await {
            return Err(GaveUp::Canceled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failure {0}")]
    struct Failure(u32);

    #[tokio::test]
    async fn it_gives_up_after_its_tries_with_the_whole_story() {
        let policy =
            Policy { first: Duration::from_millis(1), most: Duration::from_millis(4), jitter: 0.0, tries: Some(3) };
        let never = CancellationToken::new();
        let mut count = 0;
        let failing = || {
            count += 1;
            std::future::ready(Err::<(), _>(Failure(count)))
        };
        let error = retry("test", &policy, &never, |_| true, failing).await.unwrap_err().to_string();
        for part in ["after 3 tries", "failure 1; failure 2", "at last: failure 3"] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn the_delays_double_up_to_the_most() {
        let policy = Policy { first: Duration::from_millis(100), jitter: 0.0, ..crate::db::retry_policy() };
        let mut delays = policy.delays();
        let all: Vec<u128> = (0..4).map(|_| delays.next_delay().as_millis()).collect();
        assert_eq!(all, [100, 200, 400, 400]);
    }
}
