//! ALERTS into `alerts` and `alert_silences`: each incident from its first alert to its end.

use std::collections::{BTreeMap, BTreeSet};

use arbees_core::log::{ALERTS, Log, ReadError, Stored};
use arbees_proto::{Payload, v1};
use chrono::{DateTime, Utc};
use sqlx::{Postgres, Transaction};

use crate::checkpoint::signed;
use crate::letters::{self, DeadLetter};
use crate::rows::{clean, time};

/// A row of `alerts`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlertRow {
    pub sequence: u64,
    pub incident: String,
    pub kind: String,
    pub severity: String,
    pub summary: String,
    pub raised_at: DateTime<Utc>,
    pub times: i32,
    pub resolved_at: Option<DateTime<Utc>>,
    pub first_delivered_at: Option<DateTime<Utc>>,
    pub delivered_to: BTreeSet<String>,
    pub failed_on: BTreeSet<String>,
    pub suppressed: String,
    pub acknowledged_at: Option<DateTime<Utc>>,
    pub acknowledged_by: Option<String>,
    pub is_false_alarm: bool,
    pub changed_sequence: u64,
}

/// A row of `alert_silences`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SilenceRow {
    pub kind: String,
    pub until_us: i64,
    pub operator: String,
    pub sequence: u64,
}

/// The fold of ALERTS: the last row of each incident, and what changed since it was last taken.
#[derive(Debug, Default)]
pub struct AlertBook {
    latest: BTreeMap<String, AlertRow>,
    touched: BTreeMap<u64, AlertRow>,
    silenced: BTreeMap<String, SilenceRow>,
    dead: Vec<DeadLetter>,
}

/// What a batch comes to.
#[derive(Debug, Default)]
pub struct AlertChanges {
    pub rows: Vec<AlertRow>,
    pub silences: Vec<SilenceRow>,
    dead: Vec<DeadLetter>,
}

impl AlertBook {
    /// The fold of ALERTS up to `to`.
    pub async fn load(log: &Log, to: u64) -> Result<Self, ReadError> {
        let mut book = Self::default();
        let mut reader = log.read(ALERTS, Vec::new(), 1, to).await?;
        while let Some(stored) = reader.next().await? {
            book.add(&stored);
        }
        Ok(book)
    }

    /// What changed since this was last asked.
    pub fn take(&mut self) -> AlertChanges {
        AlertChanges {
            rows: std::mem::take(&mut self.touched).into_values().collect(),
            silences: std::mem::take(&mut self.silenced).into_values().collect(),
            dead: std::mem::take(&mut self.dead),
        }
    }

    /// Folds one message.
    pub fn add(&mut self, stored: &Stored) {
        match stored.event() {
            Ok(event) => {
                if !self.apply(stored.sequence, &event) {
                    self.dead.push((stored.clone(), "no event of ALERTS".to_owned()));
                }
            }
            Err(error) => self.dead.push((stored.clone(), error.to_string())),
        }
    }

    fn apply(&mut self, sequence: u64, event: &v1::Event) -> bool {
        let at = time(event.occurred_at_us);
        match &event.payload {
            Some(Payload::AlertRaised(a)) => self.raised(sequence, at, a),
            Some(Payload::AlertResolved(a)) => self.change(sequence, &a.incident, |row| {
                row.resolved_at.get_or_insert(at);
            }),
            Some(Payload::AlertDelivered(a)) => {
                for incident in &a.incidents {
                    self.change(sequence, incident, |row| {
                        row.delivered_to.insert(clean(&a.channel));
                        row.first_delivered_at.get_or_insert(at);
                    });
                }
            }
            Some(Payload::AlertDeliveryFailed(a)) => {
                for incident in &a.incidents {
                    self.change(sequence, incident, |row| {
                        row.failed_on.insert(clean(&a.channel));
                    });
                }
            }
            Some(Payload::AlertSuppressed(a)) => {
                self.change(sequence, &a.incident, |row| row.suppressed = clean(&a.reason));
            }
            Some(Payload::AlertAcknowledged(a)) => self.change(sequence, &a.incident, |row| {
                row.acknowledged_at = Some(at);
                row.acknowledged_by = Some(clean(&a.operator));
                row.is_false_alarm = a.false_alarm;
            }),
            Some(Payload::AlertSilenced(a)) => {
                let (kind, operator) = (clean(&a.kind), clean(&a.operator));
                self.silenced.insert(kind.clone(), SilenceRow { kind, until_us: a.until_us, operator, sequence });
            }
            _ => return false,
        }
        true
    }

