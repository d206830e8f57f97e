//! People are told: through real receivers, once for each incident, whatever else is down.

use std::time::{Duration, Instant};

use arbees_core::log::ALERTS;
use arbees_fleet::Status;
use arbees_proto::{Payload, v1};
use arbees_testkit::feed::Sim;
use arbees_testkit::link::Link;
use arbees_testkit::receiver::{Mood, Receiver};
use arbees_testkit::wait;
use serde_json::Value;

use crate::plane::{PATIENCE, Plane, confirmed, is, leader_may_judge, row, settings};

/// All events of ALERTS.
async fn events(plane: &Plane) -> Vec<v1::Event> {
    let (_, end) = plane.log.bounds(ALERTS).await.unwrap();
    let mut reader = plane.log.read(ALERTS, Vec::new(), 1, end).await.unwrap();
    let mut events = Vec::new();
    while let Some(stored) = reader.next().await.unwrap() {
        events.push(stored.event().unwrap());
    }
    events
}

/// How often a kind was raised, by the log.
pub async fn raised(plane: &Plane, kind: &str) -> usize {
    let is_it = |e: &&v1::Event| matches!(&e.payload, Some(Payload::AlertRaised(a)) if a.kind == kind);
    events(plane).await.iter().filter(is_it).count()
}

/// How often a kind was settled, by the log.
pub async fn settled(plane: &Plane, kind: &str) -> usize {
    let is_it = |e: &&v1::Event| matches!(&e.payload, Some(Payload::AlertResolved(a)) if a.kind == kind);
    events(plane).await.iter().filter(is_it).count()
}

/// Alerts as JSON, of a kind and a reason.
fn of(lines: &[Value], kind: &str, what: &str) -> usize {
    lines.iter().filter(|l| l["alert_type"] == kind && l["what"] == what).count()
}

fn bodies(receiver: &Receiver, path: &str) -> Vec<Value> {
    receiver.received(path).iter().map(|r| serde_json::from_str(&r.body).unwrap()).collect()
}

