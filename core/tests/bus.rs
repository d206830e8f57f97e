//! Subscriptions over a real server that is killed, and over one that takes connections and closes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arbees_core::breaker::Limits;
use arbees_core::bus::{Bus, RedisConfig};
use arbees_core::retry::Policy;
use arbees_testkit::servers::{Binaries, Scratch, Valkey};
use arbees_testkit::wait;

const PATIENCE: Duration = Duration::from_secs(30);

fn quick(url: &str) -> RedisConfig {
    let mut config = RedisConfig::at(url);
    config.reconnect.policy = Policy { first: Duration::from_millis(20), most: Duration::from_millis(50), jitter: 0.1 };
    config
}

#[tokio::test]
async fn a_subscription_comes_back_and_knows_how_long_it_was_blind() {
    let scratch = Scratch::new("bus").unwrap();
    let binaries = Binaries::find(&|line| println!("{line}")).unwrap();
    let mut valkey = Valkey::start(&binaries, scratch.path()).await.unwrap();
    let bus = Bus::open(&quick(&valkey.url())).unwrap();
    let mut heard = bus.subscribe(&["one"], &["many:*"]);
    let sees = || async { if heard.sight().blind_since.is_none() { Ok(()) } else { Err("blind") } };
    wait::until("the subscription", PATIENCE, sees).await.unwrap();
    assert_eq!(heard.sight().reconnects, 0);
    let latency = bus.ping().await.unwrap();
    assert!(latency < Duration::from_secs(1));
    for round in 1..=3 {
        valkey.kill().await;
        let is_blind = || async { if heard.sight().blind_since.is_some() { Ok(()) } else { Err("sees") } };
        wait::until("it to be blind", PATIENCE, is_blind).await.unwrap();
        assert!(bus.ping().await.is_err());
        valkey.start_again().await.unwrap();
        let sees = || async { if heard.sight().blind_since.is_none() { Ok(()) } else { Err("blind") } };
        wait::until("the subscription to be back", PATIENCE, sees).await.unwrap();
        let sight = heard.sight();
        assert!(sight.reconnects == round && !sight.blind_for.is_zero(), "{sight:?}");
        for channel in ["one", "many:2"] {
            let publish = || async { bus.publish(channel, "x").await.map_err(|e| e.to_string()) };
            wait::until("publishing to work", PATIENCE, publish).await.unwrap();
            let message = tokio::time::timeout(PATIENCE, heard.next()).await.unwrap().unwrap();
            assert_eq!((message.channel.as_str(), message.payload.as_slice()), (channel, b"x".as_slice()));
        }
    }
}

/// Whoever takes connections and closes them at once is left alone after so many of them.
#[tokio::test]
async fn after_so_many_failures_in_a_row_it_rests() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let tries = Arc::<AtomicU32>::default();
    let count = tries.clone();
    let accepting = tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            drop(connection);
        }
    });
    let mut config = quick(&url);
    config.reconnect.breaker = Limits { failures: 4, rest: Duration::from_millis(900) };
    let heard = Bus::open(&config).unwrap().subscribe(&["one"], &[]);
    // Without a rest, there would be forty tries in this time.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let tried = tries.load(Ordering::Relaxed);
    println!("{tried} tries in 2 s");
    assert!((4..=10).contains(&tried), "{tried}");
    assert!(heard.sight().blind_since.is_some());
    accepting.abort();
}
