//! What operators ask for, and what the fleet evens out by itself.

use arbees_fleet::ReportedPhase::Live;
use arbees_fleet::decide::operator::{Ask, Plan, Refused, Verb};
use arbees_fleet::{Effect, Input};
use arbees_proto::{GameId, InstanceId, Payload, ShardId, v1};

use crate::plane::{Plane, at, beat};

fn shard(name: &str) -> ShardId {
    InstanceId::lenient(name).unwrap()
}

fn game(id: &str) -> GameId {
    id.parse().unwrap()
}

fn ask(p: &mut Plane, verb: Verb, dry_run: bool, basis: Option<u64>) -> Result<Plan, Refused> {
    let ask = Ask { verb, operator: "ann".into(), dry_run, basis };
    let answer = p.fleet.operate(at(p.now), &ask);
    p.end_turn();
    answer
}

fn fleet(shards: &[&str], games: usize) -> Plane {
    let mut p = Plane::new();
    p.live(13, shards);
    let ids: Vec<String> = (0..games).map(|n| format!("nfl-{n}")).collect();
    p.slate(&ids.iter().map(|id| (id.as_str(), Live)).collect::<Vec<_>>());
    p.live(1, shards);
    assert_eq!(p.count("GameAssigned"), games);
    p
}

fn load(p: &Plane, name: &str) -> u32 {
    p.fleet.state().loads().get(&shard(name)).copied().unwrap_or(0)
}

#[test]
fn a_drain_is_planned_then_done_exactly_so_and_completes() {
    let mut p = fleet(&["s1", "s2", "s3"], 9);
    let before = p.log.len();
    let plan = ask(&mut p, Verb::Drain { shard: shard("s1") }, true, None).unwrap();
    assert_eq!((plan.moves.len(), p.log.len()), (3, before), "a dry run decides nothing");
    assert_eq!(plan.loads.iter().map(|l| (l.before, l.after)).collect::<Vec<_>>(), [(3, 0), (3, 5), (3, 4)]);
    let done = ask(&mut p, Verb::Drain { shard: shard("s1") }, false, Some(plan.basis)).unwrap();
    assert_eq!(done, plan);
    for planned in &plan.moves {
        assert_eq!(p.owner(planned.game.as_str()), Some(planned.to.to_string()));
    }
    p.live(2, &["s1", "s2", "s3"]);
    assert_eq!((p.count("OperatorVerb"), p.count("DrainStarted"), p.count("DrainCompleted")), (1, 1, 1));
    let by = p.log.iter().find_map(|e| match &e.event.payload {
        Some(Payload::OperatorVerb(v)) => Some((v.operator.clone(), v.verb.clone())),
        _ => None,
    });
    assert_eq!(by, Some(("ann".to_owned(), "drain".to_owned())));
    p.slate(&[("nba-1", Live)]);
    assert_ne!(p.owner("nba-1").as_deref(), Some("s1"));
    ask(&mut p, Verb::Undrain { shard: shard("s1") }, false, None).unwrap();
    p.slate(&[("nba-2", Live)]);
    assert_eq!(p.owner("nba-2").as_deref(), Some("s1"), "the emptiest again");
}

