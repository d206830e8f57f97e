//! The log's discipline on real servers that are really cut, killed and started again.

use std::time::Duration;

use arbees_core::config::LogConfig;
use arbees_core::log::{self, CONTROL, ConnectError, Log, snapshot_slot};
use arbees_core::retry::{Policy, retry};
use arbees_fleet::append::Outcome;
use arbees_fleet::decide::Now;
use arbees_fleet::{Fleet, GameReport, Input, ReportedPhase, SECOND, Settings, State};
use arbees_proto::subject::Names;
use arbees_proto::{GameId, Sealed, v1};
use arbees_testkit::link::Link;
use arbees_testkit::servers::{Binaries, Cluster, Nats, Scratch};
use tokio_util::sync::CancellationToken;

const T0: i64 = 1_790_000_000 * SECOND;

fn binaries() -> Binaries {
    Binaries::find(&|line| println!("{line}")).unwrap()
}

async fn connect(url: &str, replicas: u32) -> Log {
    let config = LogConfig { url: url.to_owned(), creds: None, names: Names::new(""), replicas };
    log::connect("test", &config, &CancellationToken::new()).await.unwrap()
}

/// A server with all streams, and a connection to it.
async fn server(name: &str) -> (Scratch, Nats, Log) {
    let scratch = Scratch::new(name).unwrap();
    let nats = Nats::start(&binaries(), scratch.path()).await.unwrap();
    let log = connect(&nats.url(), 1).await;
    log.ensure_streams().await.unwrap();
    (scratch, nats, log)
}

fn at(at: i64) -> Now {
    Now { wall_us: at, steady_us: at }
}

/// A leader's mind over the log as it is.
fn fleet(state: State, process: &str) -> Fleet {
    let me = v1::Producer { service: "orchestrator".into(), instance: "o".into(), process: process.into() };
    Fleet::new(state, Settings::default(), Names::new(""), me, at(T0))
}

/// So many events about games nobody has seen before, numbered from `from`.
fn discovered(fleet: &mut Fleet, from: usize, count: usize) -> (u64, Vec<Sealed>) {
    let expected = fleet.state().head.sequence;
    let report = |n: usize| {
        let id: GameId = format!("nfl-{n}").parse().unwrap();
        let info = v1::Game { id: id.to_string(), league: "nfl".into(), starts_at_us: T0, ..v1::Game::default() };
        GameReport { id, info, phase: ReportedPhase::Pre, status: "STATUS_SCHEDULED".into() }
    };
    let games = (from..from + count).map(report).collect();
    fleet.decide(at(T0), Input::Slate { games, schedule: true });
    let events = fleet.end_turn().events;
    assert_eq!(events.len(), count);
    (expected, events)
}

async fn append(log: &Log, expected: u64, events: &[Sealed]) -> Outcome {
    log.append(expected, events, &CancellationToken::new()).await.unwrap()
}

/// The streams and reads of a cluster that is forming or electing want patience, as the services have it.
async fn patiently<T, E: std::error::Error + 'static, F: Future<Output = Result<T, E>>>(
    is_retryable: impl Fn(&E) -> bool,
    op: impl FnMut() -> F,
) -> T {
    let (policy, never) = (Policy::patient(), CancellationToken::new());
    let done = retry("test", &policy, &never, is_retryable, op);
    tokio::time::timeout(Duration::from_secs(60), done).await.expect("within a minute").unwrap()
}

/// Everything in CONTROL folds without a single skip, and is just these events.
async fn assert_log_is(log: &Log, ids: &[arbees_proto::EventId]) {
    let found = patiently(|_| true, || read_ids(log)).await;
    assert_eq!(found, ids);
}

async fn read_ids(log: &Log) -> Result<Vec<arbees_proto::EventId>, log::ReadError> {
    let (_, end) = log.bounds(CONTROL).await?;
    let mut found = Vec::new();
    let mut state = State::default();
    let mut reader = log.read(CONTROL, Vec::new(), 1, end).await?;
    while let Some(stored) = reader.next().await? {
        found.push(stored.id().unwrap());
        state.fold(&stored.entry()).unwrap();
    }
    Ok(found)
}

