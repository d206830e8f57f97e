//! Given a log and a fleet, when something comes in, then this is decided.

use arbees_fleet::ReportedPhase::{Canceled, Final, Live, Postponed, Pre, Suspended};
use arbees_fleet::decide::MarketsFound;
use arbees_fleet::{Effect, Fleet, GameSet, Input, SECOND, Settings};
use arbees_proto::subject::Names;
use arbees_proto::{InstanceId, League, Payload};

use crate::plane::{Plane, T0, at, beat, live_game, me, report};

#[test]
fn a_live_game_is_discovered_assigned_and_confirmed() {
    let mut p = Plane::new();
    p.beat("s1", 20);
    p.wait(12);
    p.beat("s1", 20);
    p.slate(&[("nfl-1", Live)]);
    p.beat("s1", 20);
    let expected = [
        "LeaderElected",
        "ServiceRegistered",
        "ServiceStatusChanged",
        "GameDiscovered",
        "GameWentLive",
        "GameAssigned",
        "AssignmentConfirmed",
    ];
    assert_eq!(p.types(), expected);
    assert_eq!(p.log[5].subject, "arbees.control.assignment.nfl-1.none.s1");
    let reason = p.log[5].event.reason.clone().unwrap();
    assert_eq!((reason.cause.as_str(), reason.candidates.len()), ("live", 1));
    p.beat("s1", 20);
    assert_eq!(p.log.len(), expected.len(), "a second report confirms nothing anew");
    assert!(matches!(&p.effects[0], Effect::AddGame { shard, .. } if shard.as_str() == "s1"));
}

#[test]
fn nothing_is_placed_before_the_fleet_had_time_to_beat() {
    let mut p = Plane::new();
    p.beat("s1", 20);
    p.slate(&[("nfl-1", Live), ("nfl-2", Live)]);
    assert_eq!(p.count("GameAssigned"), 0);
    p.wait(1);
    p.beat("s2", 20);
    p.beat("s1", 20);
    p.wait(1);
    assert_eq!(p.count("GameAssigned"), 0, "on the first day, shards that beat every 10 s may be watching already");
    p.wait(10);
    p.beat("s2", 20);
    p.beat("s1", 20);
    p.wait(1);
    assert_eq!((p.owner("nfl-1").as_deref(), p.owner("nfl-2").as_deref()), (Some("s1"), Some("s2")));
}

#[test]
fn a_scheduled_game_is_assigned_fifteen_minutes_before_its_start() {
    let mut p = Plane::new();
    p.wait(12);
    p.beat("s1", 20);
    let start = p.now + 16 * 60 * SECOND;
    p.hear(Input::Slate { games: vec![report("nba-7", Pre, start)], schedule: true });
    assert_eq!((p.count("GameDiscovered"), p.count("GameAssigned")), (1, 0));
    p.wait(61);
    p.beat("s1", 20);
    p.wait(1);
    assert_eq!(p.owner("nba-7").as_deref(), Some("s1"));
}

#[test]
fn final_counts_when_reported_twice_thirty_seconds_apart() {
    let mut p = live_game();
    p.slate(&[("nfl-1", Final)]);
    p.wait(29);
    p.slate(&[("nfl-1", Final)]);
    assert_eq!(p.count("GameReleased"), 0);
    p.slate(&[("nfl-1", Live)]);
    p.wait(12);
    p.slate(&[("nfl-1", Final)]);
    assert_eq!(p.count("GameReleased"), 0, "a live report in between begins the count anew");
    p.wait(30);
    p.slate(&[("nfl-1", Final)]);
    assert_eq!((p.count("GameFinished"), p.count("GameReleased")), (1, 1));
    assert!(matches!(p.effects.last(), Some(Effect::RemoveGame { .. })));
    p.slate(&[("nfl-1", Final)]);
    assert_eq!(p.count("GameFinished"), 1);
}