#[test]
fn a_plan_from_before_is_refused_and_so_is_what_makes_no_sense() {
    let mut p = fleet(&["s1", "s2"], 4);
    let plan = ask(&mut p, Verb::Drain { shard: shard("s1") }, true, None).unwrap();
    p.slate(&[("nba-1", Live)]);
    let head = p.fleet.state().head.sequence;
    let late = ask(&mut p, Verb::Drain { shard: shard("s1") }, false, Some(plan.basis));
    assert_eq!(late, Err(Refused::Stale { basis: plan.basis, head }));
    let before = p.log.len();
    let nobody = shard("s9");
    let refused = [
        (Verb::Drain { shard: nobody.clone() }, "there is no shard s9"),
        (Verb::Undrain { shard: shard("s1") }, "is not drained"),
        (Verb::Move { game: game("nfl-77"), shard: shard("s1") }, "there is no game nfl-77"),
        (Verb::Move { game: game("nfl-1"), shard: nobody }, "there is no shard s9"),
        (Verb::Unpin { game: game("nfl-1") }, "is not pinned"),
        (Verb::Resume, "are not paused"),
    ];
    for (verb, says) in refused {
        let error = ask(&mut p, verb, false, None).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    assert_eq!(p.log.len(), before);
}

#[test]
fn nobody_is_moved_over_capacity_by_hand_either() {
    let mut p = Plane::new();
    p.live(13, &["s1"]);
    p.slate(&[("nfl-1", Live)]);
    for _ in 0..3 {
        p.live(1, &["s1"]);
        p.beat("small", 0);
    }
    let refused = ask(&mut p, Verb::Move { game: game("nfl-1"), shard: shard("small") }, false, None);
    assert!(matches!(refused, Err(Refused::Unfit { why: "full", .. })), "{refused:?}");
}

fn ill(p: &mut Plane, name: &str) {
    let owned = p.fleet.state().games.iter().filter_map(|(id, g)| Some((id, g.owner.as_ref()?)));
    let its = owned.filter(|(_, o)| o.shard.as_str() == name);
    let games = its.map(|(id, o)| v1::Watched { game: id.to_string(), epoch: o.epoch.0 }).collect();
    let mut event = beat(name, 20, true, games);
    if let Some(Payload::Heartbeat(h)) = &mut event.payload {
        h.checks[0].ok = false;
    }
    p.log_beat(event);
}

#[test]
fn a_pinned_game_stays_through_illness_and_moves_by_hand_or_death() {
    let mut p = fleet(&["s1", "s2", "s3"], 9);
    let held = p.fleet.state().games.iter().find(|(_, g)| g.owner.as_ref().unwrap().shard == shard("s1")).unwrap();
    let pinned = held.0.clone();
    ask(&mut p, Verb::Pin { game: pinned.clone(), shard: None }, false, None).unwrap();
    for _ in 0..14 {
        p.live(1, &["s2", "s3"]);
        ill(&mut p, "s1");
    }
    assert_eq!((load(&p, "s1"), p.owner(pinned.as_str()).as_deref()), (1, Some("s1")));
    ask(&mut p, Verb::Move { game: pinned.clone(), shard: shard("s2") }, false, None).unwrap();
    let state = p.fleet.state();
    assert_eq!((p.owner(pinned.as_str()).as_deref(), &state.games[&pinned].pin), (Some("s2"), &None));
}

#[test]
fn a_pin_to_another_shard_moves_the_game_there_and_new_games_only_there() {
    let mut p = fleet(&["s1", "s2"], 2);
    let (id, from) = (game("nfl-0"), p.owner("nfl-0").unwrap());
    let to = if from == "s1" { "s2" } else { "s1" };
    ask(&mut p, Verb::Pin { game: id, shard: Some(shard(to)) }, false, None).unwrap();
    assert_eq!(p.owner("nfl-0").as_deref(), Some(to));
    p.live(5, &["s1", "s2"]);
    assert_eq!(p.owner("nfl-0").as_deref(), Some(to));
}

#[test]
fn a_pause_stops_moves_off_the_ill_and_not_off_the_lost() {
    let mut p = fleet(&["s1", "s2", "s3"], 9);
    ask(&mut p, Verb::Pause, false, None).unwrap();
    for _ in 0..14 {
        p.live(1, &["s2", "s3"]);
        ill(&mut p, "s1");
    }
    assert_eq!((load(&p, "s1"), p.count("GameReassigned")), (3, 0));
    p.effects.clear();
    for _ in 0..5 {
        p.live(1, &["s2", "s3"]);
        for effect in std::mem::take(&mut p.effects) {
            if let Effect::Judge { key, heartbeat } = effect {
                p.hear(Input::Fenced { key, heartbeat, fence: heartbeat + 1 });
            }
        }
    }
    assert_eq!((load(&p, "s1"), p.count("GameReassigned")), (0, 3));
    ask(&mut p, Verb::Resume, false, None).unwrap();
    assert!(!p.fleet.state().paused);
}

#[test]
fn who_joins_is_given_a_few_games_a_minute_and_none_that_moved_lately() {
    let mut p = fleet(&["s1", "s2"], 20);
    p.live(60, &["s1", "s2", "s3"]);
    assert_eq!(p.count("GameReassigned"), 0, "all were assigned a moment ago");
    for _ in 0..9 {
        p.live(60, &["s1", "s2", "s3"]);
    }
    assert!((1..=5).contains(&p.count("GameReassigned")), "{}", p.count("GameReassigned"));
    p.live(60, &["s1", "s2", "s3"]);
    let after = p.count("GameReassigned");
    assert_eq!(after, 4, "8, 8 and 4 of 20 each are even enough");
    p.live(240, &["s1", "s2", "s3"]);
    let loads = [load(&p, "s1"), load(&p, "s2"), load(&p, "s3")];
    let (most, least) = (loads.iter().max().unwrap(), loads.iter().min().unwrap());
    assert!(most - least <= 4, "{loads:?}");
    let settled = p.count("GameReassigned");
    p.live(300, &["s1", "s2", "s3"]);
    assert_eq!(p.count("GameReassigned"), settled, "it comes to rest");
}
