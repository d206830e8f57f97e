//! The encoding of events is pinned: what was written years ago must still be read, and hashed, to the same bytes.

use std::path::PathBuf;

use arbees_proto::envelope::{GENESIS, chain_hash, hex};
use arbees_proto::v1::{self, event::Payload};
use arbees_proto::{EventId, Sealed, subject};
use prost::Message as _;

const AT: i64 = 1_748_800_000_123_456;

fn game() -> v1::Game {
    let team = |name: &str, abbreviation: &str| v1::Team { name: name.into(), abbreviation: abbreviation.into() };
    let moneyline =
        v1::Market { market_type: "moneyline".into(), kalshi: "KXMLB-1".into(), polymarket: "0xabc".into() };
    v1::Game {
        id: "mlb-401695787".into(),
        league: "mlb".into(),
        home: Some(team("Chicago Cubs", "CHC")),
        away: Some(team("Cincinnati Reds", "CIN")),
        starts_at_us: AT,
        markets: Some(v1::Markets { by_type: vec![moneyline] }),
        postseason: false,
    }
}

fn service() -> v1::Service {
    v1::Service {
        kind: "shard".into(),
        instance: "shard_01".into(),
        process: "b2f0".into(),
        started_at_us: AT,
        version: "0.1.0".into(),
        shard_type: "sports".into(),
        max_games: 20,
        on_log: true,
    }
}

fn payloads() -> Vec<Payload> {
    let id = || "mlb-401695787".to_owned();
    let shard = || "shard_01".to_owned();
    let status = || "STATUS_FINAL".to_owned();
    let epoch = (1 << 40) + 7;
    let heartbeat = v1::Heartbeat {
        service: Some(service()),
        status: "healthy".into(),
        checks: vec![v1::Check { name: "redis_ok".into(), ok: true }],
        games: vec![v1::Watched { game: id(), epoch }],
        last_applied: 7,
        metrics: vec![v1::Metric { name: "games_monitoring".into(), value: 1.0 }],
        head: Some(v1::LogHead { sequence: 7, hash: vec![1; 32] }),
        rejected: vec![v1::Watched { game: "nfl-1".into(), epoch: 3 }],
        effects_through: 0,
        fence_sequence: 0,
    };
    let state = v1::GameStateChanged {
        game: id(),
        shard: shard(),
        epoch,
        status: "STATUS_IN_PROGRESS".into(),
        state: "in".into(),
        home_score: Some(0),
        away_score: None,
        period: Some(3),
        clock: Some("0:00".into()),
        possession: None,
        home_win_prob: Some(0.5),
        home_team: "Chicago Cubs".into(),
        away_team: "Cincinnati Reds".into(),
    };
    vec![
        Payload::LeaderElected(v1::LeaderElected { instance: "orchestrator-1".into(), process: "p".into() }),
        Payload::GameDiscovered(v1::GameDiscovered { game: Some(game()) }),
        Payload::GameWentLive(v1::GameWentLive { game: id() }),
        Payload::GameSuspended(v1::GameSuspended { game: id(), status: status() }),
        Payload::GameResumed(v1::GameResumed { game: id() }),
        Payload::GamePostponed(v1::GamePostponed { game: id(), status: status() }),
        Payload::GameCanceled(v1::GameCanceled { game: id(), status: status() }),
        Payload::GameFinished(v1::GameFinished { game: id(), status: status() }),
        Payload::GameQueued(v1::GameQueued { game: id() }),
        Payload::MarketsMatched(v1::MarketsMatched { game: id(), markets: game().markets }),
        Payload::GameAssigned(v1::GameAssigned { game: Some(game()), shard: shard() }),
        Payload::GameReleased(v1::GameReleased { game: id(), shard: shard(), epoch }),
        Payload::AssignmentConfirmed(v1::AssignmentConfirmed { game: Some(game()), shard: shard(), epoch }),
        Payload::AssignmentAmended(v1::AssignmentAmended { game: Some(game()), shard: shard(), epoch }),
        Payload::ServiceRegistered(v1::ServiceRegistered { service: Some(service()) }),
        Payload::ServiceRestarted(v1::ServiceRestarted {
            service: Some(service()),
            old_process: "a1".into(),
            old_started_at_us: AT - 1,
        }),
        Payload::Heartbeat(heartbeat),
        Payload::GameStateChanged(state),
    ]
    .into_iter()
    .chain(control_plane())
    .collect()
}