#[tokio::test]
async fn single_events_and_batches_are_stored_once_and_in_order() {
    let (_scratch, _nats, log) = server("append").await;
    let mut fleet = fleet(State::default(), "a");
    let mut ids = Vec::new();
    for (from, count) in [(0, 1), (1, 2), (3, 100), (103, 1), (104, 1_000)] {
        let (expected, events) = discovered(&mut fleet, from, count);
        let outcome = append(&log, expected, &events).await;
        assert_eq!(outcome, Outcome::Stored { last_sequence: expected + count as u64 });
        ids.extend(events.iter().map(|e| e.id));
        // The same again, as after a lost acknowledgement: told as stored, and not stored twice.
        assert_eq!(append(&log, expected, &events).await, outcome);
    }
    assert_log_is(&log, &ids).await;
}

#[tokio::test]
async fn a_deposed_leader_is_refused_for_ever() {
    let (_scratch, _nats, log) = server("deposed").await;
    let mut new = fleet(State::default(), "new");
    new.take_office(at(T0), 0);
    let elected = new.end_turn().events;
    assert!(matches!(append(&log, 0, &elected).await, Outcome::Stored { .. }));
    for count in [1, 5] {
        let (expected, events) = discovered(&mut fleet(State::default(), "old"), 0, count);
        assert_eq!(append(&log, expected, &events).await, Outcome::Deposed);
    }
    assert_log_is(&log, &[elected[0].id]).await;
}

#[tokio::test]
async fn appends_through_a_link_that_is_cut_again_and_again_are_stored_exactly_once() {
    let (_scratch, nats, direct) = server("cut").await;
    let link = Link::to(nats.port()).await.unwrap();
    let log = connect(&format!("nats://127.0.0.1:{}", link.port()), 1).await;
    let done = CancellationToken::new();
    let cutting = async {
        while !done.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(60)).await;
            link.cut();
            tokio::time::sleep(Duration::from_millis(30)).await;
            link.mend();
        }
    };
    let appending = async {
        let mut fleet = fleet(State::default(), "a");
        let mut ids = Vec::new();
        for round in 0..60 {
            let count = if round % 2 == 0 { 1 } else { 40 };
            let (expected, events) = discovered(&mut fleet, round * 100, count);
            let outcome = append(&log, expected, &events).await;
            assert_eq!(outcome, Outcome::Stored { last_sequence: expected + count as u64 }, "round {round}");
            ids.extend(events.iter().map(|e| e.id));
        }
        done.cancel();
        ids
    };
    let (ids, ()) = tokio::time::timeout(Duration::from_secs(120), async { tokio::join!(appending, cutting) })
        .await
        .expect("60 appends within two minutes");
    assert_log_is(&direct, &ids).await;
}

#[tokio::test]
async fn a_tail_has_no_gap_and_no_repeat_over_cuts_and_a_killed_server() {
    let (_scratch, mut nats, log) = server("tail").await;
    let link = Link::to(nats.port()).await.unwrap();
    let through = connect(&format!("nats://127.0.0.1:{}", link.port()), 1).await;
    let mut tail = through.tail(CONTROL, Vec::new(), 1);
    let mut fleet = fleet(State::default(), "a");
    let mut next = 1;
    for round in 0..6 {
        let (expected, events) = discovered(&mut fleet, round * 1_000, 500);
        append(&log, expected, &events).await;
        match round {
            1 | 3 => {
                link.cut();
                tokio::time::sleep(Duration::from_millis(300)).await;
                link.mend();
            }
            4 => {
                nats.kill().await;
                nats.start_again().await.unwrap();
            }
            _ => {}
        }
        while next <= (round as u64 + 1) * 500 {
            let stored = tokio::time::timeout(Duration::from_secs(20), tail.next()).await.unwrap_or_else(|_| {
                panic!("waited 20 s for sequence {next} in round {round}");
            });
            assert_eq!(stored.unwrap().sequence, next);
            next += 1;
        }
    }
}

