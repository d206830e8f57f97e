//! What shards report beside what they should watch: games not taken up, zombies, games that nobody gave them.

use std::sync::Arc;

use arbees_fleet::ReportedPhase::Live;
use arbees_fleet::decide::Medium;
use arbees_fleet::state::Circuit;
use arbees_fleet::{Effect, Input};
use arbees_proto::{Payload, v1};

use crate::health::{fleet, key, load, says_watching};
use crate::plane::{Plane, beat};

#[test]
fn a_shard_that_takes_up_nothing_is_given_nothing_then_tried_with_one_game() {
    let mut p = fleet(&["s1", "s2"], 8);
    let deaf = |p: &mut Plane, seconds: i64| {
        for _ in 0..seconds {
            p.live(1, &["s2"]);
            p.log_beat(beat("s1", 20, true, Vec::new()));
        }
    };
    deaf(&mut p, 2);
    let circuit = |p: &Plane| p.fleet.state().services[&key("s1")].breaker.circuit;
    assert_eq!((circuit(&p), p.count("CircuitOpened")), (Circuit::Open, 1));
    assert!(p.count("AssignmentFailed") >= 3);
    deaf(&mut p, 2);
    assert_eq!((load(&p, "s1"), load(&p, "s2")), (0, 8));
    deaf(&mut p, 27);
    assert_eq!(p.count("CircuitHalfOpened"), 0);
    deaf(&mut p, 4);
    assert_eq!(circuit(&p), Circuit::HalfOpen);
    p.slate(&[("nba-1", Live), ("nba-2", Live), ("nba-3", Live)]);
    assert_eq!(load(&p, "s1"), 1, "one as a trial");
    deaf(&mut p, 3);
    assert_eq!((circuit(&p), load(&p, "s1")), (Circuit::Open, 0));
    deaf(&mut p, 31);
    p.slate(&[("nba-4", Live)]);
    assert_eq!(p.owner("nba-4").as_deref(), Some("s1"));
    p.live(1, &["s1", "s2"]);
    p.slate(&[("nba-5", Live)]);
    p.live(1, &["s1", "s2"]);
    assert_eq!((circuit(&p), p.count("CircuitClosed")), (Circuit::Closed, 1));
}

#[test]
fn a_report_from_before_the_assignment_proves_nothing() {
    let mut p = fleet(&["s1"], 1);
    for _ in 0..10 {
        p.live(1, &[]);
        let mut old = beat("s1", 20, true, Vec::new());
        if let Some(Payload::Heartbeat(h)) = &mut old.payload {
            h.last_applied = 1;
        }
        p.log_beat(old);
    }
    assert_eq!(p.count("AssignmentFailed"), 0);
}

#[test]
fn on_the_first_day_a_fleet_that_is_watching_keeps_what_it_watches() {
    let mut p = Plane::new();
    let games: Vec<String> = (0..40).map(|n| format!("nfl-{n}")).collect();
    let watching = |p: &mut Plane| {
        for shard in 0..4 {
            let its: Vec<String> = (shard * 10..(shard + 1) * 10).map(|n| n.to_string()).collect();
            p.redis_beat(&format!("old.{shard}"), &its.iter().map(String::as_str).collect::<Vec<_>>());
        }
    };
    watching(&mut p);
    p.live(1, &[]);
    p.slate(&games.iter().map(|id| (id.as_str(), Live)).collect::<Vec<_>>());
    p.live(9, &[]);
    watching(&mut p);
    p.live(10, &[]);
    watching(&mut p);
    p.live(10, &[]);
    let removed = p.effects.iter().any(|e| matches!(e, Effect::RemoveGame { .. }));
    assert_eq!((p.count("GameAssigned"), p.count("GameReassigned"), removed), (40, 0, false));
    let adopted = p.log.iter().filter(|e| e.event.reason.as_ref().is_some_and(|r| r.cause == "adopted")).count();
    assert_eq!(adopted, 40);
}

#[test]
fn a_zombie_is_told_to_remove_until_it_is_gone_and_only_when_all_have_reported() {
    let mut p = fleet(&["s1", "s2"], 2);
    let zombie = p.owner("nfl-0").unwrap();
    let other = if zombie == "s1" { "s2" } else { "s1" };
    let removes = |p: &Plane| p.effects.iter().filter(|e| matches!(e, Effect::RemoveGame { .. })).count();
    let mut counts = Vec::new();
    for _ in 0..8 {
        p.live(1, &["s1", "s2"]);
        let mut event = says_watching(&p, other, "healthy", true);
        if let Some(Payload::Heartbeat(h)) = &mut event.payload {
            h.games.push(v1::Watched { game: "nfl-0".into(), epoch: 1 });
        }
        p.log_beat(event);
        counts.push(removes(&p));
    }
    assert!(counts[0] == 1 && *counts.last().unwrap() >= 2, "{counts:?}");
    assert_eq!(p.count("GameReassigned"), 0);
}

#[test]
fn a_crypto_shard_is_only_watched_over() {
    let mut p = fleet(&["s1"], 1);
    let mut crypto = beat("c1", 20, false, vec![v1::Watched { game: "nfl-0".into(), epoch: 0 }]);
    if let Some(Payload::Heartbeat(h)) = &mut crypto.payload {
        h.service.as_mut().unwrap().shard_type = "crypto".into();
    }
    for _ in 0..3 {
        p.hear(Input::Beat(Arc::new(crypto.clone()), Medium::Redis));
        p.live(10, &["s1"]);
    }
    assert!(!p.effects.iter().any(|e| matches!(e, Effect::RemoveGame { .. } | Effect::AddGame { .. })));
    assert_eq!((p.owner("nfl-0").as_deref(), load(&p, "c1")), (Some("s1"), 0));
}