/// What the file holds.
fn file(plane: &Plane) -> Vec<Value> {
    let text = std::fs::read_to_string(plane.scratch.path().join("alerts.log")).unwrap_or_default();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// A plane whose alerts go to `receiver` on every channel there is.
async fn plane(name: &str, receiver: &Receiver) -> Plane {
    let mut plane = Plane::new(name, Sim::all_live(60.0, 12, 24 * 60)).await;
    let at = |path: &str| format!("{}{path}", receiver.url());
    plane.settings.extend(settings(&[
        ("SLACK_WEBHOOK_URL", &at("/slack")),
        ("CUSTOM_WEBHOOK_URL", &at("/hook/secret-path")),
        ("CUSTOM_WEBHOOK_SECRET", "hush"),
        ("PAGERDUTY_ROUTING_KEY", "routing-secret"),
        ("PAGERDUTY_EVENTS_URL", &at("/pagerduty")),
        ("TWILIO_API_URL", &at("/twilio")),
        ("TWILIO_ACCOUNT_SID", "AC1"),
        ("TWILIO_AUTH_TOKEN", "twilio-secret"),
        ("TWILIO_FROM", "+15550001"),
        ("ALERT_SMS_TO", "+15550002"),
    ]));
    plane
}

#[tokio::test]
async fn when_all_shards_die_everybody_is_told_within_seconds_and_told_again_when_it_is_over() {
    let receiver = Receiver::start().await.unwrap();
    let mut plane = plane("all-dead", &receiver).await;
    let mut heard = plane.bus().subscribe(&["alerts:critical"], &[]);
    plane.settings.insert("OPERATOR_TOKEN".into(), "token".into());
    plane.all(2).await;
    plane.until("12 games confirmed", |s| is(confirmed(s), 12)).await;
    leader_may_judge().await;
    let begun = Instant::now();
    for name in ["shard_01", "shard_02"] {
        plane.programs.process(name).unwrap().kill().await;
    }
    let everybody = || async {
        let hook = bodies(&receiver, "/hook");
        let told = (
            of(&hook, "all_shards_unhealthy", "raised"),
            of(&file(&plane), "all_shards_unhealthy", "raised"),
            receiver.received("/slack").iter().filter(|r| r.body.contains("none of 2 shards works")).count(),
            receiver.received("/pagerduty").iter().filter(|r| r.body.contains("all_shards_unhealthy")).count(),
            receiver.received("/twilio").iter().filter(|r| r.body.contains("none+of+2+shards")).count(),
        );
        is(told, (1, 1, 1, 1, 1))
    };
    wait::until("everybody to be told", PATIENCE, everybody).await.unwrap();
    let took = begun.elapsed();
    println!("all shards killed: webhook, file, Slack, PagerDuty and SMS told after {took:.1?}");
    assert!(took < Duration::from_secs(15), "three times what is promised");
    let on_redis = async {
        loop {
            let message = heard.next().await.unwrap();
            let alert: Value = serde_json::from_slice(&message.payload).unwrap();
            if alert["alert_type"] == "all_shards_unhealthy" {
                return alert;
            }
        }
    };
    let alert = tokio::time::timeout(PATIENCE, on_redis).await.unwrap();
    assert_eq!((&alert["type"], &alert["severity"]), (&"critical_alert".into(), &"critical".into()));
    let signed = &receiver.received("/hook")[0];
    assert!(signed.headers["x-arbees-signature"].to_str().unwrap().starts_with("sha256="));

    let (code, text) = plane.arbees(&["alerts", "ack", "shard_lost:shard_09"]).await;
    assert!(code == Some(1) && text.contains("there are all_shards_unhealthy"), "{text}");
    let (code, text) = plane.arbees(&["alerts", "ack", "all_shards_unhealthy"]).await;
    assert_eq!((code, text.as_str()), (Some(0), "done\n"));
    let (code, text) = plane.arbees(&["alerts", "silence", "nonsense", "--for", "5m"]).await;
    assert!(code == Some(1) && text.contains("is no kind of alert: allowed are all all_shards"), "{text}");
    let listed = || async {
        let (_, text) = plane.arbees(&["alerts"]).await;
        let line = text.lines().find(|l| l.contains("all_shards_unhealthy")).unwrap_or_default().to_owned();
        let is_whole = ["critical", "file,pagerduty,redis,slack,sms,webhook", "ann", "none of 2 shards"];
        if is_whole.iter().all(|part| line.contains(part)) { Ok(()) } else { Err(text) }
    };
    wait::until("the table to have it", PATIENCE, listed).await.unwrap();
    for name in ["shard_01", "shard_02"] {
        plane.shard(name).await;
    }
    let over = || async {
        let hook = bodies(&receiver, "/hook");
        let resolved = receiver.received("/pagerduty").iter().filter(|r| r.body.contains("\"resolve\"")).count();
        is((of(&hook, "all_shards_unhealthy", "resolved"), resolved >= 1), (1, true))
    };
    wait::until("the end to be told", PATIENCE, over).await.unwrap();
    plane.until("12 games confirmed", |s| is(confirmed(s), 12)).await;
    let delivered = events(&plane).await.into_iter().filter_map(|e| match e.payload {
        Some(Payload::AlertDelivered(d)) if d.kind == "all_shards_unhealthy" && d.what == "raised" => Some(d.channel),
        _ => None,
    });
    let mut delivered: Vec<String> = delivered.collect();
    delivered.sort();
    assert_eq!(delivered, ["file", "pagerduty", "redis", "slack", "sms", "webhook"]);
    let logs = std::fs::read_to_string(plane.scratch.path().join("logs/orchestrator.log")).unwrap();
    for secret in ["secret-path", "routing-secret", "twilio-secret", "hush"] {
        assert!(!logs.contains(secret), "{secret} is in the log");
    }
    plane.verified().await;
    plane.stop(&["ALERT", "shard_lost", "no_healthy_shards"]).await;
}

/// Every configured channel is tried, and what came back is printed; in a silence nobody is told.
#[tokio::test]
async fn channels_are_tried_by_command_and_a_silenced_kind_is_told_when_the_silence_ends() {
    let receiver = Receiver::start().await.unwrap();
    let mut plane = plane("silence", &receiver).await;
    plane.settings.insert("OPERATOR_TOKEN".into(), "token".into());
    plane.all(2).await;
    plane.until("12 games confirmed", |s| is(confirmed(s), 12)).await;
    let (code, text) = plane.arbees(&["alerts", "test"]).await;
    assert!(
        code == Some(0) && text.matches("answered 200").count() == 4 && text.matches(" ok ").count() == 6,
        "{text}"
    );
    receiver.set_mood(Mood::Status(404, 0));
    let (code, text) = plane.arbees(&["alerts", "test", "--channel", "slack"]).await;
    assert!(code == Some(1) && text.contains("FAILED") && text.contains("answered 404"), "{text}");
    receiver.set_mood(Mood::Well);
    let tested = receiver.received("/slack").len();
    leader_may_judge().await;
    assert_eq!(plane.arbees(&["alerts", "silence", "all", "--for", "12s"]).await.0, Some(0));
    plane.programs.process("shard_01").unwrap().kill().await;
    let held = || async {
        let is_it = |e: &&v1::Event| matches!(&e.payload, Some(Payload::AlertSuppressed(a)) if a.kind == "shard_lost");
        is(events(&plane).await.iter().filter(is_it).count(), 1)
    };
    wait::until("the alert to be held back", PATIENCE, held).await.unwrap();
    assert_eq!(receiver.received("/slack").len(), tested);
    let told = || async { is(receiver.received("/slack").len(), tested + 1) };
    wait::until("it to be told after the silence", PATIENCE, told).await.unwrap();
    plane.stop(&["ALERT", "shard_lost"]).await;
}

/// The database dies: nobody but the tables notices, people are told after three checks, and all is exact afterwards.
#[tokio::test]
async fn that_the_database_is_away_is_told_after_three_checks_and_the_tables_catch_up() {
    let receiver = Receiver::start().await.unwrap();
    let mut plane = plane("database-away", &receiver).await;
    plane.settings.insert("DB_HEALTH_CHECK_INTERVAL_SECS".into(), "0.5".into());
    plane.all(2).await;
    plane.until("12 games confirmed", |s| is(confirmed(s), 12)).await;
    plane.verified().await;
    plane.postgres.kill().await;
    let told = || async { is(of(&bodies(&receiver, "/hook"), "database_connectivity", "raised"), 1) };
    wait::until("people to be told", PATIENCE, told).await.unwrap();
    let (_, body) = plane.programs.get("projector", "/readyz").await.unwrap();
    assert!(body.contains("\"ready\":false"), "{body}");
    plane.postgres.start_again().await.unwrap();
    let over = || async { is(of(&bodies(&receiver, "/hook"), "database_connectivity", "resolved"), 1) };
    wait::until("the end to be told", PATIENCE, over).await.unwrap();
    assert_eq!((plane.count("GameReassigned").await, plane.count("ServiceLost").await), (0, 0));
    plane.verified().await;
    plane.stop(&["ALERT", "projection interrupted", "database", "sqlx"]).await;
}

/// One receiver answers 429, then hangs: the others have it at once, and it gets all of it in order when it is well.
#[tokio::test]
async fn a_sick_receiver_delays_nobody_else_and_hears_all_in_order() {
    let (sick, well) = (Receiver::start().await.unwrap(), Receiver::start().await.unwrap());
    let mut plane = plane("sick-receiver", &well).await;
    plane.settings.insert("CUSTOM_WEBHOOK_URL".into(), format!("{}/hook", sick.url()));
    sick.set_mood(Mood::Status(429, 3));
    plane.all(2).await;
    plane.until("12 games confirmed", |s| is(confirmed(s), 12)).await;
    leader_may_judge().await;
    plane.programs.process("shard_01").unwrap().kill().await;
    let lost = |s: &arbees_fleet::State| s.services.values().filter(|s| s.status == Status::Dead).count();
    plane.until("the shard to be lost", |s| is(lost(s), 1)).await;
    let begun = Instant::now();
    let told = || async { is(well.received("/slack").len(), 1) };
    wait::until("the well one to be told", PATIENCE, told).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    let again = || async { is(sick.received("/hook").len() >= 2, true) };
    wait::until("the sick one to be tried again", PATIENCE, again).await.unwrap();
    plane.shard("shard_01").await;
    let over = || async { is(well.received("/slack").len(), 2) };
    wait::until("the well one to be told of the end", PATIENCE, over).await.unwrap();
    let tries = sick.received("/hook");
    let asked_for = tries.windows(2).all(|t| t[1].at - t[0].at >= Duration::from_millis(2_900));
    assert!(tries.len() >= 2 && asked_for, "Retry-After is kept");
    sick.set_mood(Mood::Well);
    let caught_up = || async {
        let all = bodies(&sick, "/hook");
        is((of(&all, "shard_lost", "raised") >= 1, of(&all, "shard_lost", "resolved")), (true, 1))
    };
    wait::until("the sick one to have caught up", PATIENCE, caught_up).await.unwrap();
    let whats: Vec<String> = bodies(&sick, "/hook").iter().map(|b| b["what"].as_str().unwrap().to_owned()).collect();
    assert_eq!(whats.last().map(String::as_str), Some("resolved"), "{whats:?}");
    plane.stop(&["ALERT", "shard_lost", "alert not delivered"]).await;
}

/// The leader dies with an alert half told: the next one tells the rest, and nothing twice.
#[tokio::test]
async fn a_new_leader_tells_what_the_old_one_did_not_get_through() {
    let receiver = Receiver::start().await.unwrap();
    let mut plane = plane("alert-takeover", &receiver).await;
    receiver.set_mood(Mood::Status(503, 0));
    for name in ["orchestrator-a", "orchestrator-b"] {
        let own = plane.with(&[("INSTANCE_ID", name)]);
        plane.programs.start(name, "arbees-orchestrator", &own).await.unwrap();
    }
    plane.shard("shard_01").await;
    plane.shard("shard_02").await;
    plane.until("12 games confirmed", |s| is(confirmed(s), 12)).await;
    leader_may_judge().await;
    plane.programs.process("shard_01").unwrap().kill().await;
    let tried =
        || async { is((of(&file(&plane), "shard_lost", "raised"), receiver.received("/slack").len() >= 2), (1, true)) };
    wait::until("the file to have it and Slack to have refused it", PATIENCE, tried).await.unwrap();
    let elected = |e: &(String, v1::Event)| match &e.1.payload {
        Some(Payload::LeaderElected(l)) => Some(l.instance.clone()),
        _ => None,
    };
    let leader = plane.events().await.iter().filter_map(elected).next_back().unwrap();
    plane.programs.process(&leader).unwrap().kill().await;
    let refused = receiver.received("/slack").len();
    receiver.set_mood(Mood::Well);
    let told = || async { is(receiver.received("/slack").len(), refused + 1) };
    wait::until("Slack to have it", PATIENCE, told).await.unwrap();
    // That nothing more comes is what is tested: the same again would come within the desk's second.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((of(&file(&plane), "shard_lost", "raised"), receiver.received("/slack").len()), (1, refused + 1));
    plane.stop(&["ALERT", "shard_lost", "alert not delivered", "tail", "nats"]).await;
}

/// NATS hangs: nothing can be written, and people are told all the same; what was told is in the log afterwards.
#[tokio::test]
async fn that_the_log_is_away_is_told_at_once_and_written_when_it_is_back() {
    let receiver = Receiver::start().await.unwrap();
    let mut plane = plane("log-away", &receiver).await;
    plane.orchestrator().await;
    plane.shard("shard_01").await;
    plane.until("12 games confirmed", |s| is(confirmed(s), 12)).await;
    let begun = Instant::now();
    plane.nats.pause();
    let told = || async { is(of(&bodies(&receiver, "/hook"), "log_unavailable", "raised"), 1) };
    wait::until("people to be told", PATIENCE, told).await.unwrap();
    println!("NATS frozen: told after {:.1?}", begun.elapsed());
    assert_eq!(of(&file(&plane), "log_unavailable", "raised"), 1);
    plane.nats.resume();
    let over = || async { is(of(&bodies(&receiver, "/hook"), "log_unavailable", "resolved"), 1) };
    wait::until("the end to be told", PATIENCE, over).await.unwrap();
    let written = || async { is(raised(&plane, "log_unavailable").await, 1) };
    wait::until("it to be in the log", PATIENCE, written).await.unwrap();
    // That nothing comes is what is tested: the desk looks four times a second, and groups for one.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(
        of(&bodies(&receiver, "/hook"), "log_unavailable", "raised"),
        1,
        "its coming back over the log tells nobody"
    );
    plane
        .stop(&[
            "ALERT",
            "tail",
            "nats",
            "not acting",
            "no longer leading",
            "log_unavailable",
            "Redis",
            "away, trying again",
        ])
        .await;
}

