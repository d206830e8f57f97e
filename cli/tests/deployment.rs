//! The Compose file and the Dockerfile, held against the programs. (No engine is needed; none is asked for.)

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap()
}

/// The Compose file with its anchors and merges resolved.
fn compose() -> Value {
    let mut value: serde_yaml_ng::Value = serde_yaml_ng::from_str(&read("docker-compose.yml")).unwrap();
    value.apply_merge().unwrap();
    serde_json::to_value(value).unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().map_or_else(Vec::new, |a| a.iter().map(|v| v.as_str().unwrap().to_owned()).collect())
}

/// The programs of this project that run in the Compose file, with what they are told.
fn ours(compose: &Value) -> Vec<(String, Vec<String>, Value)> {
    let services = compose["services"].as_object().unwrap().iter().filter(|(_, s)| s["build"] == ".");
    services.map(|(name, s)| (name.clone(), strings(&s["command"]), s["environment"].clone())).collect()
}

#[test]
fn every_command_is_a_program_that_the_image_holds() {
    let dockerfile = read("Dockerfile");
    let compose = compose();
    let mut seen = BTreeSet::new();
    for (name, command, _) in ours(&compose) {
        let program = &command[0];
        assert!(dockerfile.contains(&format!("/src/target/release/{program}")), "{name} runs {program}");
        let path = PathBuf::from(env!("CARGO_BIN_EXE_arbees")).with_file_name(program);
        assert!(path.is_file(), "{}", path.display());
        seen.insert(program.clone());
    }
    let all = ["arbees", "arbees-feed", "arbees-orchestrator", "arbees-projector", "arbees-shard"];
    assert_eq!(seen, all.map(str::to_owned).into());
    assert!(dockerfile.contains("\nUSER arbees\n"), "not as root");
}

#[test]
fn every_variable_is_one_that_the_program_reads() {
    let source = |folder: &str| {
        let mut text = String::new();
        let mut open = vec![root().join(folder)];
        while let Some(next) = open.pop() {
            for entry in std::fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    text.push_str(&std::fs::read_to_string(path).unwrap_or_default());
                }
            }
        }
        text
    };
    let shared = source("core/src");
    // All of them are given the addresses of everything; beyond that a program is told only what it reads.
    let everyones = ["NATS_URL", "REDIS_URL", "DATABASE_URL", "HTTP_LISTEN", "ESPN_BASE_URL"];
    for (name, command, environment) in ours(&compose()) {
        let own = match command[0].as_str() {
            "arbees-orchestrator" => source("orchestrator/src"),
            "arbees-shard" => source("shard/src"),
            "arbees-projector" => source("projections/src"),
            _ => source("cli/src"),
        };
        for variable in environment.as_object().unwrap().keys() {
            let read = |text: &str| text.contains(&format!("\"{variable}\""));
            let is_shared = everyones.contains(&variable.as_str()) && (read(&shared) || read(&source("shard/src")));
            assert!(is_shared || read(&own), "{name}: {} does not read {variable}", command[0]);
        }
    }
}

/// What the Compose file tells a program passes that program's own check: it gets as far as looking for its servers.
#[test]
fn the_programs_accept_what_they_are_told() {
    for (name, command, environment) in ours(&compose()) {
        if !["arbees-orchestrator", "arbees-shard", "arbees-projector"].contains(&command[0].as_str()) {
            continue;
        }
        let program = PathBuf::from(env!("CARGO_BIN_EXE_arbees")).with_file_name(&command[0]);
        let mut it = Command::new(program);
        for (variable, value) in environment.as_object().unwrap() {
            let value = value.as_str().unwrap();
            let value = value.split_once(":-").map_or(value, |(_, default)| default.trim_end_matches('}'));
            it.env(variable, value);
        }
        // One wrong value beside the given ones: it alone is complained about.
        let out = it.env("HTTP_LISTEN", "nowhere").output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{name}: {said}");
        assert!(said.contains("1 error(s)") && said.contains("HTTP_LISTEN"), "{name}: {said}");
    }
}

