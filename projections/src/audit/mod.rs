//! History read back: what was so at any moment, what happened to a game, and why.
//!
//! Everything is told from the events themselves, through the same fold as the leader's. Tables are not asked.

pub mod explain;
pub mod moment;
pub mod sla;
pub mod source;
pub mod story;

use arbees_core::log::ReadError;
use arbees_fleet::State;

pub use moment::Moment;
pub use source::Source;

/// Why a question about the past has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("log: {0}")]
    Log(#[from] ReadError),
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    #[error("no event has the sequence {asked}: CONTROL ends at {end}")]
    Beyond { asked: u64, end: u64 },
    #[error("{0} is not known: no event of CONTROL is about it")]
    Unknown(String),
    #[error("the message at {sequence} of {from} cannot be read: {why}")]
    Unreadable { sequence: u64, from: &'static str, why: String },
}

/// The sequence of the last event that had happened by `moment`; 0: none had.
///
/// # Errors
/// When it is beyond the end, or nothing can be read.
pub async fn sequence_at(source: &Source, moment: Moment) -> Result<u64, AuditError> {
    let end = source.end().await?;
    match moment {
        Moment::Now => Ok(end),
        Moment::Sequence(asked) if asked > end => Err(AuditError::Beyond { asked, end }),
        Moment::Sequence(asked) => Ok(asked),
        Moment::Time(at_us) => {
            // Event times of CONTROL never go back: the first event after the moment is found by halving.
            let (mut before, mut after) = (0, end + 1);
            while after - before > 1 {
                let middle = before + (after - before) / 2;
                let (at, time_us) = source.time_at_or_before(middle, before).await?;
                match time_us {
                    // Nothing between is a valid event: nothing changes there.
                    None => before = middle,
                    Some(time_us) if time_us <= at_us => before = middle,
                    Some(_) => after = at,
                }
            }
            Ok(before)
        }
    }
}

/// What was so at `moment`: the fold up to it.
///
/// # Errors
/// When it is beyond the end, or nothing can be read.
pub async fn state_at(source: &Source, moment: Moment) -> Result<State, AuditError> {
    let sequence = sequence_at(source, moment).await?;
    source.fold(sequence).await
}
