//! Watches what the projector stands on, and tells people: a database that is away, tables that fall behind, messages put aside.

use std::time::{Duration, Instant};

use arbees_core::alerts::{Alerter, Severity, open_of};
use arbees_core::db::DbHealth;
use arbees_core::health::Health;
use arbees_core::log::{CONTROL, Log};
use arbees_core::metrics::{figure, gauge};
use arbees_core::retry::{Policy, retry};
use arbees_proto::v1;
use sqlx::{PgPool, Row as _};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::projector::WRITES;

/// Events behind the end of CONTROL, for so long, that people should know of: a busy day has a few a second.
const LAG_EVENTS: u64 = 10_000;
const LAG_FOR: Duration = Duration::from_secs(30);
/// A database that does not answer within this has failed a check.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

const KINDS: [&str; 3] = ["database_connectivity", "projector_lagging", "dead_letter"];

/// Watches until canceled.
pub async fn run(log: Log, pool: PgPool, health: Health, settings: DbHealth, producer: v1::Producer) {
    if !settings.enabled {
        tracing::info!("DB_HEALTH_CHECK_ENABLED is false: the database is not watched");
        return;
    }
    // Nobody else raises these kinds: what lasts is read once.
    let (alerter, writing) = Alerter::new(log.clone(), None, producer);
    let never = CancellationToken::new();
    if let Ok(open) = retry("alerts", &Policy::patient(), &never, |_| true, || open_of(&log, &KINDS)).await {
        alerter.know(&open);
    }
    let mut monitor = Monitor { log, pool, health, settings, alerter, failures: 0, behind_since: None, letters: None };
    let mut ticks = tokio::time::interval(monitor.settings.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let looking = async {
        loop {
            ticks.tick().await;
            monitor.look().await;
        }
    };
    tokio::join!(writing, looking);
}

struct Monitor {
    log: Log,
    pool: PgPool,
    health: Health,
    settings: DbHealth,
    alerter: Alerter,
    /// Checks that failed in a row.
    failures: u32,
    behind_since: Option<Instant>,
    /// Messages put aside when it last looked.
    letters: Option<i64>,
}

impl Monitor {
    async fn look(&mut self) {
        let sql = "SELECT coalesce((SELECT sequence FROM arbees.projection_checkpoints WHERE stream = $1), 0),
                       (SELECT count(*) FROM arbees.dead_letters)";
        let asking = sqlx::query(sql).bind(CONTROL).fetch_one(&self.pool);
        let why = match tokio::time::timeout(ANSWER_WITHIN, asking).await {
            Ok(Ok(row)) => match WRITES.iter().find_map(|(_, part)| self.health.why(part)) {
                // It may have no room, and answer all the same.
                Some(why) => why,
                None => {
                    self.answered(crate::checkpoint::unsigned(row.get(0)), row.get(1)).await;
                    return;
                }
            },
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", ANSWER_WITHIN.as_secs()),
        };
        self.failures += 1;
        gauge!("arbees_database_up").set(0.0);
        self.tell_pool();
        self.health.failed("database", why.clone());
        if self.failures >= self.settings.alert_threshold {
            let summary = format!("the database failed {} checks in a row: {why}; tables fall behind", self.failures);
            self.alerter.raise("database_connectivity", "", Severity::Critical, summary);
        }
    }

    /// How many connections there are, and what they do.
    fn tell_pool(&self) {
        let (size, idle) = (usize::try_from(self.pool.size()).unwrap_or(0), self.pool.num_idle());
        gauge!("arbees_database_connections", "state" => "idle").set(figure(idle));
        gauge!("arbees_database_connections", "state" => "active").set(figure(size.saturating_sub(idle)));
        self.health.detail("database", format!("{size} connections, {idle} of them idle"));
    }

    async fn answered(&mut self, at: u64, letters: i64) {
        if std::mem::take(&mut self.failures) > 0 {
            tracing::info!("the database answers again");
        }
        self.health.ok("database");
        gauge!("arbees_database_up").set(1.0);
        self.tell_pool();
        #[allow(clippy::cast_precision_loss)]
        gauge!("arbees_projector_dead_letters").set(letters as f64);
        self.alerter.settle("database_connectivity", "");
        let end = self.log.bounds(CONTROL).await.map_or(at, |(_, end)| end);
        let behind = end.saturating_sub(at);
        if behind < LAG_EVENTS {
            self.behind_since = None;
            self.alerter.settle("projector_lagging", "");
        } else if self.behind_since.get_or_insert_with(Instant::now).elapsed() >= LAG_FOR {
            let summary = format!("the tables are {behind} events behind the log");
            self.alerter.raise("projector_lagging", "", Severity::Warning, summary);
        }
        let before = self.letters.replace(letters).unwrap_or(letters);
        if letters > before {
            let summary = format!("{} messages of the log are no valid events and were put aside", letters - before);
            self.alerter.raise("dead_letter", "", Severity::Warning, summary);
        } else {
            self.alerter.settle("dead_letter", "");
        }
    }
}