    fn raised(&mut self, sequence: u64, at: DateTime<Utc>, alert: &v1::AlertRaised) {
        let lasts = self.latest.get(&alert.incident).is_some_and(|row| row.resolved_at.is_none());
        if !lasts {
            let row = AlertRow {
                sequence,
                incident: clean(&alert.incident),
                kind: clean(&alert.kind),
                raised_at: at,
                ..AlertRow::default()
            };
            self.latest.insert(alert.incident.clone(), row);
        }
        self.change(sequence, &alert.incident, |row| {
            row.times += 1;
            row.severity = clean(&alert.severity);
            row.summary = clean(&alert.summary);
        });
    }

    fn change(&mut self, sequence: u64, incident: &str, how: impl FnOnce(&mut AlertRow)) {
        let Some(row) = self.latest.get_mut(incident) else { return };
        how(row);
        row.changed_sequence = sequence;
        self.touched.insert(row.sequence, row.clone());
    }
}

/// Channels as one text.
pub fn joined(channels: &BTreeSet<String>) -> String {
    channels.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}

/// Writes `changes`, and the messages themselves into the archive.
pub async fn write(
    tx: &mut Transaction<'_, Postgres>,
    messages: &[Stored],
    changes: &AlertChanges,
) -> Result<(), sqlx::Error> {
    letters::archive(tx, ALERTS, messages).await?;
    letters::bury(tx, ALERTS, &changes.dead).await?;
    // A handful at a time: people could read no more.
    for row in &changes.rows {
        write_row(tx, row).await?;
    }
    for silence in &changes.silences {
        let sql = "INSERT INTO alert_silences AS s (kind, until_at, operator, sequence) VALUES ($1, $2, $3, $4)
                   ON CONFLICT (kind) DO UPDATE SET until_at = excluded.until_at, operator = excluded.operator,
                       sequence = excluded.sequence WHERE s.sequence < excluded.sequence";
        sqlx::query(sql)
            .bind(&silence.kind)
            .bind(time(silence.until_us))
            .bind(&silence.operator)
            .bind(signed(silence.sequence))
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}

async fn write_row(tx: &mut Transaction<'_, Postgres>, row: &AlertRow) -> Result<(), sqlx::Error> {
    let sql = "INSERT INTO alerts AS a (sequence, incident, kind, severity, summary, raised_at, times, resolved_at,
                   first_delivered_at, delivered_to, failed_on, suppressed, acknowledged_at, acknowledged_by, is_false_alarm,
                   changed_sequence)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
               ON CONFLICT (sequence) DO UPDATE SET severity = excluded.severity, summary = excluded.summary,
                   times = excluded.times, resolved_at = excluded.resolved_at,
                   first_delivered_at = excluded.first_delivered_at, delivered_to = excluded.delivered_to,
                   failed_on = excluded.failed_on, suppressed = excluded.suppressed,
                   acknowledged_at = excluded.acknowledged_at, acknowledged_by = excluded.acknowledged_by,
                   is_false_alarm = excluded.is_false_alarm, changed_sequence = excluded.changed_sequence
               WHERE a.changed_sequence < excluded.changed_sequence";
    sqlx::query(sql)
        .bind(signed(row.sequence))
        .bind(&row.incident)
        .bind(&row.kind)
        .bind(&row.severity)
        .bind(&row.summary)
        .bind(row.raised_at)
        .bind(row.times)
        .bind(row.resolved_at)
        .bind(row.first_delivered_at)
        .bind(joined(&row.delivered_to))
        .bind(joined(&row.failed_on))
        .bind(&row.suppressed)
        .bind(row.acknowledged_at)
        .bind(row.acknowledged_by.as_deref())
        .bind(row.is_false_alarm)
        .bind(signed(row.changed_sequence))
        .execute(&mut **tx)
        .await
        .map(drop)
}
