//! Who is well, who is lost, and who watches their games then.

use arbees_fleet::ReportedPhase::Live;
use arbees_fleet::decide::Probe;
use arbees_fleet::state::ServiceKey;
use arbees_fleet::{Effect, Input, Status};
use arbees_proto::{InstanceId, Payload, v1};

use crate::plane::{Plane, at, beat};

pub fn key(shard: &str) -> ServiceKey {
    ServiceKey::shard(InstanceId::lenient(shard).unwrap())
}

fn status(p: &Plane, shard: &str) -> Status {
    p.fleet.state().services[&key(shard)].status
}

/// These shards, well known, with so many live games.
pub fn fleet(shards: &[&str], games: usize) -> Plane {
    let mut p = Plane::new();
    p.live(13, shards);
    let ids: Vec<String> = (0..games).map(|n| format!("nfl-{n}")).collect();
    p.slate(&ids.iter().map(|id| (id.as_str(), Live)).collect::<Vec<_>>());
    p.live(1, shards);
    assert_eq!(p.count("GameAssigned"), games);
    p.effects.clear();
    p
}

pub fn load(p: &Plane, shard: &str) -> u32 {
    p.fleet.state().loads().get(&InstanceId::lenient(shard).unwrap()).copied().unwrap_or(0)
}

/// Answers every probe with `answer` and stores every fence that the leader asks for.
fn judge(p: &mut Plane, answer: Probe) -> usize {
    let mut fenced = 0;
    for effect in std::mem::take(&mut p.effects) {
        match effect {
            Effect::Probe { key } => p.hear(Input::Probed { key, answer }),
            Effect::Judge { key, heartbeat } => {
                fenced += 1;
                p.hear(Input::Fenced { key, heartbeat, fence: heartbeat + 1 });
            }
            other => p.effects.push(other),
        }
    }
    fenced
}

fn says(shard: &str, status: &str, redis_ok: bool) -> v1::Event {
    let mut event = beat(shard, 20, true, Vec::new());
    if let Some(Payload::Heartbeat(h)) = &mut event.payload {
        h.status = status.to_owned();
        h.checks[0].ok = redis_ok;
    }
    event
}

/// The same with the games it owns.
pub fn says_watching(p: &Plane, shard: &str, status: &str, redis_ok: bool) -> v1::Event {
    let mut event = says(shard, status, redis_ok);
    if let Some(Payload::Heartbeat(h)) = &mut event.payload {
        let owned = p.fleet.state().games.iter().filter_map(|(id, g)| Some((id, g.owner.as_ref()?)));
        let its = owned.filter(|(_, o)| o.shard.as_str() == shard);
        h.games = its.map(|(id, o)| v1::Watched { game: id.to_string(), epoch: o.epoch.0 }).collect();
    }
    event
}

#[test]
fn a_silent_shard_is_asked_then_fenced_then_lost_and_its_games_move_at_once() {
    let mut p = fleet(&["s1", "s2", "s3"], 9);
    p.live(1, &["s2", "s3"]);
    assert_eq!(p.effects, [], "one missed beat is none");
    p.live(1, &["s2", "s3"]);
    assert!(p.effects.contains(&Effect::Probe { key: key("s1") }));
    assert_eq!(judge(&mut p, Probe::Silent), 0, "its lease is not over");
    p.live(1, &["s2", "s3"]);
    assert_eq!(judge(&mut p, Probe::Silent), 1);
    assert_eq!((status(&p, "s1"), load(&p, "s1")), (Status::Dead, 0));
    assert_eq!((load(&p, "s2"), load(&p, "s3"), p.count("GameReassigned")), (5, 4, 3));
    assert_eq!(p.count("ServiceLost"), 1);
    assert!(p.effects.iter().any(|e| matches!(e, Effect::Alert(a) if a.kind == "shard_lost")));
}

#[test]
fn a_newer_beat_than_the_fence_names_means_that_it_lives() {
    let mut p = fleet(&["s1", "s2"], 4);
    p.live(3, &["s2"]);
    let heartbeat = p.effects.iter().find_map(|e| match e {
        Effect::Judge { heartbeat, .. } => Some(*heartbeat),
        _ => None,
    });
    p.beat("s1", 20);
    p.hear(Input::Fenced { key: key("s1"), heartbeat: heartbeat.unwrap(), fence: 99 });
    assert_eq!((status(&p, "s1"), p.count("ServiceLost")), (Status::Healthy, 0));
}

