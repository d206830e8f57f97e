//! Redis stopped, flapping, mute and slow under a whole fleet: nothing moves for it, and all subscriptions come back by themselves.

use std::time::{Duration, Instant};

use arbees_testkit::feed::Sim;
use arbees_testkit::link::Link;
use arbees_testkit::wait;

use crate::alerts::{raised, settled};
use crate::old_shard::OldShard;
use crate::plane::{PATIENCE, Plane, confirmed, is, leader_may_judge, moves, row};

const KIND: &str = "redis_connectivity";
/// What a Redis that is away makes programs say.
const SAID: [&str; 6] = ["redis", "Redis", "subscription", "ALERT", "alert not delivered", "message not sent"];

/// Subscriptions that stand in all programs.
async fn subscriptions(plane: &mut Plane) -> i64 {
    let mut all = 0.0;
    for program in ["orchestrator", "shard_01", "shard_02", "shard_03"] {
        all += plane.metric(program, "arbees_redis_subscriptions").await;
    }
    all as i64
}

/// Waits until so many subscriptions stand; how long it took.
async fn subscribed(plane: &mut Plane, wanted: i64) -> Duration {
    let begun = Instant::now();
    while subscriptions(plane).await != wanted {
        assert!(begun.elapsed() < PATIENCE, "{} of {wanted} subscriptions stand", subscriptions(plane).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    begun.elapsed()
}

/// Waits until it was told so often, and that it is over.
async fn told(plane: &Plane, times: usize) {
    let probe = || async { is((raised(plane, KIND).await, settled(plane, KIND).await), (times, times)) };
    wait::until("people to be told, and of the end", PATIENCE, probe).await.unwrap();
}

#[tokio::test]
async fn redis_stopped_for_half_a_minute_moves_nothing_and_all_subscriptions_are_back() {
    let mut plane = Plane::new("redis-stopped", Sim::all_live(60.0, 60, 24 * 60)).await;
    plane.settings.insert("MAX_GAMES".into(), "40".into());
    plane.settings.insert("REDIS_RECONNECT_COOLDOWN_SECS".into(), "1".into());
    let old = OldShard::start(&plane.bus(), "old-1");
    plane.all(3).await;
    plane.until("60 games confirmed", |s| is(confirmed(s), 60)).await;
    leader_may_judge().await;
    let (all, had) = (subscriptions(&mut plane).await, old.count());
    let begun = Instant::now();
    plane.valkey.kill().await;
    let probe = || async { is(raised(&plane, KIND).await, 1) };
    wait::until("people to be told", PATIENCE, probe).await.unwrap();
    let detected = begun.elapsed();
    // For how long it is away is what is tested.
    tokio::time::sleep(Duration::from_secs(30).saturating_sub(detected)).await;
    assert_eq!(subscriptions(&mut plane).await, 0, "all are blind");
    plane.valkey.start_again().await.unwrap();
    let recovered = subscribed(&mut plane, all).await;
    told(&plane, 1).await;
    row("Redis stopped for 30 s", detected, recovered, 0, raised(&plane, KIND).await);
    // The longest delay is a second here, and so is the rest.
    assert!(recovered < 3 * Duration::from_secs(2), "{recovered:?}");
    plane.until("60 games confirmed", |s| is(confirmed(s), 60)).await;
    assert_eq!((moves(&plane).await.len(), plane.count("ServiceLost").await, old.count()), (0, 0, had));
    plane.verified().await;
    plane.stop(&SAID).await;
}

#[tokio::test]
async fn redis_that_flaps_mutes_and_slows_moves_nothing_and_costs_little() {
    let mut plane = Plane::new("redis-flaps", Sim::all_live(60.0, 20, 24 * 60)).await;
    let link = Link::to(plane.valkey.port()).await.unwrap();
    plane.settings.insert("REDIS_URL".into(), format!("redis://127.0.0.1:{}", link.port()));
    plane.all(3).await;
    plane.until("20 games confirmed", |s| is(confirmed(s), 20)).await;
    leader_may_judge().await;
    let all = subscriptions(&mut plane).await;
    let cpu = |plane: &mut Plane| plane.cpu_seconds("orchestrator") + plane.cpu_seconds("shard_01");
    let quiet = cpu(&mut plane);
    // A measure of what the same time costs without a fault.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let quiet = (cpu(&mut plane) - quiet) / 10.0;
    let flaps: u32 = std::env::var("ARBEES_FLAPS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    let mut alerts = 0;
    for how in ["flaps", "is mute", "is slow"] {
        let (begun, used) = (Instant::now(), cpu(&mut plane));
        match how {
            "flaps" => {
                for _ in 0..flaps {
                    link.cut();
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    link.mend();
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            "is mute" => link.mute(),
            _ => link.slow(Duration::from_secs(2)),
        }
        if how != "flaps" {
            // Long enough for every time-out and breaker.
            tokio::time::sleep(Duration::from_secs(15)).await;
        }
        let (lasted, used) = (begun.elapsed(), cpu(&mut plane) - used);
        link.mend();
        let recovered = subscribed(&mut plane, all).await;
        let probe = || async { is(raised(&plane, KIND).await, settled(&plane, KIND).await) };
        wait::until("the end to be told", PATIENCE, probe).await.unwrap();
        let now = raised(&plane, KIND).await;
        row(&format!("Redis {how} for {lasted:.0?}"), Duration::ZERO, recovered, 0, now - alerts);
        alerts = now;
        let share = used / lasted.as_secs_f64();
        println!("  {:.0} % of a core by leader and a shard, {:.0} % without the fault", share * 100.0, quiet * 100.0);
        assert!(share < quiet + 0.3, "it does not spin");
        assert_eq!((moves(&plane).await.len(), plane.count("ServiceLost").await), (0, 0), "{how}");
    }
    plane.stop(&SAID).await;
}
