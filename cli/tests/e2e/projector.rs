//! The tables are exact, whatever happens to the projector.

use std::time::{Duration, Instant};

use arbees_core::log::CONTROL;
use arbees_fleet::append::Outcome;
use arbees_fleet::decide::Medium;
use arbees_fleet::{Fleet, GameReport, Input, ReportedPhase, SECOND, Settings, State};
use arbees_proto::subject::Names;
use arbees_proto::{GameId, Payload, v1};
use arbees_testkit::feed::Sim;
use sqlx::Row as _;
use tokio_util::sync::CancellationToken;

use crate::plane::{PATIENCE, Plane};

const T0: i64 = 1_790_000_000 * SECOND;
const SHARDS: usize = 10;

/// Fills CONTROL with at least `wanted` events of a long and busy day, by the leader's own decisions.
async fn fill(plane: &Plane, wanted: u64) {
    let me = v1::Producer { service: "orchestrator".into(), instance: "o".into(), process: "p".into() };
    let mut fleet = Fleet::new(State::default(), Settings::default(), Names::new(""), me, T0);
    fleet.take_office(T0);
    let mut now = T0 + 3 * SECOND;
    let mut round = 0;
    while fleet.state().head.sequence < wanted {
        for shard in 0..SHARDS {
            let beat = beat(&fleet, shard);
            turn(plane, &mut fleet, now, beat).await;
        }
        let phase =
            [ReportedPhase::Live, ReportedPhase::Suspended, ReportedPhase::Live, ReportedPhase::Canceled][round % 4];
        let from = round / 4 * 150;
        let games: Vec<GameReport> = (from..from + 150).map(|n| report(n, phase)).collect();
        turn(plane, &mut fleet, now, Input::Slate { games, schedule: false }).await;
        now += SECOND;
        round += 1;
    }
}

async fn turn(plane: &Plane, fleet: &mut Fleet, now: i64, input: Input) {
    fleet.decide(now, input);
    let events = fleet.end_turn().events;
    if events.is_empty() {
        return;
    }
    let expected = fleet.state().head.sequence - events.len() as u64;
    let outcome = plane.log.append(expected, &events, &CancellationToken::new()).await.unwrap();
    assert!(matches!(outcome, Outcome::Stored { .. }));
}

fn report(n: usize, phase: ReportedPhase) -> GameReport {
    let id: GameId = format!("nba-{n}").parse().unwrap();
    let team = |name: &str| Some(v1::Team { name: format!("{name} {n}"), abbreviation: name[..1].into() });
    let info = v1::Game {
        id: id.to_string(),
        league: "nba".into(),
        home: team("Herons"),
        away: team("Kites"),
        starts_at_us: T0,
        markets: None,
    };
    GameReport { id, info, phase, status: format!("STATUS_{phase:?}").to_uppercase() }
}

/// A beat of a shard that watches all it owns.
fn beat(fleet: &Fleet, shard: usize) -> Input {
    let name = format!("shard_{shard:02}");
    let held = |(id, g): (&GameId, &arbees_fleet::state::Game)| {
        let owner = g.owner.as_ref().filter(|o| o.shard.as_str() == name)?;
        Some(v1::Watched { game: id.to_string(), epoch: owner.epoch.0 })
    };
    let games = fleet.state().games.iter().filter_map(held).collect();
    let service = v1::Service {
        kind: "shard".into(),
        instance: name.clone(),
        process: "p".into(),
        shard_type: "sports".into(),
        max_games: 1_000,
        on_log: true,
        ..v1::Service::default()
    };
    let checks = vec![v1::Check { name: "redis_ok".into(), ok: true }];
    let heartbeat =
        v1::Heartbeat { service: Some(service), status: "healthy".into(), checks, games, ..v1::Heartbeat::default() };
    let event = v1::Event { payload: Some(Payload::Heartbeat(heartbeat)), ..v1::Event::default() };
    Input::Beat(Box::new(event), Medium::Log)
}

