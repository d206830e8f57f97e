//! The variables that the programs read, as they tell of them themselves: the README's table is made from that.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::plane::programs_folder;

/// What deployments already set, and what is new with this system: the contract names them.
const CONTRACT: [&str; 67] = [
    "REDIS_URL",
    "DATABASE_URL",
    "SHARD_ID",
    "SHARD_TYPE",
    "MAX_GAMES",
    "POLL_INTERVAL",
    "HEARTBEAT_INTERVAL_SECS",
    "DISCOVERY_INTERVAL_SECS",
    "SCHEDULED_SYNC_INTERVAL_SECS",
    "PREGAME_DISCOVERY_WINDOW_HOURS",
    "HEALTH_CHECK_INTERVAL_SECS",
    "SHARD_TIMEOUT_SECS",
    "RESYNC_DEBOUNCE_SECS",
    "RESYNC_RATE_LIMIT_GAMES_PER_SEC",
    "ASSIGNMENT_CIRCUIT_FAILURE_THRESHOLD",
    "ASSIGNMENT_CIRCUIT_SUCCESS_THRESHOLD",
    "ASSIGNMENT_CIRCUIT_HALF_OPEN_TIMEOUT_SECS",
    "ESPN_CB_FAILURE_THRESHOLD",
    "ESPN_CB_RECOVERY_TIMEOUT_SECS",
    "ZMQ_SUB_ENDPOINTS",
    "ZMQ_PUB_PORT",
    "MIN_EDGE_PCT",
    "REDIS_RECONNECT_MAX_FAILURES",
    "REDIS_RECONNECT_BASE_DELAY_MS",
    "REDIS_RECONNECT_MAX_DELAY_MS",
    "REDIS_RECONNECT_JITTER_PCT",
    "CRITICAL_ALERTS_ENABLED",
    "SLACK_WEBHOOK_URL",
    "CUSTOM_WEBHOOK_URL",
    "ALERT_LOG_PATH",
    "ALERT_RATE_LIMIT_SECS",
    "DB_HEALTH_CHECK_ENABLED",
    "DB_HEALTH_CHECK_INTERVAL_SECS",
    "DB_HEALTH_ALERT_THRESHOLD",
    "DB_POOL_MAX_CONNECTIONS",
    "DB_POOL_MIN_CONNECTIONS",
    "DB_POOL_MAX_LIFETIME_SECS",
    "DB_POOL_IDLE_TIMEOUT_SECS",
    "DB_POOL_ACQUIRE_TIMEOUT_SECS",
    "SYSTEM_MONITOR_INTERVAL_SECS",
    "NATS_URL",
    "NATS_CREDS",
    "NATS_MONITOR_URL",
    "LOG_HEARTBEAT_MS",
    "LEASE_TTL_MS",
    "LEASE_MARGIN_MS",
    "PREGAME_ASSIGN_MINUTES",
    "REDIS_RECONNECT_COOLDOWN_SECS",
    "STREAM_PREFIX",
    "ORCHESTRATOR_MODE",
    "CUSTOM_WEBHOOK_SECRET",
    "PAGERDUTY_ROUTING_KEY",
    "TWILIO_ACCOUNT_SID",
    "TWILIO_AUTH_TOKEN",
    "TWILIO_FROM",
    "ALERT_SMS_TO",
    "API_READ_TOKEN",
    "OPERATOR_TOKEN",
    "HTTP_LISTEN",
    "INSTANCE_ID",
    "ESPN_BASE_URL",
    "STREAM_REPLICAS",
    "LOG_FORMAT",
    "RUST_LOG",
    "ALERT_ESCALATE_SECS",
    "ALERT_REMIND_SECS",
    "DB_POOL_PRESET",
];
/// Defaults by the contract, of those whose default is a number.
const DEFAULTS: [(&str, &str); 30] = [
    ("MAX_GAMES", "20"),
    ("POLL_INTERVAL", "0.5"),
    ("HEARTBEAT_INTERVAL_SECS", "10"),
    ("DISCOVERY_INTERVAL_SECS", "30"),
    ("SCHEDULED_SYNC_INTERVAL_SECS", "3600"),
    ("PREGAME_DISCOVERY_WINDOW_HOURS", "6"),
    ("HEALTH_CHECK_INTERVAL_SECS", "15"),
    ("SHARD_TIMEOUT_SECS", "60"),
    ("RESYNC_DEBOUNCE_SECS", "5"),
    ("RESYNC_RATE_LIMIT_GAMES_PER_SEC", "10"),
    ("ASSIGNMENT_CIRCUIT_FAILURE_THRESHOLD", "3"),
    ("ASSIGNMENT_CIRCUIT_SUCCESS_THRESHOLD", "2"),
    ("ASSIGNMENT_CIRCUIT_HALF_OPEN_TIMEOUT_SECS", "30"),
    ("ESPN_CB_FAILURE_THRESHOLD", "5"),
    ("ESPN_CB_RECOVERY_TIMEOUT_SECS", "60"),
    ("ZMQ_PUB_PORT", "5558"),
    ("MIN_EDGE_PCT", "15"),
    ("REDIS_RECONNECT_MAX_FAILURES", "10"),
    ("REDIS_RECONNECT_BASE_DELAY_MS", "1000"),
    ("REDIS_RECONNECT_MAX_DELAY_MS", "60000"),
    ("REDIS_RECONNECT_JITTER_PCT", "0.1"),
    ("ALERT_RATE_LIMIT_SECS", "300"),
    ("DB_HEALTH_CHECK_INTERVAL_SECS", "30"),
    ("DB_HEALTH_ALERT_THRESHOLD", "3"),
    ("DB_POOL_MAX_CONNECTIONS", "20"),
    ("DB_POOL_MIN_CONNECTIONS", "5"),
    ("SYSTEM_MONITOR_INTERVAL_SECS", "30"),
    ("LOG_HEARTBEAT_MS", "1000"),
    ("LEASE_TTL_MS", "2000"),
    ("LEASE_MARGIN_MS", "250"),
];
const BEGIN: &str =
    "<!-- made from the programs by `UPDATE_README=1 cargo test --workspace --test e2e -- variables` -->\n";
