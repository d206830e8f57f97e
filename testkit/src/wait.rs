//! Waiting for something to become so, with a deadline, instead of sleeping and hoping.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const EVERY: Duration = Duration::from_millis(20);

/// Looks at `probe` until it tells `Ok`, at most for `limit`; how long that took. An error says what was seen instead.
///
/// # Errors
/// When the deadline passes.
pub async fn until<T, S, Fut>(what: &str, limit: Duration, mut probe: impl FnMut() -> Fut) -> Result<(T, Duration)>
where
    S: Debug,
    Fut: Future<Output = Result<T, S>>,
{
    let begun = Instant::now();
    loop {
        match probe().await {
            Ok(value) => return Ok((value, begun.elapsed())),
            Err(seen) if begun.elapsed() > limit => bail!("waited {limit:?} for {what}; saw {seen:?}"),
            Err(_) => tokio::time::sleep(EVERY).await,
        }
    }
}