#[test]
fn one_that_answers_is_spared_for_ten_seconds_and_no_longer() {
    let mut p = fleet(&["s1", "s2", "s3"], 9);
    for second in 0..20 {
        p.live(1, &["s2", "s3"]);
        if judge(&mut p, Probe::Answered) > 0 {
            assert!((11..=13).contains(&second), "judged after {second} s");
            assert_eq!(status(&p, "s1"), Status::Dead);
            return;
        }
    }
    panic!("never judged");
}

#[test]
fn a_medium_that_does_not_carry_the_leaders_own_word_kills_nobody() {
    let mut p = fleet(&["s1", "s2"], 4);
    // Nothing comes over the log, neither the shards' beats nor the leader's own.
    for _ in 0..30 {
        p.wait(1);
    }
    assert_eq!(judge(&mut p, Probe::Silent), 0);
    // It is back, and the shards need a while: nobody is judged for a lease and two seconds.
    p.live(3, &["s1"]);
    assert_eq!(judge(&mut p, Probe::Silent), 0);
    p.live(4, &["s1"]);
    assert!(judge(&mut p, Probe::Silent) > 0);
    assert_eq!((status(&p, "s2"), p.count("ServiceLost")), (Status::Dead, 1));
}

#[test]
fn a_leader_that_was_stopped_for_a_minute_does_not_judge_by_its_backlog() {
    let mut p = fleet(&["s1", "s2", "s3"], 4);
    p.now += 60 * arbees_fleet::SECOND;
    p.hear(Input::Tick);
    assert_eq!(judge(&mut p, Probe::Silent), 0);
    p.live(10, &["s1", "s2", "s3"]);
    assert_eq!((judge(&mut p, Probe::Silent), p.count("ServiceLost")), (0, 0));
}

#[test]
fn when_most_fall_silent_at_once_games_trickle_until_it_is_believed() {
    let mut p = fleet(&["s1", "s2", "s3"], 30);
    p.live(2, &["s3"]);
    judge(&mut p, Probe::Silent);
    p.live(1, &["s3"]);
    assert_eq!(judge(&mut p, Probe::Silent), 2);
    assert_eq!((p.count("ServiceLost"), p.count("BrakeEngaged")), (2, 1));
    let moved = p.count("GameReassigned");
    assert!(moved <= 1, "{moved} moved at once");
    for _ in 0..5 {
        p.live(1, &["s3"]);
        judge(&mut p, Probe::Silent);
    }
    let trickled = p.count("GameReassigned");
    assert!((4..=7).contains(&trickled), "{trickled} in 5 s");
    let told =
        |p: &Plane| p.effects.iter().filter(|e| matches!(e, Effect::Alert(a) if a.kind == "brake_engaged")).count();
    assert_eq!(told(&p), 1);
    for _ in 0..25 {
        p.live(1, &["s3"]);
        judge(&mut p, Probe::Silent);
    }
    assert_eq!((load(&p, "s3"), p.count("BrakeReleased")), (20, 1), "full, and the rest waits");
    assert_eq!(p.fleet.state().games.values().filter(|g| g.queued_since_us.is_some()).count(), 10);
}

#[test]
fn connections_seen_to_close_are_proof_and_need_no_brake() {
    let mut p = fleet(&["s1", "s2", "s3"], 18);
    p.live(2, &["s3"]);
    judge(&mut p, Probe::Nobody);
    p.live(1, &["s3"]);
    assert_eq!(judge(&mut p, Probe::Nobody), 2);
    assert_eq!((p.count("BrakeEngaged"), load(&p, "s3")), (0, 18));
}

#[test]
fn games_are_not_placed_on_one_that_died_in_the_same_round() {
    let mut p = fleet(&["s1", "s2", "s3", "s4", "s5"], 15);
    p.live(2, &["s3", "s4", "s5"]);
    judge(&mut p, Probe::Nobody);
    p.live(1, &["s3", "s4", "s5"]);
    judge(&mut p, Probe::Nobody);
    let target = |payload: &Option<Payload>| match payload {
        Some(Payload::GameReassigned(m)) => Some(m.shard.clone()),
        _ => None,
    };
    let moved_to: Vec<String> = p.log.iter().filter_map(|e| target(&e.event.payload)).collect();
    assert_eq!(moved_to.len(), 6);
    assert!(moved_to.iter().all(|to| to != "s1" && to != "s2"), "{moved_to:?}");
}