#[test]
fn a_suspended_game_is_kept_while_absent_and_resumes_under_its_id() {
    let mut p = live_game();
    p.slate(&[("nfl-1", Suspended)]);
    for _ in 0..3 {
        p.wait(300);
        p.slate(&[]);
    }
    assert_eq!(p.owner("nfl-1").as_deref(), Some("s1"), "never released for absence");
    let asked = p.effects.iter().filter(|e| matches!(e, Effect::AskGame { .. })).count();
    assert_eq!(asked, 3, "asked for by id every five minutes");
    p.slate(&[("nfl-1", Live)]);
    assert_eq!((p.count("GameResumed"), p.count("GameAssigned")), (1, 1));
}

#[test]
fn a_game_first_seen_suspended_is_watched_and_one_first_seen_over_is_not() {
    let mut p = Plane::new();
    p.wait(12);
    p.beat("s1", 20);
    p.slate(&[("mlb-1", Suspended), ("mlb-2", Final), ("mlb-3", Canceled), ("mlb-4", Postponed)]);
    assert_eq!(p.owner("mlb-1").as_deref(), Some("s1"));
    assert_eq!(p.fleet.state().games.len(), 2, "the postponed one is known, as it may come back");
    assert_eq!(p.count("GameAssigned"), 1);
}

#[test]
fn postponed_and_canceled_games_are_released_at_once_and_a_live_report_opens_them_again() {
    for phase in [Postponed, Canceled] {
        let mut p = live_game();
        p.slate(&[("nfl-1", phase)]);
        assert_eq!((p.owner("nfl-1"), p.count("GameReleased")), (None, 1), "{phase:?}");
        p.slate(&[("nfl-1", Live)]);
        assert_eq!(p.owner("nfl-1").as_deref(), Some("s1"), "{phase:?}");
    }
}

#[test]
fn a_game_with_nowhere_to_go_waits_and_is_placed_as_soon_as_there_is_room() {
    let mut p = Plane::new();
    p.wait(12);
    p.beat("s1", 1);
    p.slate(&[("nfl-1", Live), ("nfl-2", Live)]);
    p.wait(1);
    p.beat("s1", 1);
    p.wait(1);
    assert_eq!((p.count("GameAssigned"), p.count("GameQueued")), (1, 1), "queued once, never over capacity");
    let queued = p.log.iter().find(|e| e.event_type == "GameQueued").unwrap();
    assert_eq!(queued.event.reason.as_ref().unwrap().rejections[0].code, "full");
    p.beat("s2", 1);
    p.wait(0);
    assert_eq!(p.owner("nfl-2").as_deref(), Some("s2"));
}

#[test]
fn a_shard_that_is_not_operational_or_not_heard_gets_nothing() {
    let mut p = Plane::new();
    p.wait(12);
    let mut sick = beat("s1", 20, true, Vec::new());
    if let Some(Payload::Heartbeat(h)) = &mut sick.payload {
        h.checks.clear();
    }
    p.log_beat(sick);
    p.redis_beat("full", &[]);
    p.slate(&[("nfl-1", Live)]);
    assert_eq!(p.owner("nfl-1").as_deref(), Some("full"));
    p.slate(&[("nfl-1", Canceled)]);
    p.beat("s1", 20);
    p.wait(70);
    p.slate(&[("nfl-1", Live)]);
    assert_eq!(p.owner("nfl-1"), None, "silent for longer than a lease");
}

#[test]
fn a_new_leader_decides_nothing_that_was_decided_before() {
    let mut p = live_game();
    p.slate(&[("nfl-1", Live), ("nba-2", Live)]);
    p.beat("s1", 20);
    let (before, state) = (p.log.len(), p.folded());
    assert_eq!(&state, p.fleet.state());
    let mut q = Plane::over(state, p.log.clone(), p.now + SECOND);
    for _ in 0..5 {
        q.beat("s1", 20);
        q.slate(&[("nfl-1", Live), ("nba-2", Live)]);
        q.wait(1);
    }
    assert_eq!(q.types()[before..], ["LeaderElected"]);
    assert_eq!(q.fleet.state().head.term, 2);
}

