//! The notifications of the existing contract: each told after its event, and made from nothing but it.

use arbees_proto::{Payload, ServiceKind, v1};
use serde_json::{Value, json};

use crate::time::rfc3339;

const HEALTH: &str = "notifications:service_health";
const RESYNC: &str = "notifications:service_resync";
const CIRCUIT: &str = "notifications:circuit_breaker";
const DEGRADATION: &str = "notifications:degradation";

/// What `event` is told as: a channel and a payload; none for events that the contract does not know.
#[must_use]
pub fn notification(event: &v1::Event) -> Option<(&'static str, Value)> {
    let at = rfc3339(event.occurred_at_us);
    let told = |channel, name: &str, kind: &str, instance: &str, more: Value| {
        let mut payload = json!({ "type": name, "service": service(kind), "instance_id": instance, "timestamp": at });
        if let (Value::Object(all), Value::Object(more)) = (&mut payload, more) {
            all.extend(more);
        }
        Some((channel, payload))
    };
    let shard = ServiceKind::Shard.as_str();
    match event.payload.as_ref()? {
        Payload::ServiceRestarted(e) => {
            let s = e.service.as_ref()?;
            let more = json!({
                "old_started_at": rfc3339(e.old_started_at_us), "new_started_at": rfc3339(s.started_at_us),
            });
            told(HEALTH, "service_restarted", &s.kind, &s.instance, more)
        }
        Payload::ServiceLost(e) => {
            let games: Vec<&str> = e.games.iter().map(|g| bare(g)).collect();
            let last = if e.last_heartbeat_us == 0 { Value::Null } else { json!(rfc3339(e.last_heartbeat_us)) };
            let more = json!({ "last_heartbeat": last, "assigned_games": games });
            told(HEALTH, "service_dead", &e.kind, &e.instance, more)
        }
        Payload::ResyncCompleted(e) => {
            let more = json!({ "games_resent": e.games, "duration_ms": e.duration_us / 1_000 });
            told(RESYNC, "service_resync_complete", &e.kind, &e.instance, more)
        }
        Payload::ServiceStatusChanged(e) if e.to == "degraded" || e.to == "unhealthy" => {
            let severity = if e.to == "unhealthy" { "Critical" } else { "Warning" };
            let more = json!({ "failed_checks": e.failed_checks, "severity": severity });
            told(DEGRADATION, "service_degraded", &e.kind, &e.instance, more)
        }
        Payload::ServiceRecovered(e) => {
            let more = json!({ "was_degraded_for_secs": seconds(e.unwell_us) });
            told(DEGRADATION, "service_recovered", &e.kind, &e.instance, more)
        }
        Payload::CircuitOpened(e) => {
            let more = json!({ "reason": e.reason, "failure_count": e.failures });
            told(CIRCUIT, "circuit_breaker_opened", shard, &e.shard, more)
        }
        Payload::CircuitClosed(e) => {
            let more = json!({ "was_open_for_secs": seconds(e.was_open_us) });
            told(CIRCUIT, "circuit_breaker_closed", shard, &e.shard, more)
        }
        _ => None,
    }
}

/// How the existing programs call a kind of service.
fn service(kind: &str) -> &str {
    if kind == ServiceKind::Shard.as_str() { "game_shard" } else { kind }
}

const fn seconds(us: i64) -> i64 {
    us / 1_000_000
}

