//! What can be measured of a program, as Prometheus reads it at `/metrics`.

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use tokio_util::sync::CancellationToken;

pub use ::metrics::{counter, gauge, histogram};

/// What a figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

use Kind::{Counter, Gauge, Histogram};

/// Every figure: its name with its unit, what it is, and what it says. No label takes its values from outside.
pub const METRICS: [(&str, Kind, &str); 47] = [
    ("arbees_alert_deliveries_total", Counter, "alerts handed to a channel, by kind of channel and outcome"),
    ("arbees_alert_delivery_seconds", Histogram, "from composing an alert to its delivery, by kind of channel"),
    ("arbees_alerts_open", Gauge, "incidents that last"),
    ("arbees_api_request_seconds", Histogram, "answers of the query API, by path"),
    ("arbees_breakers_open", Gauge, "shards whose breaker is open"),
    ("arbees_build_info", Gauge, "1, with the program and its version"),
    ("arbees_database_connections", Gauge, "connections of the pool, by what they do"),
    ("arbees_database_retries_total", Counter, "tries of the database after a failure that may pass"),
    ("arbees_database_up", Gauge, "1 while the database answers"),
    ("arbees_decide_seconds", Histogram, "one turn of the leader's loop"),
    ("arbees_discovery_failing_leagues", Gauge, "leagues whose scoreboard cannot be had"),
    ("arbees_espn_breaker_open", Gauge, "1 while an endpoint of a league is left alone"),
    ("arbees_espn_request_seconds", Histogram, "answers of ESPN, by league"),
    ("arbees_espn_requests_total", Counter, "requests to ESPN, by league and outcome"),
    ("arbees_events_total", Counter, "events that the leader appended, by type"),
    ("arbees_games_owned", Gauge, "games that a shard has"),
    ("arbees_games_unwatched", Gauge, "live or suspended games that no shard has confirmed"),
    ("arbees_games_waiting", Gauge, "games with nowhere to go"),
    ("arbees_handover_seconds", Histogram, "from an assignment to its confirmation"),
    (
        "arbees_heartbeat_age_seconds",
        Gauge,
        "since the last heartbeat of whoever is silent longest, by kind of service",
    ),
    ("arbees_leader", Gauge, "1 while this orchestrator leads"),
    ("arbees_lease_seconds", Gauge, "how long this shard may still act"),
    ("arbees_log_append_seconds", Histogram, "from sending a batch to its acknowledgement"),
    ("arbees_log_batch_events", Histogram, "events in a batch"),
    ("arbees_log_connected", Gauge, "1 while the log is connected"),
    ("arbees_log_reconnects_total", Counter, "times a tail began again, by stream"),
    ("arbees_moves_total", Counter, "games that were moved, by the rule that moved them"),
    ("arbees_outbox_dropped_total", Counter, "messages for Redis that were given up, by why"),
    ("arbees_outbox_waiting", Gauge, "messages that wait for Redis"),
    ("arbees_process_start_seconds", Gauge, "when the program started, as a Unix time"),
    ("arbees_projector_batch_events", Histogram, "messages in a transaction, by stream"),
    ("arbees_projector_dead_letters", Gauge, "messages of the log that were put aside"),
    ("arbees_projector_lag_events", Gauge, "messages of a stream that the tables do not have"),
    ("arbees_projector_lag_seconds", Gauge, "age of the oldest message that the tables do not have, by stream"),
    ("arbees_projector_write_seconds", Histogram, "one transaction, by stream"),
    ("arbees_redis_blind_seconds_total", Counter, "time in which subscriptions heard nothing"),
    ("arbees_redis_dropped_total", Counter, "messages from Redis that a slow reader lost"),
    (
        "arbees_redis_publish_failures_total",
        Counter,
        "commands that Redis did not take, health checks and repeats among them",
    ),
    ("arbees_redis_reconnects_total", Counter, "subscriptions that came back"),
    ("arbees_redis_subscriptions", Gauge, "subscriptions that stand"),
    ("arbees_services", Gauge, "services, by kind and status"),
    ("arbees_shard_games", Gauge, "games that this shard watches"),
    ("arbees_states_published_total", Counter, "game states that the log took"),
    ("arbees_states_shed_total", Counter, "game states that were dropped, by why"),
    ("arbees_term", Gauge, "the term of the leader"),
    ("arbees_unread_payloads_total", Counter, "messages from Redis that cannot be read"),
    ("arbees_verbs_total", Counter, "what operators asked for, by outcome"),
];

/// Upper bounds of what takes time, in seconds.
const SECONDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
/// Upper bounds of what is counted.
const EVENTS: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 25.0, 100.0, 400.0, 1_000.0, 4_000.0];
/// How often old figures are folded together.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Begins to measure; what serves it.
///
/// # Errors
/// When this process measures already.
pub fn start(program: &'static str, stop: &CancellationToken) -> Result<Router, String> {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_events".to_owned()), &EVENTS))
        .map_err(|e| e.to_string())?;
    let handle = builder.install_recorder().map_err(|e| e.to_string())?;
    for (name, kind, what) in METRICS {
        match kind {
            Counter => ::metrics::describe_counter!(name, what),
            Gauge => ::metrics::describe_gauge!(name, what),
            Histogram => ::metrics::describe_histogram!(name, what),
        }
    }
    gauge!("arbees_build_info", "program" => program, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    #[allow(clippy::cast_precision_loss)]
    gauge!("arbees_process_start_seconds").set(crate::time::now_us() as f64 / 1e6);
    let (upkeep, ending) = (handle.clone(), stop.clone());
    tokio::spawn(async move {
        while ending.run_until_cancelled(tokio::time::sleep(UPKEEP_EVERY)).await.is_some() {
            upkeep.run_upkeep();
        }
    });
    Ok(Router::new().route("/metrics", get(move || async move { handle.render() })))
}

/// A count as a figure.
#[allow(clippy::cast_precision_loss)]
#[must_use]
pub const fn figure(count: usize) -> f64 {
    count as f64
}