/// A server that is put back to an older copy of its data: whoever tails must not wait beyond the end, and then take what is
/// new for what it has read.
#[tokio::test]
async fn a_tail_over_a_stream_that_lost_its_end_says_so() {
    let (scratch, mut nats, log) = server("lost-tail").await;
    let mut fleet = fleet(State::default(), "a");
    let (expected, events) = discovered(&mut fleet, 0, 20);
    append(&log, expected, &events).await;
    nats.stop().await.unwrap();
    let (data, copy) = (scratch.path().join("data"), scratch.path().join("copy"));
    let copied = std::process::Command::new("cp").arg("-r").args([&data, &copy]).status().unwrap();
    assert!(copied.success());
    nats.start_again().await.unwrap();
    let mut tail = log.tail(CONTROL, Vec::new(), 1);
    let (expected, events) = discovered(&mut fleet, 100, 20);
    append(&log, expected, &events).await;
    for sequence in 1..=40 {
        let stored = tokio::time::timeout(Duration::from_secs(20), tail.next()).await.unwrap();
        assert_eq!(stored.unwrap().sequence, sequence);
    }
    nats.stop().await.unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&copy, &data).unwrap();
    nats.start_again().await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(20), tail.next()).await.unwrap();
    assert!(ended.is_none() && tail.is_lost());
}

#[tokio::test]
async fn the_last_message_of_each_subject_is_found_among_many() {
    let (_scratch, _nats, log) = server("last").await;
    let mut fleet = fleet(State::default(), "a");
    for round in 0..3 {
        let (expected, events) = discovered(&mut fleet, round * 300, 300);
        append(&log, expected, &events).await;
    }
    let found = log.last_per_subject(CONTROL, "arbees.control.game.*".to_owned()).await.unwrap();
    assert_eq!(found.len(), 900);
    assert!(found.windows(2).all(|w| w[0].sequence < w[1].sequence));
    assert!(log.last_per_subject(CONTROL, "arbees.control.fleet".to_owned()).await.unwrap().is_empty());
    let one = log.last_on(CONTROL, "arbees.control.game.nfl-7").await.unwrap().unwrap();
    assert_eq!((one.sequence, one.id().is_some()), (8, true));
    assert!(log.last_on(CONTROL, "arbees.control.game.nfl-9999").await.unwrap().is_none());
}

#[tokio::test]
async fn a_snapshot_is_used_when_it_matches_the_log_and_ignored_when_it_does_not() {
    let (_scratch, nats, log) = server("snapshot").await;
    let mut fleet = fleet(State::default(), "a");
    let (expected, events) = discovered(&mut fleet, 0, 300);
    append(&log, expected, &events).await;
    log.save_snapshot(fleet.state()).await.unwrap();
    assert!(log.load_snapshot(300).await.as_ref() == Some(fleet.state()), "it is read back whole");
    let found = async |last| log.load_snapshot(last).await.map(|s| s.head.sequence);
    assert_eq!(found(299).await, None, "none from beyond the moment asked for");
    for round in 1..7 {
        let (expected, events) = discovered(&mut fleet, round * 400, 400);
        append(&log, expected, &events).await;
    }
    let end = fleet.state().head.sequence;
    assert!(snapshot_slot(end) > 0, "{end} has a slot of its own");
    let mut forged = fleet.state().clone();
    forged.head.hash[0] ^= 1;
    log.save_snapshot(&forged).await.unwrap();
    assert_eq!(found(end - 1).await, Some(300), "the newest is from beyond");
    assert_eq!(found(end).await, Some(300), "the forged one is passed over");
    assert!(&log.fold(None).await.unwrap() == fleet.state(), "the fold on the older one");
    assert_eq!(log.fold(Some(120)).await.unwrap().head.sequence, 120);
    // Whoever folds the log leaves one at the slot itself, in place of the forged one.
    log.fold_leaving_snapshots(None).await.unwrap();
    assert_eq!(found(end).await, Some(snapshot_slot(end)));
    // Who reads it meanwhile is not disturbed by another that folds the same.
    let client = async_nats::connect(nats.url()).await.unwrap();
    let store = async_nats::jetstream::new(client).get_object_store("SNAPSHOTS").await.unwrap();
    let name = format!("control-{:020}", snapshot_slot(end));
    let before = store.info(&name).await.unwrap();
    log.save_snapshot(&log.fold(Some(snapshot_slot(end))).await.unwrap()).await.unwrap();
    assert_eq!(store.info(&name).await.unwrap().nuid, before.nuid);
}

