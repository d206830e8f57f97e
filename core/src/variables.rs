//! What each environment variable means, and how a program tells of those that it reads.

use crate::config::{Asked, Env, Variable};

/// Every variable that some program reads, with its meaning.
const MEANINGS: [(&str, &str); 75] = [
    ("ALERT_ESCALATE_SECS", "a critical alert that nobody acknowledged is told again, louder, after so many seconds"),
    ("ALERT_LOG_PATH", "the file of alerts, made with its folder"),
    ("ALERT_RATE_LIMIT_SECS", "the same incident is told again at the earliest after so many seconds"),
    ("ALERT_REMIND_SECS", "an incident that lasts is told again every so many seconds"),
    ("ALERT_SMS_TO", "numbers that get short messages, comma separated"),
    ("API_READ_TOKEN", "what `/v1` asks for as a bearer token; without it nothing is asked"),
    (
        "ASSIGNMENT_CIRCUIT_FAILURE_THRESHOLD",
        "assignments in a row that a shard may not take up before it gets no more",
    ),
    ("ASSIGNMENT_CIRCUIT_HALF_OPEN_TIMEOUT_SECS", "seconds until such a shard is tried again"),
    ("ASSIGNMENT_CIRCUIT_SUCCESS_THRESHOLD", "assignments it must then take up to be trusted again"),
    ("BRAKE_HOLD_SECS", "so long the brake lets one game a second go off lost shards, however well the log works"),
    (
        "BRAKE_SHARE_PCT",
        "the brake engages when more than so many in a hundred shards on the log fall silent at once; 100: never",
    ),
    ("CRITICAL_ALERTS_ENABLED", "`false`: alerts are events in the log, and nobody is told"),
    ("CUSTOM_WEBHOOK_SECRET", "its requests are signed with this, by HMAC-SHA256"),
    ("CUSTOM_WEBHOOK_URL", "a webhook of your own that is told of alerts"),
    ("DATABASE_URL", "the database of the tables"),
    ("DB_HEALTH_ALERT_THRESHOLD", "failed checks in a row before people are told"),
    (
        "DB_HEALTH_CHECK_ENABLED",
        "`false`: the database is not watched, and nobody is told of it, of tables that fall behind or of messages put aside",
    ),
    ("DB_HEALTH_CHECK_INTERVAL_SECS", "seconds between checks of the database"),
    ("DB_POOL_ACQUIRE_TIMEOUT_SECS", "seconds that a writer waits for a connection; the query API waits 3 at most"),
    ("DB_POOL_IDLE_TIMEOUT_SECS", "seconds after which an idle connection is closed"),
    ("DB_POOL_MAX_CONNECTIONS", "connections of the writers at most; the query API has half as many of its own"),
    ("DB_POOL_MAX_LIFETIME_SECS", "seconds after which a connection is replaced"),
    ("DB_POOL_MIN_CONNECTIONS", "connections that are kept open"),
    (
        "DB_POOL_PRESET",
        "other defaults for `DB_POOL_*`: `high_throughput` has 10 to 50 connections and a minute's patience, `low_latency` 20 that are always warm and 2 s",
    ),
    ("DEGRADED_PATIENCE_SECS", "a shard that is degraded for so long loses its games to others that are not"),
    ("DISCOVERY_INTERVAL_SECS", "seconds between two readings of all scoreboards"),
    ("ESPN_BASE_URL", "another server of scoreboards"),
    ("ESPN_CB_FAILURE_THRESHOLD", "failures in a row after which an endpoint of a league is left alone"),
    ("ESPN_CB_RECOVERY_TIMEOUT_SECS", "for so many seconds; then it is tried once"),
    ("HEALTH_CHECK_INTERVAL_SECS", "unused: silence is looked at five times a second"),
    (
        "HEARTBEAT_INTERVAL_SECS",
        "seconds between a shard's heartbeats on Redis; those on the log go by `LOG_HEARTBEAT_MS`",
    ),
    (
        "HTTP_LISTEN",
        "where `/healthz`, `/readyz` and `/metrics` are served, by the projector the query API and the dashboard, too; port 0 takes a free one",
    ),
    ("INSTANCE_ID", "its name; each needs its own"),
    ("LEASE_MARGIN_MS", "what the leader waits beyond a lease before it gives the games to others"),
    (
        "LEASE_TTL_MS",
        "how long a shard may act from sending a heartbeat; at least twice the beat, and the same for all",
    ),
    ("LOG_FORMAT", "how a program logs"),
    ("LOG_HEARTBEAT_MS", "milliseconds between heartbeats on the log"),
    ("MAX_GAMES", "how many games it watches at most"),
    ("MIN_EDGE_PCT", "unused: it belongs to the trading side"),
    ("NATS_CREDS", "path of a credentials file"),
    (
        "NATS_MONITOR_URL",
        "the server's monitoring endpoint, as in `http://nats:8222`: tells whether acknowledged means written",
    ),
    ("NATS_URL", "the log: one server or several, comma separated"),
    ("OPERATOR_TOKEN", "what operators must know; without it operator verbs are off"),
    ("ORCHESTRATOR_MODE", "`shadow`: decides and logs, sends nothing"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "a collector that takes traces over OTLP and HTTP, as in `http://collector:4318`"),
    ("PAGERDUTY_EVENTS_URL", "another server for Events v2"),
    ("PAGERDUTY_ROUTING_KEY", "PagerDuty is told of alerts under this key"),
    ("POLL_INTERVAL", "seconds between polls of a league"),
    ("PREGAME_ASSIGN_MINUTES", "a game is assigned so many minutes before its start"),
    ("PREGAME_DISCOVERY_WINDOW_HOURS", "how many hours ahead games are made known"),
    (
        "REBALANCE_SHARE_PCT",
        "games move for evenness when the fullest and the emptiest shard differ by more than so many hundredths of capacity",
    ),
    ("REDIS_RECONNECT_BASE_DELAY_MS", "how soon a broken subscription is tried again; each try waits twice as long"),
    ("REDIS_RECONNECT_COOLDOWN_SECS", "after too many failures it rests for so many seconds"),
    ("REDIS_RECONNECT_JITTER_PCT", "how far each delay may be off, as a share of it"),
    ("REDIS_RECONNECT_MAX_DELAY_MS", "the longest of these delays"),
    ("REDIS_RECONNECT_MAX_FAILURES", "failures in a row before it rests"),
    (
        "REDIS_URL",
        "the bus; with Sentinel `redis+sentinel://[user:password@]host[:26379],…/name[/database]`; `rediss://` and `rediss+sentinel://` for TLS. User, password and TLS are for the master: sentinels are asked in the clear. Authorities are the system's, or in their place those of `SSL_CERT_FILE`, which then counts for NATS and HTTPS, too",
    ),
    ("RESYNC_DEBOUNCE_SECS", "how long a restarted Redis-only shard is waited for before it is told its games again"),
    ("RESYNC_RATE_LIMIT_GAMES_PER_SEC", "how fast it is told"),
    ("RUST_LOG", "what is logged: `warn`, or by part, as in `info,arbees_core::bus=debug`"),
    ("SCHEDULED_SYNC_INTERVAL_SECS", "seconds between two looks for coming games"),
    ("SHARD_ID", "its name"),
    ("SHARD_TIMEOUT_SECS", "a Redis-only service silent for longer is lost"),
    ("SHARD_TYPE", "what it watches; a `crypto` shard is given no games"),
    ("SLACK_WEBHOOK_URL", "a Slack webhook that is told of alerts"),
    (
        "SSL_CERT_FILE",
        "authorities that are trusted in place of the system's: for Redis, NATS and HTTPS, so put all of them into it",
    ),
    ("STREAM_PREFIX", "letters, digits, `-`: keeps deployments on one server apart"),
    ("STREAM_REPLICAS", "copies of streams created here: 1, 3 or 5"),
    (
        "SYSTEM_MONITOR_INTERVAL_SECS",
        "seconds between two looks at what a program stands on, as `/healthz` shows it; the database has an interval of its own",
    ),
    (
        "TWILIO_ACCOUNT_SID",
        "short messages: all four of `TWILIO_ACCOUNT_SID`, `TWILIO_AUTH_TOKEN`, `TWILIO_FROM` and `ALERT_SMS_TO`, or none",
    ),
    ("TWILIO_API_URL", "another server for short messages"),
    ("TWILIO_AUTH_TOKEN", "see `TWILIO_ACCOUNT_SID`"),
    ("TWILIO_FROM", "the number that short messages come from"),
    ("ZMQ_PUB_PORT", "unused: it belongs to the trading side"),
    ("ZMQ_SUB_ENDPOINTS", "unused: it belongs to the trading side"),
];