/// What decides about health, moves and operators.
fn control_plane() -> Vec<Payload> {
    let id = || "mlb-401695787".to_owned();
    let (kind, shard) = (|| "shard".to_owned(), || "shard_01".to_owned());
    let (operator, epoch) = (|| "ann".to_owned(), (1 << 40) + 7);
    vec![
        Payload::GameReassigned(v1::GameReassigned {
            game: Some(game()),
            from: shard(),
            from_epoch: epoch,
            shard: "shard_02".into(),
        }),
        Payload::GamePinned(v1::GamePinned { game: id(), shard: shard() }),
        Payload::GameUnpinned(v1::GameUnpinned { game: id() }),
        Payload::ServiceStatusChanged(v1::ServiceStatusChanged {
            kind: kind(),
            instance: shard(),
            from: "healthy".into(),
            to: "degraded".into(),
            failed_checks: vec!["redis_ok".into()],
        }),
        Payload::ServiceLost(v1::ServiceLost {
            kind: kind(),
            instance: shard(),
            process: "b2f0".into(),
            silent_us: 2_250_000,
            heartbeat_sequence: 9,
            fence_sequence: 10,
            games: vec![id()],
            last_heartbeat_us: AT,
        }),
        Payload::ServiceRecovered(v1::ServiceRecovered {
            kind: kind(),
            instance: shard(),
            from: "dead".into(),
            unwell_us: 7,
            heartbeat_sequence: 0,
        }),
        Payload::AssignmentFailed(v1::AssignmentFailed { shard: shard(), game: id(), epoch, failures: 2 }),
        Payload::ResyncCompleted(v1::ResyncCompleted { kind: kind(), instance: shard(), games: 3, duration_us: 4 }),
        Payload::CircuitOpened(v1::CircuitOpened { shard: shard(), reason: "not taken up".into(), failures: 3 }),
        Payload::CircuitHalfOpened(v1::CircuitHalfOpened { shard: shard() }),
        Payload::CircuitClosed(v1::CircuitClosed { shard: shard(), was_open_us: 5 }),
        Payload::DrainStarted(v1::DrainStarted { shard: shard(), operator: operator() }),
        Payload::DrainCompleted(v1::DrainCompleted { shard: shard() }),
        Payload::DrainCanceled(v1::DrainCanceled { shard: shard(), operator: operator() }),
        Payload::OperatorVerb(v1::OperatorVerb {
            verb: "move".into(),
            operator: operator(),
            game: id(),
            shard: shard(),
            basis: 6,
        }),
        Payload::BrakeEngaged(v1::BrakeEngaged { kind: kind(), silent: vec![shard()], of: 3 }),
        Payload::BrakeReleased(v1::BrakeReleased { kind: kind(), engaged_us: 8 }),
        Payload::MovesPaused(v1::MovesPaused { operator: operator() }),
        Payload::MovesResumed(v1::MovesResumed { operator: operator() }),
        Payload::ShadowMode(v1::ShadowMode { on: true }),
        Payload::Fence(v1::Fence { kind: kind(), instance: shard(), heartbeat_sequence: 9, term: 4 }),
        Payload::AlertRaised(v1::AlertRaised {
            kind: "shard_lost".into(),
            incident: "shard_lost:shard_01".into(),
            severity: "critical".into(),
            summary: "shard shard_01 lost".into(),
        }),
        Payload::ServiceRecovered(v1::ServiceRecovered {
            kind: kind(),
            instance: shard(),
            from: "dead".into(),
            unwell_us: 7,
            heartbeat_sequence: 11,
        }),
        Payload::AlertDelivered(v1::AlertDelivered {
            kind: "shard_lost".into(),
            notice: "n".into(),
            channel: "slack".into(),
            incidents: vec!["shard_lost:shard_01".into()],
            latency_us: 5,
            attempts: 2,
            what: "raised".into(),
        }),
        Payload::AlertDeliveryFailed(v1::AlertDeliveryFailed {
            kind: "shard_lost".into(),
            notice: "n".into(),
            channel: "slack".into(),
            incidents: vec!["shard_lost:shard_01".into()],
            error: "answered 404".into(),
            attempts: 1,
            what: "raised".into(),
        }),
        Payload::AlertSuppressed(v1::AlertSuppressed {
            kind: "shard_lost".into(),
            incident: "shard_lost:shard_01".into(),
            reason: "rate limit".into(),
        }),
        Payload::AlertResolved(v1::AlertResolved { kind: "shard_lost".into(), incident: "shard_lost:shard_01".into() }),
        Payload::AlertAcknowledged(v1::AlertAcknowledged {
            kind: "shard_lost".into(),
            incident: "shard_lost:shard_01".into(),
            operator: "ann".into(),
            false_alarm: true,
        }),
        Payload::AlertSilenced(v1::AlertSilenced { kind: "all".into(), until_us: AT, operator: "ann".into() }),
    ]
}