#[test]
fn a_game_left_owned_after_its_end_is_released_by_the_next_leader() {
    let mut p = live_game();
    p.slate(&[("nfl-1", Canceled)]);
    // The batch was cut behind GameCanceled: a prefix is a valid log.
    p.log.pop();
    let q = {
        let mut q = Plane::over(p.folded(), p.log.clone(), p.now);
        q.wait(1);
        q
    };
    assert_eq!(q.owner("nfl-1"), None);
}

#[test]
fn markets_come_late_and_amend_the_assignment_under_its_epoch() {
    let mut p = live_game();
    assert!(p.effects.iter().any(|e| matches!(e, Effect::AskMarkets { .. })));
    let epoch = p.fleet.state().games.values().next().unwrap().owner.clone().unwrap().epoch;
    let found =
        MarketsFound { game: "1".into(), sport: Some(League::Nfl), kalshi: Some("K1".into()), polymarket: None };
    p.hear(Input::Markets(found.clone()));
    p.hear(Input::Markets(found));
    assert_eq!((p.count("MarketsMatched"), p.count("AssignmentAmended")), (1, 1));
    assert_eq!(p.fleet.state().games.values().next().unwrap().owner.clone().unwrap().epoch, epoch);
    let mut set = GameSet::new(InstanceId::strict("s1").unwrap());
    for (i, e) in p.log.iter().enumerate() {
        set.apply(i as u64 + 1, &e.event);
    }
    let markets = set.held().values().next().unwrap().game.markets.clone().unwrap();
    assert_eq!(markets.by_type[0].kalshi, "K1");
}

#[test]
fn a_bare_id_means_the_one_game_that_has_it_and_nothing_when_two_do() {
    let mut p = Plane::new();
    p.slate(&[("nfl-7", Live), ("nba-7", Live), ("nhl-8", Live)]);
    assert_eq!(p.fleet.resolve_id("8", None).unwrap().as_str(), "nhl-8");
    assert_eq!(p.fleet.resolve_id("7", None), None);
    assert_eq!(p.fleet.resolve_id("7", Some(League::Nba)).unwrap().as_str(), "nba-7");
    assert_eq!(p.fleet.resolve_id("a b", Some(League::Nba)), None);
}

#[test]
fn a_redis_only_shard_is_told_again_until_it_reports_the_game() {
    let mut p = Plane::new();
    p.wait(12);
    p.redis_beat("old", &[]);
    p.slate(&[("nfl-1", Live)]);
    let adds = |p: &Plane| p.effects.iter().filter(|e| matches!(e, Effect::AddGame { .. })).count();
    assert_eq!(adds(&p), 1);
    p.wait(5);
    p.redis_beat("old", &[]);
    assert_eq!(adds(&p), 1, "a beat may have left before the command came");
    for _ in 0..4 {
        p.wait(5);
        p.redis_beat("old", &[]);
    }
    assert_eq!(adds(&p), 2);
    p.wait(5);
    p.redis_beat("old", &["1"]);
    assert_eq!(p.count("AssignmentConfirmed"), 1);
    p.slate(&[("nfl-1", Canceled)]);
    let removes = |p: &Plane| p.effects.iter().filter(|e| matches!(e, Effect::RemoveGame { .. })).count();
    assert_eq!(removes(&p), 1);
    for _ in 0..5 {
        p.wait(5);
        p.redis_beat("old", &["1"]);
    }
    assert!(removes(&p) >= 2, "told again to remove what it still reports");
}

