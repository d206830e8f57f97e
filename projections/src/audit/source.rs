//! Where history is read: the log itself, or the archive of it in the database for the day the log is gone.

use std::ops::ControlFlow;

use arbees_core::log::{CONTROL, Log, ReadError, Stored};
use arbees_fleet::State;
use arbees_proto::subject::Names;
use futures::TryStreamExt as _;
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row as _};

use super::AuditError;
use crate::checkpoint::{signed, unsigned};

/// A place that holds the streams' messages byte for byte.
#[derive(Clone, Debug)]
pub enum Source {
    Log(Log),
    /// `arbees.event_archive`: CONTROL and ALERTS.
    Archive {
        pool: PgPool,
        names: Names,
    },
}

impl Source {
    /// The subjects' names.
    #[must_use]
    pub const fn names(&self) -> &Names {
        match self {
            Self::Log(log) => log.names(),
            Self::Archive { names, .. } => names,
        }
    }

    /// What people call it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Log(_) => "the log",
            Self::Archive { .. } => "the archive",
        }
    }

    /// The last sequence of CONTROL.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn end(&self) -> Result<u64, AuditError> {
        match self {
            Self::Log(log) => Ok(log.bounds(CONTROL).await?.1),
            Self::Archive { pool, .. } => {
                let sql = "SELECT coalesce(max(sequence), 0) FROM arbees.event_archive WHERE stream = $1";
                Ok(unsigned(sqlx::query(sql).bind(CONTROL).fetch_one(pool).await?.get(0)))
            }
        }
    }

    /// Gives the messages of `stream` from `from` to `to` whose subjects match one of `filters` (none: all) to `on`, in their
    /// order, until it has enough.
    ///
    /// # Errors
    /// When they cannot be read whole.
    pub async fn read(
        &self,
        stream: &str,
        filters: &[String],
        from: u64,
        to: u64,
        mut on: impl FnMut(Stored) -> ControlFlow<()>,
    ) -> Result<(), AuditError> {
        match self {
            Self::Log(log) => {
                let (_, end) = log.bounds(stream).await?;
                let mut reader = log.read(stream, filters.to_vec(), from, to).await?;
                let mut at = from.saturating_sub(1);
                while let Some(stored) = reader.next().await? {
                    at = stored.sequence;
                    if on(stored).is_break() {
                        return Ok(());
                    }
                }
                if filters.is_empty() && at < end.min(to) {
                    // A replica that lags has answered.
                    let why = format!("it should reach to {}", end.min(to));
                    return Err(ReadError::Interrupted { stream: stream.to_owned(), at, why }.into());
                }
            }
            Self::Archive { pool, .. } => {
                let patterns: Vec<String> = filters.iter().map(|f| pattern(f)).collect();
                let sql = "SELECT sequence, subject, headers::text, payload, stored_at FROM arbees.event_archive
                           WHERE stream = $1 AND sequence BETWEEN $2 AND $3
                               AND (cardinality($4::text[]) = 0 OR subject ~ ANY($4))
                           ORDER BY sequence";
                let query = sqlx::query(sql).bind(stream).bind(signed(from)).bind(signed(to)).bind(patterns);
                let mut rows = query.fetch(pool);
                while let Some(row) = rows.try_next().await? {
                    if on(stored(&row)?).is_break() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// The time of the newest valid event of CONTROL at or before `sequence` and after `above`, with its sequence; without a
    /// time when there is none.
    pub(super) async fn time_at_or_before(&self, sequence: u64, above: u64) -> Result<(u64, Option<i64>), AuditError> {
        for at in (above + 1..=sequence).rev() {
            let found = match self {
                Self::Log(log) => Some(log.get(CONTROL, at).await?),
                Self::Archive { .. } => {
                    let mut found = None;
                    let keep = |stored| {
                        found = Some(stored);
                        ControlFlow::Break(())
                    };
                    self.read(CONTROL, &[], at, at, keep).await?;
                    found
                }
            };
            if let Some(event) = found.and_then(|stored| stored.event().ok()).filter(|e| e.occurred_at_us > 0) {
                return Ok((at, Some(event.occurred_at_us)));
            }
        }
        Ok((sequence, None))
    }

    /// The fold of CONTROL up to `sequence`.
    ///
    /// # Errors
    /// When it cannot be read whole.
    pub async fn fold(&self, sequence: u64) -> Result<State, AuditError> {
        match self {
            Self::Log(log) => Ok(log.fold(Some(sequence)).await?),
            Self::Archive { .. } => {
                let mut state = State::default();
                let mut hole = None;
                let fold = |stored: Stored| {
                    let expected = state.head.sequence + 1;
                    if stored.sequence != expected {
                        hole = Some(expected);
                        return ControlFlow::Break(());
                    }
                    // What is no valid event was told by the projector that archived it.
                    let _ = state.fold(&stored.entry());
                    ControlFlow::Continue(())
                };
                self.read(CONTROL, &[], 1, sequence, fold).await?;
                match hole {
                    None => Ok(state),
                    Some(sequence) => {
                        let why = "it is missing".to_owned();
                        Err(AuditError::Unreadable { sequence, from: "the archive", why })
                    }
                }
            }
        }
    }
}

/// A subject filter as a regular expression: `*` is one token, `>` all that follow.
fn pattern(filter: &str) -> String {
    let token = |token: &str| match token {
        "*" => "[^.]+".to_owned(),
        ">" => ".+".to_owned(),
        // Tokens hold letters, digits, _, - and =, of which none means anything.
        plain => plain.to_owned(),
    };
    format!("^{}$", filter.split('.').map(token).collect::<Vec<_>>().join("\\."))
}

fn stored(row: &PgRow) -> Result<Stored, AuditError> {
    let sequence = unsigned(row.get(0));
    let unreadable = |why: String| AuditError::Unreadable { sequence, from: "the archive", why };
    let pairs: std::collections::BTreeMap<String, String> =
        serde_json::from_str(row.get(2)).map_err(|e| unreadable(e.to_string()))?;
    let stored_at: chrono::DateTime<chrono::Utc> = row.get(4);
    let stored_at_ns = stored_at.timestamp_nanos_opt().unwrap_or(0);
    Ok(Stored::archived(sequence, stored_at_ns, row.get(1), &pairs, row.get(3)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_filter_becomes_a_pattern_for_whole_subjects() {
        assert_eq!(super::pattern("arbees.control.assignment.nfl-1.>"), r"^arbees\.control\.assignment\.nfl-1\..+$");
        assert_eq!(super::pattern("arbees.alert.*"), r"^arbees\.alert\.[^.]+$");
    }
}