#[test]
fn a_degraded_shard_gets_nothing_new_at_once_and_loses_its_games_after_ten_seconds() {
    let mut p = fleet(&["s1", "s2", "s3"], 9);
    let sick = |p: &mut Plane, seconds| {
        for _ in 0..seconds {
            p.live(1, &["s2", "s3"]);
            let event = says_watching(p, "s1", "healthy", false);
            p.log_beat(event);
        }
    };
    sick(&mut p, 1);
    assert_eq!(status(&p, "s1"), Status::Degraded);
    p.slate(&[("nba-1", Live)]);
    assert_ne!(p.owner("nba-1").as_deref(), Some("s1"));
    sick(&mut p, 8);
    assert_eq!((load(&p, "s1"), p.count("GameReassigned")), (3, 0));
    sick(&mut p, 3);
    assert_eq!((load(&p, "s1"), p.count("GameReassigned")), (0, 3));
    p.live(1, &["s1", "s2", "s3"]);
    assert_eq!(status(&p, "s1"), Status::Recovered);
    p.live(2, &["s1", "s2", "s3"]);
    assert_eq!(status(&p, "s1"), Status::Healthy);
    let recovered = p.log.iter().find_map(|e| match &e.event.payload {
        Some(Payload::ServiceRecovered(r)) => Some(r.unwell_us / arbees_fleet::SECOND),
        _ => None,
    });
    assert!(recovered.is_some_and(|s| (10..=14).contains(&s)), "{recovered:?}");
}

#[test]
fn one_that_is_ill_now_and_then_does_not_keep_its_games_for_ever() {
    let mut p = fleet(&["s1", "s2", "s3"], 9);
    for _ in 0..6 {
        p.live(1, &["s2", "s3"]);
        let ill = says_watching(&p, "s1", "healthy", false);
        p.log_beat(ill);
        p.live(1, &["s1", "s2", "s3"]);
    }
    let ill = says_watching(&p, "s1", "healthy", false);
    p.log_beat(ill);
    p.live(0, &[]);
    p.hear(Input::Tick);
    assert_eq!(load(&p, "s1"), 0);
}

#[test]
fn when_more_than_half_fail_the_same_check_nothing_moves() {
    let mut p = fleet(&["s1", "s2", "s3"], 9);
    for _ in 0..30 {
        p.live(1, &["s3"]);
        for shard in ["s1", "s2"] {
            let event = says_watching(&p, shard, "healthy", false);
            p.log_beat(event);
        }
    }
    assert_eq!(p.count("GameReassigned"), 0);
}

/// A beat that says that the league's data fail.
fn failing(p: &Plane, shard: &str, league: &str) -> v1::Event {
    let mut event = says_watching(p, shard, "degraded", true);
    if let Some(Payload::Heartbeat(beat)) = &mut event.payload {
        for name in ["espn_api_ok".to_owned(), format!("espn_{league}_ok")] {
            beat.checks.push(v1::Check { name, ok: false });
        }
    }
    event
}

/// Breakers rest: one finds out later than the other that the league's data are back.
#[test]
fn who_still_fails_what_most_failed_a_moment_ago_keeps_its_games_and_not_for_ever() {
    let mut p = fleet(&["s1", "s2"], 6);
    for _ in 0..20 {
        p.live(1, &[]);
        for shard in ["s1", "s2"] {
            let event = failing(&p, shard, "nfl");
            p.log_beat(event);
        }
    }
    let mut kept_for = 0;
    while p.count("GameReassigned") == 0 && kept_for < 200 {
        p.live(1, &["s2"]);
        let event = failing(&p, "s1", "nfl");
        p.log_beat(event);
        kept_for += 1;
    }
    assert!((85..100).contains(&kept_for), "kept for {kept_for} s");
}

