//! What the tests here are about: one shard, `a`, and games of its.

use arbees_fleet::state::{Game, Owner, Phase, ServiceKey};
use arbees_proto::{Epoch, EventId, Payload, v1};

/// A second, in microseconds.
pub(super) const S: i64 = arbees_fleet::SECOND;

pub(super) fn shard() -> ServiceKey {
    ServiceKey::shard("a".parse().unwrap())
}

/// The shard as an owner since `since_us`.
pub(super) fn owner(epoch: u64, since_us: i64, confirmed_at_us: Option<i64>) -> Option<Owner> {
    Some(Owner { shard: "a".parse().unwrap(), epoch: Epoch(epoch), since_us, confirmed_at_us, markets: None })
}

/// A game in play since `phase_since_us`.
pub(super) fn live(phase_since_us: i64, owner: Option<Owner>) -> Game {
    let nothing = EventId([0; 16]);
    Game {
        info: v1::Game::default(),
        phase: Phase::Live,
        phase_since_us,
        status: String::new(),
        owner,
        queued_since_us: None,
        pin: None,
        origin: nothing,
        last_event: nothing,
        last_sequence: 1,
    }
}

/// A beat of the shard's on the log: its process, what it says of itself, the games it names, the checks it fails.
pub(super) fn beat(process: &str, status: &str, games: &[&str], failed: &[&str]) -> v1::Event {
    let (kind, instance, process) = ("shard".into(), "a".into(), process.into());
    let service = v1::Service { kind, instance, process, on_log: true, ..v1::Service::default() };
    let beat = v1::Heartbeat {
        service: Some(service),
        status: status.into(),
        checks: failed.iter().map(|name| v1::Check { name: (*name).into(), ok: false }).collect(),
        games: games.iter().map(|id| v1::Watched { game: (*id).into(), epoch: 1 }).collect(),
        ..v1::Heartbeat::default()
    };
    v1::Event { payload: Some(Payload::Heartbeat(beat)), ..v1::Event::default() }
}
