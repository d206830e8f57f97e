//! Trying the database again: only after what may pass, and not for ever.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::retry::{GaveUp, Policy, retry};

/// 100, 200 and 400 ms after one another, and then it is given up.
#[must_use]
pub const fn policy() -> Policy {
    Policy { first: Duration::from_millis(100), most: Duration::from_millis(400), jitter: 0.1, tries: Some(4) }
}

/// Whether the same may succeed when it is tried again: the connection broke, the server has no room or is going down, or
/// others were in the way. By SQLSTATE, see <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
#[must_use]
pub fn is_retryable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(e) => e.code().is_some_and(|code| is_retryable_state(&code)),
        _ => false,
    }
}

fn is_retryable_state(code: &str) -> bool {
    // serialization_failure, deadlock_detected, lock_not_available.
    if matches!(code, "40001" | "40P01" | "55P03") {
        return true;
    }
    // 08 connection exception; 53 insufficient resources: too many connections, a full disk; 57P operator intervention:
    // shutting down, starting up. 57014 is a query that somebody canceled.
    code.starts_with("08") || code.starts_with("53") || code.starts_with("57P")
}

/// An error that may come from the database.
pub trait DatabaseFailure: std::error::Error + 'static {
    /// What the database, or the way to it, said.
    fn database(&self) -> Option<&sqlx::Error>;
}

impl DatabaseFailure for sqlx::Error {
    fn database(&self) -> Option<&sqlx::Error> {
        Some(self)
    }
}

/// Does `op` until it succeeds, fails for good, or `policy` has no more tries.
///
/// # Errors
/// [`GaveUp`], with the whole story.
pub async fn retrying<T, E, Op, Fut>(
    what: &'static str,
    policy: &Policy,
    cancel: &CancellationToken,
    op: Op,
) -> Result<T, GaveUp<E>>
where
    E: DatabaseFailure,
    Op: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let is_worth_another = |error: &E| {
        let yes = error.database().is_some_and(is_retryable);
        ::metrics::counter!("arbees_database_retries_total").increment(u64::from(yes));
        yes
    };
    retry(what, policy, cancel, is_worth_another, op).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_nothing_else() {
        for code in ["40001", "40P01", "55P03", "08006", "53300", "53100", "57P01", "57P03"] {
            assert!(is_retryable_state(code), "{code}");
        }
        // unique_violation, syntax_error, query_canceled, invalid_password, undefined_table
        for code in ["23505", "42601", "57014", "28P01", "42P01"] {
            assert!(!is_retryable_state(code), "{code}");
        }
        assert!(is_retryable(&sqlx::Error::PoolTimedOut) && !is_retryable(&sqlx::Error::RowNotFound));
    }
}
