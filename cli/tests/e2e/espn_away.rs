//! ESPN answering wrongly for one league, and not at all for any.

use std::time::{Duration, Instant};

use arbees_core::log::GAME_STATES;
use arbees_fleet::{State, Status};
use arbees_proto::Payload;
use arbees_testkit::feed::{Fault, Sim, SimGame, Turn};
use arbees_testkit::wait;

use crate::alerts::{raised, settled};
use crate::plane::{PATIENCE, Plane, confirmed, is, leader_may_judge, moves, owner, row};

const LEAGUES: [&str; 8] = [
    "football/nfl",
    "basketball/nba",
    "hockey/nhl",
    "baseball/mlb",
    "football/college-football",
    "basketball/mens-college-basketball",
    "soccer/usa.1",
    "soccer/eng.1",
];
const SAID: [&str; 7] =
    ["ALERT", "poll failed", "breaker opened", "external_dependency", "discovery", "scoreboard", "on no slate"];

fn ill(state: &State) -> usize {
    state.services.values().filter(|s| s.status == Status::Degraded).count()
}

/// States of a league's games in the stream.
async fn told(plane: &Plane, league: &str) -> usize {
    let (_, end) = plane.log.bounds(GAME_STATES).await.unwrap();
    let mut reader = plane.log.read(GAME_STATES, Vec::new(), 1, end).await.unwrap();
    let mut count = 0;
    while let Some(stored) = reader.next().await.unwrap() {
        if let Some(Payload::GameStateChanged(s)) = stored.event().unwrap().payload {
            count += usize::from(s.game.starts_with(league));
        }
    }
    count
}

#[tokio::test]
async fn one_league_that_answers_wrongly_harms_only_itself_and_comes_back() {
    let mut plane = Plane::new("espn-wrong", Sim::all_live(600.0, 16, 24 * 600)).await;
    plane.settings.insert("MAX_GAMES".into(), "30".into());
    plane.all(1).await;
    plane.until("16 games confirmed", |s| is(confirmed(s), 16)).await;
    let faults = [
        ("answers 500", Fault::Status { status: 500 }),
        ("sends half a body", Fault::Half),
        ("sends HTML", Fault::Wrong),
        ("sends 60 MB", Fault::Huge),
        ("answers after 8 s", Fault::Delay { ms: 8_000 }),
    ];
    for (how, fault) in faults {
        let begun = Instant::now();
        plane.feed.set_fault("football/nfl", fault);
        plane.until("the shard to be degraded", |s| is(ill(s), 1)).await;
        let detected = begun.elapsed();
        while plane.metric("shard_01", "arbees_espn_breaker_open").await < 1.0 {
            assert!(begun.elapsed() < PATIENCE, "its breaker does not open");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(plane.metric("shard_01", "arbees_espn_breaker_open").await < 2.0, "its alone");
        let (before, broken) = (told(&plane, "nba-").await, told(&plane, "nfl-").await);
        let goes_on = || async { is(told(&plane, "nba-").await > before, true) };
        wait::until("the other leagues to go on", PATIENCE, goes_on).await.unwrap();
        assert_eq!(told(&plane, "nfl-").await, broken, "nothing is told of what cannot be read");
        let begun = Instant::now();
        plane.feed.set_fault("football/nfl", Fault::None);
        plane.until("the shard to be well again", |s| is(ill(s), 0)).await;
        let back = || async { is(told(&plane, "nfl-").await > broken, true) };
        wait::until("the league to be told of again", PATIENCE, back).await.unwrap();
        row(&format!("ESPN {how} for one league"), detected, begun.elapsed(), 0, 0);
    }
    assert_eq!(moves(&plane).await.len(), 0);
    plane.stop(&SAID).await;
}

/// All leagues fail, and a game that was known before becomes due meanwhile.
#[tokio::test]
async fn without_espn_nothing_moves_and_a_game_that_becomes_due_is_assigned() {
    let live = |i: u64| SimGame {
        league: usize::try_from(i % 8).unwrap(),
        event: 700_000_000 + i,
        start: -10,
        script: vec![(-10, Turn::Play)],
    };
    // Due a minute and a half from now: fifteen minutes before its start.
    let soon = SimGame { league: 1, event: 700_000_099, start: 16, script: vec![(16, Turn::Play)] };
    let mut plane = Plane::new("espn-away", Sim::scripted(1.0, (0..24).map(live).chain([soon]).collect())).await;
    plane.all(3).await;
    plane.until("24 games confirmed", |s| is(confirmed(s), 24)).await;
    let knows = |s: &State| is(s.games.contains_key(&"nba-700000099".parse().unwrap()), true);
    plane.until("the coming game to be known", knows).await;
    leader_may_judge().await;
    let begun = Instant::now();
    LEAGUES.iter().for_each(|league| plane.feed.set_fault(league, Fault::Status { status: 503 }));
    plane.until("all shards to be degraded", |s| is(ill(s), 3)).await;
    let probe = || async { is(raised(&plane, "external_dependency").await, 1) };
    wait::until("people to be told", PATIENCE, probe).await.unwrap();
    let detected = begun.elapsed();
    plane.until("the game that became due to be assigned", |s| is(owner(s, "nba-700000099").is_some(), true)).await;
    let kinds = ["external_dependency", "all_shards_degraded", "discovery_failing", "shard_lost", "no_healthy_shards"];
    let mut said = Vec::new();
    for kind in kinds {
        said.push(format!("{kind} {}", raised(&plane, kind).await));
    }
    println!("  raised: {}", said.join(", "));
    let begun = Instant::now();
    LEAGUES.iter().for_each(|league| plane.feed.set_fault(league, Fault::None));
    plane.until("all to be well again", |s| is(ill(s), 0)).await;
    let over = || async { is(settled(&plane, "external_dependency").await, 1) };
    wait::until("the end to be told", PATIENCE, over).await.unwrap();
    row("ESPN away for all leagues", detected, begun.elapsed(), 0, raised(&plane, "external_dependency").await);
    plane.until("25 games confirmed", |s| is(confirmed(s), 25)).await;
    assert_eq!((moves(&plane).await.len(), plane.count("ServiceLost").await), (0, 0));
    plane.stop(&SAID).await;
}
