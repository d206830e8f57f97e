//! What endangers the promise from outside, and is told before it does harm.

use arbees_core::log::ALERTS;
use arbees_proto::{Payload, v1};
use arbees_testkit::feed::Sim;
use arbees_testkit::servers::Nats;
use arbees_testkit::wait;

use crate::plane::{PATIENCE, Plane, binaries, confirmed, is};

/// Each incident of ALERTS that was raised, and then those that are over.
async fn told(plane: &Plane) -> (Vec<String>, Vec<String>) {
    let (_, end) = plane.log.bounds(ALERTS).await.unwrap();
    let mut reader = plane.log.read(ALERTS, Vec::new(), 1, end).await.unwrap();
    let (mut raised, mut over) = (Vec::new(), Vec::new());
    while let Some(stored) = reader.next().await.unwrap() {
        match (stored.event().unwrap() as v1::Event).payload {
            Some(Payload::AlertRaised(a)) => raised.push(a.incident),
            Some(Payload::AlertResolved(a)) => over.push(a.incident),
            _ => {}
        }
    }
    raised.sort();
    (raised, over)
}

#[tokio::test]
async fn another_orchestrators_commands_a_lazy_log_and_a_lost_orchestrator_are_told_of() {
    let mut plane = Plane::new("sentry", Sim::all_live(60.0, 6, 24 * 60)).await;
    let (mut lazy, monitor) = Nats::start_lazy(&binaries(), &plane.scratch.path().join("lazy")).await.unwrap();
    plane.settings.insert("NATS_MONITOR_URL".into(), monitor);
    plane.orchestrator().await;
    let second = plane.with(&[("INSTANCE_ID", "orchestrator-2")]);
    plane.programs.start("orchestrator_02", "arbees-orchestrator", &second).await.unwrap();
    plane.shard("shard_01").await;
    plane.until("6 games confirmed", |s| is(confirmed(s), 6)).await;
    let foreign = r#"{"type":"add_game","game_id":"401547698","sport":"nfl"}"#;
    plane.bus().publish("shard:shard_01:command", foreign).await.unwrap();
    plane.programs.process("orchestrator_02").unwrap().kill().await;
    let all = ["durability_not_guaranteed", "foreign_orchestrator", "leader_lost:orchestrator-2"];
    let raised = || async {
        let (raised, over) = told(&plane).await;
        is((raised.iter().map(String::as_str).collect::<Vec<_>>(), over.len()), (all.to_vec(), 0))
    };
    wait::until("all three to be told", PATIENCE, raised).await.unwrap();
    plane.programs.start("orchestrator_02b", "arbees-orchestrator", &second).await.unwrap();
    let over = || async { is(told(&plane).await.1, vec!["leader_lost:orchestrator-2".to_owned()]) };
    wait::until("the lost one to be back", PATIENCE, over).await.unwrap();
    lazy.stop().await.unwrap();
    plane.stop(&["ALERT", "NATS_MONITOR_URL"]).await;
}
