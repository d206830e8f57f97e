//! History read back: what was so at any moment, what happened to a game, and why.
//!
//! Everything is told from the events themselves, through the same fold as the leader's. Tables are not asked.

pub mod chain;
pub mod explain;
pub mod moment;
pub mod sla;
pub mod source;
pub mod story;
pub mod what_if;

use std::ops::ControlFlow;

use arbees_core::log::{ALERTS, CONTROL, GAME_STATES, ReadError, Stored};
use arbees_core::time::now_us;
use arbees_fleet::State;
use arbees_proto::ServiceKind;

pub use moment::Moment;
pub use source::Source;

use sla::{Counter, Sla};
use story::Line;

/// Every sequence there can be.
const ALL: u64 = u64::MAX >> 1;
/// Progress is told this often.
const PROGRESS_EVERY: u64 = 100_000;

/// Why a question about the past has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("log: {0}")]
    Log(#[from] ReadError),
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    #[error("no event has the sequence {asked}: CONTROL ends at {end}")]
    Beyond { asked: u64, end: u64 },
    #[error("no heartbeats are kept: there is nothing to replay")]
    NoHeartbeats,
    #[error("the beginning is after the end")]
    Backwards,
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

/// What a history is of.
#[derive(Clone, Debug)]
pub enum Subject {
    Game(String),
    Shard(String),
    /// A kind of alert, or one incident.
    Alert(String),
}

impl Subject {
    /// The subject of this kind and name; none for a kind that has no history.
    #[must_use]
    pub fn of(kind: &str, id: &str) -> Option<Self> {
        match kind {
            "game" => Some(Self::Game(id.to_owned())),
            "shard" => Some(Self::Shard(id.to_owned())),
            "alert" => Some(Self::Alert(id.to_owned())),
            _ => None,
        }
    }
}

/// All that happened to `subject`, in its order.
///
/// # Errors
/// [`AuditError::Unknown`] when nothing is known of it.
pub async fn history(source: &Source, subject: &Subject) -> Result<Vec<Line>, AuditError> {
    let names = source.names();
    let (stream, filters, id) = match subject {
        Subject::Game(id) => (CONTROL, names.game(id).to_vec(), id),
        Subject::Shard(id) => {
            let mut filters = names.shard_filters(id).to_vec();
            filters.push(names.service(ServiceKind::Shard, id));
            (CONTROL, filters, id)
        }
        Subject::Alert(id) => (ALERTS, vec![names.alert(id.split(':').next().unwrap_or(id))], id),
    };
    let is_one_incident = stream == ALERTS && id.contains(':');
    let mut lines = Vec::new();
    let keep = |stored: Stored| {
        if let Ok(event) = stored.event()
            && (!is_one_incident || event.payload.as_ref().is_some_and(|p| story::incidents(p).contains(&id.as_str())))
        {
            lines.push(story::line_of(stored.sequence, &event));
        }
        ControlFlow::Continue(())
    };
    source.read(stream, &filters, 1, ALL, keep).await?;
    if lines.is_empty() { Err(AuditError::Unknown(id.clone())) } else { Ok(lines) }
}

/// The first sequence of CONTROL that `moment` takes in.
///
/// # Errors
/// When it is beyond the end, or nothing can be read.
pub async fn first_from(source: &Source, moment: Moment) -> Result<u64, AuditError> {
    match moment {
        Moment::Sequence(sequence) => Ok(sequence),
        Moment::Now | Moment::Time(_) => Ok(sequence_at(source, moment).await? + 1),
    }
}

/// Whether the promise was kept from one moment to another. What was before is read, too, for what it left behind.
/// `progress` is told how many events have been counted, of how many.
///
/// # Errors
/// When a moment is beyond the end, or the streams cannot be read whole.
pub async fn sla(source: &Source, from: Moment, to: Moment, progress: impl Fn(u64, u64)) -> Result<Sla, AuditError> {
    let (first, last) = (first_from(source, from).await?, sequence_at(source, to).await?);
    if first > last + 1 {
        return Err(AuditError::Backwards);
    }
    let mut counter = Counter::default();
    let (mut begun_us, mut last_us) = (None, 0);
    let mut state = State::default();
    let control = |stored: Stored| {
        // What is no valid event decided nothing.
        if let Ok((_, event)) = state.fold(&stored.entry()) {
            last_us = event.occurred_at_us;
            if stored.sequence >= first && first > 1 && begun_us.is_none() {
                let at_us = if let Moment::Time(at_us) = from { at_us } else { event.occurred_at_us };
                counter.begin(at_us);
                begun_us = Some(at_us);
            }
            counter.control(&event);
        }
        if stored.sequence.is_multiple_of(PROGRESS_EVERY) {
            progress(stored.sequence, last);
        }
        ControlFlow::Continue(())
    };
    source.read(CONTROL, &[], 1, last, control).await?;
    let until_us = match (to, source) {
        (Moment::Time(at_us), _) => at_us.min(now_us()),
        // A log that is gone tells nothing of what came after.
        (Moment::Sequence(_), _) | (Moment::Now, Source::Archive { .. }) => last_us,
        (Moment::Now, Source::Log(_)) => now_us(),
    };
    if first > 1 && begun_us.is_none() {
        // Nothing was decided since.
        let at_us = if let Moment::Time(at_us) = from { at_us } else { last_us };
        counter.begin(at_us);
        begun_us = Some(at_us);
    }
    let is_meant = |at_us: i64| begun_us.is_none_or(|begun| at_us >= begun) && at_us <= until_us;
    // The archive holds no game states: what they would tell is then not counted.
    if let Source::Log(_) = source {
        let states = |stored: Stored| {
            if let Some(event) = stored.event().ok().filter(|e| is_meant(e.occurred_at_us)) {
                counter.state(&event);
            }
            ControlFlow::Continue(())
        };
        source.read(GAME_STATES, &[], 1, ALL, states).await?;
    }
    let alerts = |stored: Stored| {
        if let Some(event) = stored.event().ok().filter(|e| is_meant(e.occurred_at_us)) {
            counter.alert(&event);
        }
        ControlFlow::Continue(())
    };
    source.read(ALERTS, &[], 1, ALL, alerts).await?;
    Ok(counter.finish(until_us))
}