#[test]
fn health_is_asked_where_it_is_served_and_servers_are_pinned() {
    let compose = compose();
    for (name, service) in compose["services"].as_object().unwrap() {
        let image = service["image"].as_str().unwrap();
        let tag = image.rsplit_once(':').map(|(_, tag)| tag);
        assert!(tag.is_some_and(|t| t != "latest" && t.contains('.')), "{name}: {image}");
        let check = strings(&service["healthcheck"]["test"]).join(" ");
        if service["build"] == "." && !["migrate", "feed"].contains(&name.as_str()) {
            let port = service["environment"]["HTTP_LISTEN"].as_str().unwrap().rsplit_once(':').unwrap().1;
            assert!(check.ends_with(&format!("http://127.0.0.1:{port}/readyz")), "{name}: {check}");
        }
        for port in strings(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name} listens beyond loopback: {port}");
        }
    }
    let shards = ours(&compose).into_iter().filter(|(_, c, _)| c[0] == "arbees-shard");
    let ids: BTreeSet<String> = shards.map(|(_, _, e)| e["SHARD_ID"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 3, "three shards, each with its own id");
    assert!(read("deploy/nats.conf").contains("sync_interval: always"));
}

/// Names of ours that a text mentions, without what Prometheus adds to a histogram's.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let bare = |w: &str| ["_bucket", "_sum", "_count"].iter().find_map(|s| w.strip_suffix(s)).unwrap_or(w).to_owned();
    words.filter(|w| w.starts_with("arbees_")).map(bare).collect()
}

#[test]
fn the_grafana_dashboard_and_the_alert_rules_ask_for_figures_that_exist_and_leave_none_out() {
    let known: BTreeSet<String> = arbees_core::metrics::METRICS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let dashboard = metrics_in(&read("deploy/grafana-dashboard.json"));
    assert_eq!(dashboard, known, "every figure has its place in the dashboard");
    serde_json::from_str::<Value>(&read("deploy/grafana-dashboard.json")).unwrap();
    let rules = read("deploy/prometheus-rules.yml");
    assert_eq!(metrics_in(&rules).difference(&known).collect::<Vec<_>>(), [] as [&String; 0]);
    let rules: serde_yaml_ng::Value = serde_yaml_ng::from_str(&rules).unwrap();
    let rules = serde_json::to_value(rules).unwrap();
    let operations = read("docs/operations.md").to_lowercase();
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        let runbook = rule["annotations"]["runbook"].as_str().unwrap();
        let heading = runbook.strip_prefix("docs/operations.md#").unwrap();
        let is_there = operations
            .lines()
            .any(|l| l.starts_with('#') && l.trim_start_matches(['#', ' ']).replace('`', "") == heading);
        assert!(is_there, "{} leads to {runbook}, which is not there", rule["alert"]);
    }
    let scraped = read("deploy/prometheus.yml");
    let compose = compose();
    for (name, command, _) in ours(&compose) {
        let serves = command[0] != "arbees" && command[0] != "arbees-feed";
        assert_eq!(scraped.contains(&format!("{name}:8080")), serves, "{name}");
    }
}

/// Every figure is taken somewhere.
#[test]
fn every_figure_is_one_that_some_program_takes() {
    let mut text = String::new();
    let mut open: Vec<PathBuf> =
        ["core/src", "orchestrator/src", "shard/src", "projections/src"].map(|f| root().join(f)).into();
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if !path.ends_with("core/src/metrics.rs") {
                // That one lists them all.
                text += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    for (name, ..) in arbees_core::metrics::METRICS {
        assert!(
            text.contains(&format!("\"{name}\""))
                || name == "arbees_build_info"
                || name == "arbees_process_start_seconds",
            "nobody takes {name}"
        );
    }
}