fn bare(game: &str) -> &str {
    game.split_once('-').map_or(game, |(_, event)| event)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(payload: Payload) -> Option<(&'static str, Value)> {
        notification(&v1::Event { occurred_at_us: 1_000_000, payload: Some(payload), ..v1::Event::default() })
    }

    const AT: &str = "1970-01-01T00:00:01.000000Z";

    #[test]
    fn every_notification_is_spelt_as_its_readers_expect() {
        let (kind, instance) = (|| "shard".to_owned(), || "shard_01".to_owned());
        let restarted = v1::ServiceRestarted {
            service: Some(v1::Service {
                kind: kind(),
                instance: instance(),
                started_at_us: 2_000_000,
                ..v1::Service::default()
            }),
            old_process: "p".into(),
            old_started_at_us: 1_000_000,
        };
        assert_eq!(
            told(Payload::ServiceRestarted(restarted)),
            Some((
                HEALTH,
                json!({
                    "type": "service_restarted", "service": "game_shard", "instance_id": "shard_01", "timestamp": AT,
                    "old_started_at": AT, "new_started_at": "1970-01-01T00:00:02.000000Z",
                })
            ))
        );
        let lost = v1::ServiceLost {
            kind: kind(),
            instance: instance(),
            games: vec!["nfl-4015".into()],
            last_heartbeat_us: 1_000_000,
            ..v1::ServiceLost::default()
        };
        assert_eq!(
            told(Payload::ServiceLost(lost)),
            Some((
                HEALTH,
                json!({
                    "type": "service_dead", "service": "game_shard", "instance_id": "shard_01", "timestamp": AT,
                    "last_heartbeat": AT, "assigned_games": ["4015"],
                })
            ))
        );
        let resynced = v1::ResyncCompleted { kind: kind(), instance: instance(), games: 7, duration_us: 650_000 };
        assert_eq!(
            told(Payload::ResyncCompleted(resynced)),
            Some((
                RESYNC,
                json!({
                    "type": "service_resync_complete", "service": "game_shard", "instance_id": "shard_01", "timestamp": AT,
                    "games_resent": 7, "duration_ms": 650,
                })
            ))
        );
        for (to, severity) in [("degraded", "Warning"), ("unhealthy", "Critical")] {
            let changed = v1::ServiceStatusChanged {
                kind: "kalshi".into(),
                instance: "k1".into(),
                from: "healthy".into(),
                to: to.into(),
                failed_checks: vec!["ws_ok".into()],
            };
            assert_eq!(
                told(Payload::ServiceStatusChanged(changed)),
                Some((
                    DEGRADATION,
                    json!({
                        "type": "service_degraded", "service": "kalshi", "instance_id": "k1", "timestamp": AT,
                        "failed_checks": ["ws_ok"], "severity": severity,
                    })
                ))
            );
        }
        let recovered = v1::ServiceRecovered {
            kind: kind(),
            instance: instance(),
            from: "degraded".into(),
            unwell_us: 12_900_000,
            heartbeat_sequence: 7,
        };
        assert_eq!(
            told(Payload::ServiceRecovered(recovered)),
            Some((
                DEGRADATION,
                json!({
                    "type": "service_recovered", "service": "game_shard", "instance_id": "shard_01", "timestamp": AT,
                    "was_degraded_for_secs": 12,
                })
            ))
        );
        let opened = v1::CircuitOpened { shard: instance(), reason: "not taken up".into(), failures: 3 };
        assert_eq!(
            told(Payload::CircuitOpened(opened)),
            Some((
                CIRCUIT,
                json!({
                    "type": "circuit_breaker_opened", "service": "game_shard", "instance_id": "shard_01", "timestamp": AT,
                    "reason": "not taken up", "failure_count": 3,
                })
            ))
        );
        let closed = v1::CircuitClosed { shard: instance(), was_open_us: 31_000_000 };
        assert_eq!(
            told(Payload::CircuitClosed(closed)),
            Some((
                CIRCUIT,
                json!({
                    "type": "circuit_breaker_closed", "service": "game_shard", "instance_id": "shard_01", "timestamp": AT,
                    "was_open_for_secs": 31,
                })
            ))
        );
    }

    #[test]
    fn what_the_contract_does_not_know_is_not_told() {
        let healthy = v1::ServiceStatusChanged { to: "healthy".into(), ..v1::ServiceStatusChanged::default() };
        assert_eq!(told(Payload::ServiceStatusChanged(healthy)), None);
        assert_eq!(told(Payload::GameWentLive(v1::GameWentLive { game: "nfl-1".into() })), None);
    }
}