#[test]
fn a_changed_process_is_a_restart_and_moves_nothing() {
    let mut p = live_game();
    let mut again = beat("s1", 20, true, Vec::new());
    if let Some(Payload::Heartbeat(h)) = &mut again.payload {
        h.service.as_mut().unwrap().process = "p2".into();
    }
    p.log_beat(again);
    assert_eq!((p.count("ServiceRestarted"), p.count("GameAssigned")), (1, 1));
    assert_eq!(p.fleet.state().services.values().next().unwrap().restarts, 1);
}

#[test]
fn a_batch_never_grows_over_a_thousand_events_and_the_rest_follows() {
    let mut p = Plane::new();
    p.wait(12);
    p.beat("s1", 5_000);
    let games: Vec<_> = (0..600).map(|i| report(&format!("nfl-{i}"), Live, T0)).collect();
    p.fleet.decide(at(p.now), Input::Slate { games: games.clone(), schedule: false });
    let turn = p.fleet.end_turn();
    assert_eq!(turn.events.len(), 1_000);
    p.log.extend(turn.events);
    p.hear(Input::Slate { games, schedule: false });
    p.hear(Input::Tick);
    assert_eq!(p.fleet.state().games.values().filter(|g| g.owner.is_some()).count(), 600);
    assert_eq!(&p.folded(), p.fleet.state());
}

#[test]
fn an_amendment_that_a_power_cut_took_is_decided_by_the_next_leader() {
    let mut p = live_game();
    let found =
        MarketsFound { game: "1".into(), sport: Some(League::Nfl), kalshi: Some("K1".into()), polymarket: None };
    p.hear(Input::Markets(found));
    assert_eq!(p.log.pop().unwrap().event_type, "AssignmentAmended");
    let mut q = Plane::over(p.folded(), p.log.clone(), p.now);
    q.wait(1);
    assert_eq!(q.count("AssignmentAmended"), 1);
    let follows = |p: &Plane| p.effects.iter().filter(|e| matches!(e, Effect::FollowMarkets { .. })).count();
    assert_eq!(follows(&q), 1, "and the monitors are told");
    q.wait(299);
    assert_eq!(follows(&q), 1);
    q.wait(1);
    assert_eq!((follows(&q), q.count("AssignmentAmended")), (2, 1), "again after five minutes, over Redis alone");
}

#[test]
fn what_is_over_is_opened_again_by_play_alone() {
    let mut p = live_game();
    p.slate(&[("nfl-1", Canceled)]);
    p.slate(&[("nfl-1", Suspended)]);
    p.slate(&[("nfl-1", Pre)]);
    assert_eq!((p.owner("nfl-1"), p.count("GameSuspended")), (None, 0));
}

#[test]
fn when_all_shards_fail_the_same_check_new_games_are_still_placed_on_the_log() {
    let mut p = Plane::new();
    p.wait(12);
    for shard in ["s1", "s2"] {
        let mut sick = beat(shard, 20, true, Vec::new());
        if let Some(Payload::Heartbeat(h)) = &mut sick.payload {
            h.checks[0].ok = false;
        }
        p.log_beat(sick);
    }
    p.slate(&[("nfl-1", Live)]);
    assert_eq!(p.owner("nfl-1").as_deref(), Some("s1"));
}

#[test]
fn huge_texts_are_cut_and_a_log_that_lost_its_tail_goes_on_in_a_new_generation() {
    let mut p = Plane::new();
    let mut huge = beat("s1", 20, true, Vec::new());
    if let Some(Payload::Heartbeat(h)) = &mut huge.payload {
        let service = h.service.as_mut().unwrap();
        (service.version, service.kind) = ("é".repeat(1 << 20), format!("shard{}", "x".repeat(1 << 20)));
    }
    p.log_beat(huge);
    let registered = &p.log[1];
    assert_eq!((registered.event_type, registered.payload.len() < 2_000), ("ServiceRegistered", true));
    let mut next = Fleet::new(p.folded(), Settings::default(), Names::new(""), me(), at(p.now));
    next.take_office(at(p.now), 2);
    assert_eq!(next.state().head.generation, 2);
}