/// Four shards, each with an NFL game; two of them with an NBA game, too.
#[test]
fn a_league_whose_data_fail_for_all_who_watch_it_moves_nothing_and_one_who_fails_alone_is_ill() {
    let mut start = Plane::new();
    let all = ["s1", "s2", "s3", "s4"];
    start.live(13, &all);
    start.slate(&[
        ("nfl-1", Live),
        ("nfl-2", Live),
        ("nfl-3", Live),
        ("nfl-4", Live),
        ("nba-1", Live),
        ("nba-2", Live),
    ]);
    start.live(3, &all);
    let mut nba: Vec<String> = ["nba-1", "nba-2"].iter().filter_map(|g| start.owner(g)).collect();
    nba.dedup();
    assert_eq!(nba.len(), 2, "a league is spread");
    for (ill, alerts, moves) in [(nba.as_slice(), 1, false), (&nba[..1], 0, true)] {
        let mut p = Plane::over(start.folded(), start.log.clone(), start.now);
        p.beats = start.beats;
        let mut told = 0;
        for _ in 0..20 {
            let well: Vec<&str> = all.into_iter().filter(|s| !ill.iter().any(|i| i == s)).collect();
            p.live(1, &well);
            for shard in ill {
                let event = failing(&p, shard, "nba");
                p.log_beat(event);
            }
            told +=
                p.effects.iter().filter(|e| matches!(e, Effect::Alert(a) if a.kind == "external_dependency")).count();
            p.effects.clear();
        }
        assert_eq!((told, p.count("GameReassigned") > 0), (alerts, moves), "{ill:?}");
    }
}

#[test]
fn a_shard_that_stops_hands_its_games_over_and_is_retired_without_alert() {
    let mut p = fleet(&["s1", "s2", "s3"], 9);
    let bye = says_watching(&p, "s1", "stopping", true);
    p.log_beat(bye);
    assert_eq!((status(&p, "s1"), load(&p, "s1"), p.count("GameReassigned")), (Status::Stopping, 0, 3));
    for _ in 0..5 {
        p.live(1, &["s2", "s3"]);
        judge(&mut p, Probe::Nobody);
    }
    assert_eq!((status(&p, "s1"), p.count("ServiceLost")), (Status::Retired, 0));
    assert!(!p.effects.iter().any(|e| matches!(e, Effect::Alert(_))));
}

#[test]
fn lost_games_without_room_stay_their_owners_and_are_its_again_when_it_returns() {
    let mut p = fleet(&["s1"], 5);
    let epochs = |p: &Plane| -> Vec<u64> {
        p.fleet.state().games.values().filter_map(|g| Some(g.owner.as_ref()?.epoch.0)).collect()
    };
    let before = epochs(&p);
    for _ in 0..4 {
        p.live(1, &[]);
        judge(&mut p, Probe::Nobody);
    }
    assert_eq!((status(&p, "s1"), p.count("GameQueued")), (Status::Dead, 5));
    let told =
        |p: &Plane| p.effects.iter().filter(|e| matches!(e, Effect::Alert(a) if a.kind == "no_healthy_shards")).count();
    assert_eq!(told(&p), 1);
    p.live(5, &["s1"]);
    assert_eq!((status(&p, "s1"), epochs(&p)), (Status::Healthy, before));
    assert_eq!(p.count("GameReassigned"), 0);
}

/// Games that waited with their lost owner move when there is room. It may be back and unheard: it waits for the leader's word.
#[test]
fn lost_games_without_room_move_when_there_is_some() {
    let mut p = fleet(&["s1"], 5);
    for _ in 0..4 {
        p.live(1, &[]);
        judge(&mut p, Probe::Nobody);
    }
    assert_eq!((status(&p, "s1"), load(&p, "s1")), (Status::Dead, 5));
    p.live(4, &["s2"]);
    assert_eq!((load(&p, "s1"), load(&p, "s2")), (0, 5));
}

/// Which beats the log says that `s1` was heard again by.
fn readmitted_by(p: &Plane) -> Vec<u64> {
    let of = |e: &arbees_proto::Sealed| match &e.event.payload {
        Some(Payload::ServiceRecovered(r)) => Some(r.heartbeat_sequence),
        _ => None,
    };
    p.log.iter().filter_map(of).collect()
}