/// What `name` means; none for a variable that nothing should read.
#[must_use]
pub fn meaning(name: &str) -> Option<&'static str> {
    MEANINGS.iter().find(|(known, _)| *known == name).map(|(_, what)| *what)
}

/// Those that deployments set and nothing here uses: read, so that what cannot be read is refused at start.
pub fn read_unused<F: Fn(&str) -> Option<String>>(env: &mut Env<F>) {
    env.seconds("HEALTH_CHECK_INTERVAL_SECS", 15.0, 0.1..=3_600.0);
    env.number("MIN_EDGE_PCT", 15.0, 0.0..=100.0);
    env.number("ZMQ_PUB_PORT", 5_558, 1..=65_535);
    env.text("ZMQ_SUB_ENDPOINTS");
}

/// Says once which variables are set and unused.
pub fn say_unused(asked: &Asked) {
    for Variable { name, .. } in asked.all() {
        let what = meaning(&name).filter(|what| what.starts_with("unused"));
        if let Some(what) = what.filter(|_| std::env::var_os(&name).is_some_and(|v| !v.is_empty())) {
            tracing::info!("{name} is set, and {what}");
        }
    }
}

/// What each program reads whatever it is.
pub fn read_common<F: Fn(&str) -> Option<String>>(env: &mut Env<F>) {
    env.one_of("LOG_FORMAT", "text", &["text", "json"]);
    env.url_if_set(crate::traces::ENDPOINT, &["http://", "https://"]);
    env.text_or("RUST_LOG", "info,async_nats=off,sqlx=warn");
    env.text("SSL_CERT_FILE");
}