fn event(payload: Payload) -> v1::Event {
    let reason = v1::Reason {
        cause: "live".into(),
        rule: "freest shard first".into(),
        candidates: vec![v1::Candidate { shard: "shard_01".into(), score: 950 }],
        rejections: vec![v1::Rejection { code: "full".into(), count: 2 }],
    };
    v1::Event {
        id: EventId::derive(AT, &[b"golden"]).0.to_vec(),
        occurred_at_us: AT,
        producer: Some(v1::Producer { service: "s".into(), instance: "i".into(), process: "p".into() }),
        correlation_id: vec![1; 16],
        causation_id: vec![2; 16],
        schema_version: 1,
        generation: 1,
        term: 4,
        reason: Some(reason),
        payload: Some(payload),
    }
}

/// One line an event: type, subject, chain hash, bytes. `UPDATE_GOLDEN=1` writes what is new; a line that is there is never
/// changed, as logs in the field hold it.
#[test]
fn encodings_are_those_of_the_golden_file() {
    let names = subject::Names::new("");
    let mut previous = GENESIS;
    let mut lines = Vec::new();
    for payload in payloads() {
        let event = event(payload);
        let payload = event.payload.as_ref().unwrap();
        let subject = names.control(payload).unwrap_or_else(|| "-".to_owned());
        let sealed = Sealed::new(subject, event, Some(&previous)).unwrap();
        previous = chain_hash(&previous, &sealed.subject, sealed.event_type, &sealed.payload);
        assert_eq!(sealed.hash, Some(previous));
        assert_eq!(v1::Event::decode(sealed.payload.clone()).unwrap(), sealed.event);
        lines.push(format!("{} {} {} {}", sealed.event_type, sealed.subject, hex(&previous), hex(&sealed.payload)));
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/events.txt");
    let mut golden = std::fs::read_to_string(&path).unwrap_or_default();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        for line in lines.iter().skip(golden.lines().count()) {
            golden.push_str(line);
            golden.push('\n');
        }
        std::fs::write(&path, &golden).unwrap();
    }
    assert_eq!(golden.lines().collect::<Vec<_>>(), lines);
}

/// Readers of today meet events of tomorrow.
#[test]
fn unknown_fields_do_not_hinder_reading() {
    let mut bytes = event(payloads().remove(2)).encode_to_vec();
    // Field 999, length-delimited, three bytes.
    bytes.extend([0xba, 0x3e, 3, 1, 2, 3]);
    assert_eq!(v1::Event::decode(bytes.as_slice()).unwrap().term, 4);
}