#[tokio::test]
async fn a_log_that_has_lost_its_tail_is_noticed() {
    let (_scratch, _nats, log) = server("tail-lost").await;
    let mut fleet = fleet(State::default(), "a");
    let (expected, events) = discovered(&mut fleet, 0, 10);
    append(&log, expected, &events).await;
    // What the leader remembers and the log does not.
    discovered(&mut fleet, 100, 40);
    let (expected, events) = discovered(&mut fleet, 200, 5);
    let error = log.append(expected, &events, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, log::AppendError::LostTail { expected: 50, end: 10 }), "{error}");
}

#[tokio::test]
async fn a_stream_that_differs_is_refused_with_every_difference() {
    let scratch = Scratch::new("differs").unwrap();
    let nats = Nats::start(&binaries(), scratch.path()).await.unwrap();
    let client = async_nats::connect(nats.url()).await.unwrap();
    let body = r#"{"name":"CONTROL","subjects":["arbees.control.>"],"storage":"file","max_age":1000000000000,"num_replicas":1}"#;
    client.request("$JS.API.STREAM.CREATE.CONTROL", body.into()).await.unwrap();
    let error = connect(&nats.url(), 1).await.ensure_streams().await.unwrap_err();
    assert!(!error.is_retryable());
    let text = error.to_string();
    for field in ["allow_atomic: needed true", "deny_delete", "deny_purge", "max_age: needed 0, found 1000000000000"] {
        assert!(text.contains(field), "{field} in {text}");
    }
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused() {
    let scratch = Scratch::new("old").unwrap();
    let old = Nats::start_old(scratch.path(), &|line| println!("{line}")).await.unwrap();
    let config = LogConfig { url: old.url(), creds: None, names: Names::new(""), replicas: 1 };
    let refused = log::connect("test", &config, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(refused, ConnectError::TooOld { .. }));
    assert!(refused.to_string().contains("at least 2.14.4 is needed"), "{refused}");
}

/// What works on one server can be refused on a replicated stream.
#[tokio::test]
async fn the_same_discipline_holds_on_three_replicated_servers() {
    let scratch = Scratch::new("cluster").unwrap();
    let mut cluster = Cluster::start(&binaries(), scratch.path()).await.unwrap();
    let log = connect(&cluster.urls(), 3).await;
    patiently(log::EnsureError::is_retryable, || log.ensure_streams()).await;
    let mut tail = log.tail(CONTROL, Vec::new(), 1);
    let mut fleet = fleet(State::default(), "a");
    let mut ids = Vec::new();
    for round in 0..8 {
        if round == 5 {
            cluster.kill(0).await;
        }
        let count = if round % 2 == 0 { 1 } else { 100 };
        let (expected, events) = discovered(&mut fleet, round * 1_000, count);
        let outcome = tokio::time::timeout(Duration::from_secs(60), append(&log, expected, &events)).await;
        let outcome = outcome.unwrap_or_else(|_| panic!("round {round}: no append within 60 s"));
        assert_eq!(outcome, Outcome::Stored { last_sequence: expected + count as u64 }, "round {round}");
        ids.extend(events.iter().map(|e| e.id));
    }
    let (mut stale, first) = (self::fleet(State::default(), "stale"), 1);
    let (expected, events) = discovered(&mut stale, 9_000, first);
    assert_eq!(append(&log, expected, &events).await, Outcome::Deposed);
    for (index, id) in ids.iter().enumerate() {
        let stored =
            tokio::time::timeout(Duration::from_secs(60), tail.next()).await.expect("the tail goes on").unwrap();
        assert_eq!((stored.sequence, stored.id()), (index as u64 + 1, Some(*id)));
    }
    assert_log_is(&log, &ids).await;
}