#[test]
fn a_shard_that_found_a_fence_is_told_that_it_was_heard_whether_it_was_lost_or_not() {
    let fenced_beat = |p: &mut Plane, fence: u64| {
        let mut event = says_watching(p, "s1", "healthy", true);
        if let Some(Payload::Heartbeat(beat)) = &mut event.payload {
            beat.fence_sequence = fence;
        }
        p.log_beat(event);
        p.beats
    };
    let mut p = fleet(&["s1", "s2"], 4);
    p.live(1, &["s2"]);
    // A leader fenced it, and died before it wrote that down.
    let heard = fenced_beat(&mut p, 7);
    assert_eq!((readmitted_by(&p), status(&p, "s1")), (vec![heard], Status::Recovered));
    p.live(1, &["s2"]);
    fenced_beat(&mut p, 7);
    assert_eq!(readmitted_by(&p).len(), 1, "it may not have heard yet");
    p.live(2, &["s2"]);
    let again = fenced_beat(&mut p, 7);
    assert_eq!(readmitted_by(&p), [heard, again], "it did not hear");
    assert_eq!(p.count("GameReassigned"), 0);

    let mut p = fleet(&["s1", "s2"], 4);
    for _ in 0..4 {
        p.live(1, &["s2"]);
        judge(&mut p, Probe::Nobody);
    }
    assert_eq!((status(&p, "s1"), readmitted_by(&p)), (Status::Dead, vec![]));
    let heard = fenced_beat(&mut p, 9);
    assert_eq!(readmitted_by(&p), [heard]);
}

fn alerts(p: &Plane) -> Vec<String> {
    let of = |e: &Effect| match e {
        Effect::Alert(a) => Some(format!("raised {}", a.incident)),
        Effect::Resolve(a) => Some(format!("over {}", a.incident)),
        _ => None,
    };
    p.effects.iter().filter_map(of).collect()
}

/// The leader died between the append and the alert, or wrote the alert after its successor had read them all.
#[test]
fn what_the_log_says_is_wrong_is_told_by_whoever_leads_and_what_is_well_is_over() {
    let mut p = fleet(&["s1", "s2"], 4);
    for _ in 0..4 {
        p.live(1, &["s2"]);
        judge(&mut p, Probe::Nobody);
    }
    assert_eq!(alerts(&p), ["raised shard_lost:s1"]);
    let mut next = Plane::over(p.folded(), p.log.clone(), p.now);
    next.live(3, &["s2"]);
    assert_eq!(alerts(&next), ["raised shard_lost:s1"], "once");
    let mut next = Plane::over(p.folded(), p.log.clone(), p.now);
    let open = ["shard_lost:s1", "shard_lost:s2", "breaker_opened:s2", "brake_engaged"];
    next.fleet.know_open(at(next.now), &open.map(str::to_owned).into());
    next.live(3, &["s2"]);
    assert_eq!(alerts(&next), ["over shard_lost:s2", "over breaker_opened:s2", "over brake_engaged"]);
}

#[test]
fn two_processes_under_one_name_are_told_of_and_so_is_that_one_is_gone() {
    let mut p = fleet(&["s1"], 2);
    let beat_as = |p: &mut Plane, process: &str| {
        let mut event = says_watching(p, "s1", "healthy", true);
        if let Some(Payload::Heartbeat(beat)) = &mut event.payload {
            beat.service.as_mut().unwrap().process = process.to_owned();
        }
        p.log_beat(event);
    };
    for _ in 0..5 {
        for process in ["one", "two"] {
            p.live(1, &[]);
            beat_as(&mut p, process);
        }
    }
    assert_eq!(alerts(&p), ["raised duplicate_instance:s1"]);
    for _ in 0..55 {
        p.live(1, &[]);
        beat_as(&mut p, "two");
    }
    assert_eq!(alerts(&p).len(), 1, "it may be slow");
    for _ in 0..10 {
        p.live(1, &[]);
        beat_as(&mut p, "two");
    }
    assert_eq!(alerts(&p)[1..], ["over duplicate_instance:s1"]);
}

#[test]
fn a_redis_only_shard_is_lost_by_time_but_not_while_redis_is_down() {
    let mut p = Plane::new();
    p.live(13, &["s1"]);
    p.redis_beat("old.1", &[]);
    p.slate(&[("nfl-1", Live), ("nfl-2", Live)]);
    p.live(40, &["s1"]);
    // Redis is away: neither its beats nor the leader's own word come back.
    for _ in 0..200 {
        p.now += arbees_fleet::SECOND;
        p.beat("s1", 20);
        p.hear(Input::Tick);
    }
    assert_eq!(p.count("ServiceLost"), 0);
    p.redis_beat("old.1", &[]);
    p.live(59, &["s1"]);
    assert_eq!(p.count("ServiceLost"), 0);
    p.live(5, &["s1"]);
    assert_eq!((p.count("ServiceLost"), status(&p, "old.1")), (1, Status::Dead));
    assert_eq!(load(&p, "old.1"), 0);
}