#[tokio::test]
async fn ten_kills_in_the_middle_of_fifty_thousand_events_leave_exact_tables() {
    let mut plane = Plane::new("kills", Sim::all_live(60.0, 0, 0)).await;
    fill(&plane, 50_000).await;
    let (_, end) = plane.log.bounds(CONTROL).await.unwrap();
    let pool = plane.pool().await;
    let applied = async || -> u64 {
        let sql = "SELECT coalesce(max(sequence), 0) FROM arbees.projection_checkpoints WHERE stream = 'CONTROL'";
        let row = sqlx::query(sql).fetch_one(&pool).await;
        row.map_or(0, |r| u64::try_from(r.get::<i64, _>(0)).unwrap())
    };
    let mut killed_at = Vec::new();
    for kill in 1..=10u64 {
        plane.programs.launch("projector", "arbees-projector", &plane.settings).unwrap();
        let deadline = Instant::now() + PATIENCE;
        // Each kill falls a tenth further on, in the middle of whatever it is doing.
        while applied().await < kill * end / 12 {
            assert!(Instant::now() < deadline, "the projector stands at {} of {end}", applied().await);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        plane.programs.process("projector").unwrap().kill().await;
        killed_at.push(applied().await);
    }
    assert!(killed_at.iter().all(|at| *at < end), "every kill fell in the middle: {killed_at:?}");
    plane.projector().await;
    let begun = Instant::now();
    let report = plane.verified().await;
    println!("{end} events, killed at {killed_at:?}, exact {:.1?} after the last start", begun.elapsed());
    assert_eq!(report.rows["event_archive"], usize::try_from(end).unwrap());
    // The proof can fail: one wrong row is found.
    sqlx::query("UPDATE arbees.assignments SET shard_id = 'shard_99' WHERE game_id = (SELECT min(game_id) FROM arbees.assignments)")
        .execute(&pool)
        .await
        .unwrap();
    let report = arbees_projections::verify::verify(&plane.log, &pool, |_, _| ()).await.unwrap();
    assert_eq!(report.differences, 1, "{:?}", report.first_differences);
    plane.stop(&[]).await;
}

#[tokio::test]
async fn a_strangers_message_goes_aside_and_stops_nothing() {
    let mut plane = Plane::new("poison", Sim::all_live(60.0, 0, 0)).await;
    plane.projector().await;
    fill(&plane, 200).await;
    let client = async_nats::connect(plane.nats.url()).await.unwrap();
    let stream = async_nats::jetstream::new(client);
    for (subject, payload) in
        [("arbees.control.leader", "hello"), ("arbees.heartbeat.shard.x", "\u{0}"), ("arbees.game_state.nfl-1", "")]
    {
        stream.publish(subject, payload.into()).await.unwrap().await.unwrap();
    }
    // The leader folds past it and goes on.
    let state = plane.state().await;
    assert_eq!(state.head.skipped, 1);
    let me = v1::Producer { service: "orchestrator".into(), instance: "o2".into(), process: "p2".into() };
    let mut fleet = Fleet::new(state, Settings::default(), Names::new(""), me, T0);
    fleet.take_office(T0);
    turn(&plane, &mut fleet, T0, Input::Tick).await;
    let pool = plane.pool().await;
    let (_, end) = plane.log.bounds(CONTROL).await.unwrap();
    let probe = || async {
        let sql = "SELECT (SELECT count(*) FROM arbees.dead_letters), (SELECT sequence FROM arbees.projection_checkpoints WHERE stream = 'CONTROL')";
        let row = sqlx::query(sql).fetch_one(&pool).await.map_err(|e| e.to_string())?;
        let seen: (i64, i64) = (row.get(0), row.get(1));
        crate::plane::is(seen, (3, i64::try_from(end).unwrap()))
    };
    arbees_testkit::wait::until("three dead letters and the end of the log", PATIENCE, probe).await.unwrap();
    let report = arbees_projections::verify::verify(&plane.log, &pool, |_, _| ()).await.unwrap();
    assert_eq!((report.differences, report.invalid_messages), (0, 1), "{:?}", report.first_differences);
    plane.stop(&["no valid event", "skipped"]).await;
}
