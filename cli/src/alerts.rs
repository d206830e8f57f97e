//! `arbees alerts`: what people are told, that somebody has seen it, and a time of silence.

use anyhow::{Context as _, Result, bail};
use arbees_core::alerts::channel::Channel;
use arbees_core::alerts::desk::Line;
use arbees_core::alerts::{AlertConfig, Notice, Severity, What};
use arbees_core::bus::{Bus, RedisConfig};
use arbees_core::config::process_env;
use arbees_core::time::now_us;
use arbees_projections::queries::{self, AlertLine};
use serde::Deserialize;
use serde_json::json;

use crate::show::{clock, pool, print_json};
use crate::{AlertAction, Look, Who, operate, table};

/// `arbees alerts`
pub async fn list(look: &Look, all: bool) -> Result<()> {
    let alerts = queries::alerts(&pool(look).await?, all).await?;
    let row = |a: &AlertLine| {
        let seen = match (&a.acknowledged_by, a.is_false_alarm) {
            (Some(who), true) => format!("{who}: false alarm"),
            (Some(who), false) => who.clone(),
            (None, _) => "-".to_owned(),
        };
        let told = match (a.first_delivered_at, a.suppressed.as_str()) {
            (Some(_), _) => a.delivered_to.clone(),
            (None, "") => "nobody yet".to_owned(),
            (None, why) => format!("held back: {why}"),
        };
        let (since, until) = (clock(Some(a.raised_at)), clock(a.resolved_at));
        vec![a.severity.clone(), a.incident.clone(), since, until, told, seen, a.summary.clone()]
    };
    let rows: Vec<_> = alerts.iter().map(row).collect();
    table::show(look, &["SEVERITY", "INCIDENT", "SINCE", "UNTIL", "TOLD", "SEEN BY", "WHAT"], &rows, &alerts)
}

/// `arbees alerts test|ack|silence`
pub async fn run(action: AlertAction) -> Result<()> {
    match action {
        AlertAction::Test { channel, json } => test(channel.as_deref(), json).await,
        AlertAction::Ack { incident, is_false, who } => {
            ask(&who, json!({ "ack": { "incident": incident, "false_alarm": is_false } })).await
        }
        AlertAction::Silence { kind, how_long, who } => {
            ask(&who, json!({ "silence": { "kind": kind, "seconds": how_long.as_secs() } })).await
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    error: Option<String>,
}

async fn ask(who: &Who, alert: serde_json::Value) -> Result<()> {
    let operator = operate::operator(who.operator.as_deref());
    let payload = operate::ask(&who.look, json!({ "operator": operator, "alert": alert })).await?;
    if who.look.json {
        println!("{}", String::from_utf8_lossy(&payload));
    }
    let answer: Answer = serde_json::from_slice(&payload).context("an answer that cannot be read")?;
    if let Some(error) = answer.error {
        bail!("{error}");
    }
    if !who.look.json {
        println!("done");
    }
    Ok(())
}

async fn test(only: Option<&str>, as_json: bool) -> Result<()> {
    let mut env = process_env();
    let config = AlertConfig::read(&mut env);
    let redis = RedisConfig::read(&mut env);
    let config = env.finish(config)?;
    let bus = Bus::open(&redis)?;
    let mut channels = Channel::all(&config, Some(&bus))?;
    if let Some(only) = only {
        let names: Vec<&str> = channels.iter().map(Channel::name).collect();
        let names = names.join(" ");
        channels.retain(|c| c.name() == only);
        if channels.is_empty() {
            bail!("{only} is not configured: there are {names}");
        }
    }
    let now = now_us();
    let summary = "this is a test: nothing is wrong".to_owned();
    let notice = Notice {
        id: uuid::Uuid::new_v4().to_string(),
        kind: "test".to_owned(),
        what: What::Raised,
        severity: Severity::Critical,
        incidents: vec![Line { incident: "test".to_owned(), summary, since_us: now }],
        suppressed: 0,
        since_us: now,
        at_us: now,
        has: [].into(),
    };
    let sends = channels.iter().map(|channel| async {
        let begun = std::time::Instant::now();
        let result = channel.send(&notice).await.map_err(|e| e.to_string());
        (channel.name(), result, begun.elapsed())
    });
    let results = futures::future::join_all(sends).await;
    let failed = results.iter().filter(|(_, result, _)| result.is_err()).count();
    if as_json {
        let line = |(name, result, took): &(&str, Result<String, String>, std::time::Duration)| {
            json!({ "channel": name, "ok": result.is_ok(), "answer": result.as_ref().unwrap_or_else(|e| e),
                "ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX) })
        };
        print_json(&results.iter().map(line).collect::<Vec<_>>())?;
    } else {
        let row = |(name, result, took): &(&str, Result<String, String>, std::time::Duration)| {
            let (ok, what) = match result {
                Ok(answer) => ("ok", answer),
                Err(why) => ("FAILED", why),
            };
            vec![(*name).to_owned(), ok.to_owned(), format!("{} ms", took.as_millis()), what.clone()]
        };
        let rows: Vec<_> = results.iter().map(row).collect();
        table::print(&["CHANNEL", "RESULT", "TOOK", "ANSWER"], &rows);
    }
    if failed > 0 { bail!("{failed} of {} channels failed", results.len()) } else { Ok(()) }
}