const END: &str = "<!-- end -->\n";

struct Row {
    default: String,
    allowed: String,
    meaning: String,
    programs: Vec<&'static str>,
}

/// What each program says it reads.
fn asked() -> BTreeMap<String, Row> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for program in ["orchestrator", "shard", "projector"] {
        let out =
            Command::new(programs_folder().join(format!("arbees-{program}"))).arg("--variables").output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let all: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap();
        for variable in all {
            let text = |field: &str| variable[field].as_str().unwrap_or_default().to_owned();
            let meaning = text("meaning");
            assert!(!meaning.is_empty(), "{} has no meaning in variables.rs", text("name"));
            let default = if text("name") == "INSTANCE_ID" { String::new() } else { text("default") };
            let row = Row { default, allowed: text("allowed"), meaning, programs: Vec::new() };
            let known = rows.entry(text("name")).or_insert(row);
            assert!(
                text("name") == "INSTANCE_ID" || known.default == text("default"),
                "{} has two defaults",
                text("name")
            );
            known.programs.push(program);
        }
    }
    rows
}

fn table(rows: &BTreeMap<String, Row>) -> String {
    let mut text = String::from("| variable | default | allowed | for | meaning |\n|---|---|---|---|---|\n");
    for (name, row) in rows {
        let code = |t: &str| if t.is_empty() { String::new() } else { format!("`{t}`") };
        let programs = if row.programs.len() == 3 { "all".to_owned() } else { row.programs.join(", ") };
        let Row { default, allowed, meaning, .. } = row;
        text.push_str(&format!("| `{name}` | {} | {allowed} | {programs} | {meaning} |\n", code(default)));
    }
    text
}

#[test]
fn the_readmes_table_of_variables_is_what_the_programs_read() {
    let rows = asked();
    for name in CONTRACT {
        assert!(rows.contains_key(name), "no program reads {name}");
    }
    for (name, default) in DEFAULTS {
        assert_eq!(rows[name].default, default, "{name}");
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the place of the table");
    let (found, after) = rest.split_once(END).expect("the end of the table");
    let made = table(&rows);
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{made}{END}{after}")).unwrap();
    } else {
        assert_eq!(found, made, "run it with UPDATE_README=1");
    }
}

#[test]
fn help_names_every_variable_and_what_is_unused_is_said_at_start() {
    let shard = programs_folder().join("arbees-shard");
    let help = String::from_utf8(Command::new(&shard).arg("--help").output().unwrap().stdout).unwrap();
    for part in ["SHARD_ID", "MAX_GAMES", "[20]", "Example:", "Exit codes", "unused: it belongs to the trading side"] {
        assert!(help.contains(part), "{part} in {help}");
    }
    let wrong = Command::new(&shard).arg("--shards").output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    // A port that is taken ends it right after its configuration.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut said = Command::new(&shard);
    said.env("SHARD_ID", "s").env("ZMQ_PUB_PORT", "5559").env("HTTP_LISTEN", taken.local_addr().unwrap().to_string());
    let out = said.output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(1) && text.contains("ZMQ_PUB_PORT is set, and unused"), "{text}");
    let refused = Command::new(&shard).env("SHARD_ID", "s").env("ZMQ_PUB_PORT", "many").output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && text.contains("ZMQ_PUB_PORT=\"many\""), "{text}");
}