/// Redis freezes for all, and is back: one alert and one end.
#[tokio::test]
async fn that_redis_is_away_is_told_once_and_its_end_once() {
    let receiver = Receiver::start().await.unwrap();
    let mut plane = plane("redis-away", &receiver).await;
    plane.all(2).await;
    plane.until("12 games confirmed", |s| is(confirmed(s), 12)).await;
    plane.valkey.pause();
    let told = || async { is(of(&bodies(&receiver, "/hook"), "redis_connectivity", "raised"), 1) };
    wait::until("people to be told", PATIENCE, told).await.unwrap();
    plane.valkey.resume();
    let over = || async { is(of(&bodies(&receiver, "/hook"), "redis_connectivity", "resolved"), 1) };
    wait::until("the end to be told", PATIENCE, over).await.unwrap();
    assert_eq!(of(&bodies(&receiver, "/hook"), "redis_connectivity", "raised"), 1);
    assert_eq!(plane.count("GameReassigned").await, 0);
    plane.stop(&["ALERT", "redis", "Redis", "subscription", "alert not delivered", "message not sent"]).await;
}

/// One receiver is down and another answers half a minute late: the third has it at once, and each hears all of it in order.
#[tokio::test]
async fn receivers_that_are_down_or_slow_keep_nobody_else_waiting() {
    let (down, slow, well) =
        (Receiver::start().await.unwrap(), Receiver::start().await.unwrap(), Receiver::start().await.unwrap());
    let mut plane = plane("down-receiver", &well).await;
    let link = Link::to(down.url().rsplit(':').next().unwrap().parse().unwrap()).await.unwrap();
    link.cut();
    plane.settings.insert("SLACK_WEBHOOK_URL".into(), format!("http://127.0.0.1:{}/slack", link.port()));
    plane.settings.insert("PAGERDUTY_EVENTS_URL".into(), format!("{}/pagerduty", slow.url()));
    slow.set_mood(Mood::Slow(Duration::from_secs(30)));
    plane.all(2).await;
    plane.until("12 games confirmed", |s| is(confirmed(s), 12)).await;
    leader_may_judge().await;
    let begun = Instant::now();
    plane.programs.process("shard_01").unwrap().kill().await;
    let told = || async { is(of(&bodies(&well, "/hook"), "shard_lost", "raised"), 1) };
    wait::until("the well one to be told", PATIENCE, told).await.unwrap();
    let detected = begun.elapsed();
    assert!(detected < Duration::from_secs(15), "{detected:?}");
    plane.shard("shard_01").await;
    let over = || async { is(of(&bodies(&well, "/hook"), "shard_lost", "resolved"), 1) };
    wait::until("the well one to be told of the end", PATIENCE, over).await.unwrap();
    assert_eq!(down.received("/slack").len(), 0);
    let begun = Instant::now();
    link.mend();
    slow.set_mood(Mood::Well);
    let caught_up = || async {
        let events: Vec<Value> =
            slow.received("/pagerduty").iter().map(|r| serde_json::from_str(&r.body).unwrap()).collect();
        let is_over = events.last().is_some_and(|e| e["event_action"] == "resolve");
        is((down.received("/slack").len(), is_over), (2, true))
    };
    wait::until("both to have caught up", PATIENCE, caught_up).await.unwrap();
    row("receivers down and slow", detected, begun.elapsed(), 0, 1);
    let [first, last] = down.received("/slack").try_into().unwrap();
    assert!(!first.body.contains("resolved") && last.body.contains("resolved"), "{} {}", first.body, last.body);
    plane.stop(&["ALERT", "shard_lost", "alert not delivered"]).await;
}
