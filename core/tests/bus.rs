//! Redis that is killed, cut, mute and slow; behind Sentinel and behind TLS.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arbees_core::breaker::Limits;
use arbees_core::bus::{Bus, RedisConfig};
use arbees_core::retry::Policy;
use arbees_testkit::link::Link;
use arbees_testkit::servers::{Binaries, Scratch, Valkey};
use arbees_testkit::tls::TlsFront;
use arbees_testkit::wait;

const PATIENCE: Duration = Duration::from_secs(30);

fn quick(url: &str) -> RedisConfig {
    let mut config = RedisConfig::at(url);
    config.reconnect.policy =
        Policy { first: Duration::from_millis(20), most: Duration::from_millis(50), jitter: 0.1, tries: None };
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
    let latency = bus.health_check_result().await.unwrap();
    assert!(latency < Duration::from_secs(1));
    for round in 1..=3 {
        valkey.kill().await;
        let is_blind = || async { if heard.sight().blind_since.is_some() { Ok(()) } else { Err("sees") } };
        wait::until("it to be blind", PATIENCE, is_blind).await.unwrap();
        assert!(bus.health_check_result().await.is_err());
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

/// The master dies: Sentinel makes another one, and both ways lead there by themselves.
#[tokio::test]
async fn with_sentinel_messages_flow_again_over_the_new_master() {
    let scratch = Scratch::new("sentinel").unwrap();
    let binaries = Binaries::find(&|line| println!("{line}")).unwrap();
    let mut master = Valkey::start(&binaries, &scratch.path().join("a")).await.unwrap();
    let replica = Valkey::start_replica(&binaries, &scratch.path().join("b"), &master).await.unwrap();
    let sentinel = Valkey::start_sentinel(&binaries, &scratch.path().join("s"), &master).await.unwrap();
    // Of three sentinels one is not there, and one takes connections and never answers.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute_port = mute.local_addr().unwrap().port();
    let url = format!("redis+sentinel://127.0.0.1:1,127.0.0.1:{mute_port},127.0.0.1:{}/main", sentinel.port());
    let mut config = quick(&url);
    // A failover takes longer than ten of these quick tries.
    config.reconnect.breaker = Limits { failures: 1_000, rest: Duration::from_secs(1) };
    let bus = Bus::open(&config).unwrap();
    let mut heard = bus.subscribe(&["one"], &[]);
    let mut flows = async |text: &str| {
        let deadline = std::time::Instant::now() + PATIENCE;
        let mut seen = String::new();
        while std::time::Instant::now() < deadline {
            seen = match bus.publish("one", text).await {
                Err(error) => error.to_string(),
                Ok(()) => match tokio::time::timeout(Duration::from_millis(100), heard.next()).await {
                    Ok(Some(message)) if message.payload == text.as_bytes() => return,
                    other => format!("{other:?}"),
                },
            };
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{text} is not heard: {seen}");
    };
    flows("before").await;
    // A sentinel knows a master's replicas after it has asked it, every ten seconds at first.
    let knows = || async {
        let client =
            redis::Client::open(format!("redis://127.0.0.1:{}", sentinel.port())).map_err(|e| e.to_string())?;
        let mut asked = client.get_multiplexed_async_connection().await.map_err(|e| e.to_string())?;
        let mut question = redis::cmd("SENTINEL");
        let found: Vec<redis::Value> =
            question.arg("replicas").arg("main").query_async(&mut asked).await.map_err(|e| e.to_string())?;
        if found.len() == 1 { Ok(()) } else { Err(format!("{} replicas", found.len())) }
    };
    wait::until("the sentinel to know the replica", PATIENCE, knows).await.unwrap();
    master.kill().await;
    let begun = std::time::Instant::now();
    flows("after").await;
    println!("messages flow {:.1?} after the master's death, over port {}", begun.elapsed(), replica.port());
}

/// By TLS, only to whom the certificate is trusted.
#[tokio::test]
async fn by_tls_messages_flow_and_a_stranger_is_not_trusted() {
    let scratch = Scratch::new("tls").unwrap();
    let binaries = Binaries::find(&|line| println!("{line}")).unwrap();
    let valkey = Valkey::start(&binaries, scratch.path()).await.unwrap();
    let front = TlsFront::to(valkey.port()).await.unwrap();
    let url = format!("rediss://localhost:{}", front.port());
    let stranger = Bus::open(&quick(&url)).unwrap();
    let error = stranger.health_check_result().await.unwrap_err().to_string();
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    // What SSL_CERT_FILE names is read by a process of its own: the environment of this one is shared by all its tests.
    let file = scratch.path().join("ca.pem");
    std::fs::write(&file, &front.certificate).unwrap();
    let mut own = tokio::process::Command::new(std::env::current_exe().unwrap());
    own.args(["--exact", "speaks_tls_when_asked_to", "--nocapture"])
        .env("SSL_CERT_FILE", &file)
        .env("TLS_TEST_URL", &url);
    let out = own.output().await.unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("heard over TLS"), "{text}");
}

/// A part of the test above; by itself there is nothing for it to do.
#[tokio::test]
async fn speaks_tls_when_asked_to() {
    let Ok(url) = std::env::var("TLS_TEST_URL") else { return };
    let bus = Bus::open(&quick(&url)).unwrap();
    let mut heard = bus.subscribe(&["one"], &[]);
    let sees = || async { if heard.sight().blind_since.is_none() { Ok(()) } else { Err("blind") } };
    wait::until("the subscription", PATIENCE, sees).await.unwrap();
    bus.publish("one", "x").await.unwrap();
    let message = tokio::time::timeout(PATIENCE, heard.next()).await.unwrap().unwrap();
    assert_eq!(message.payload, b"x");
    println!("heard over TLS");
}

/// A server that takes connections and never answers, and one that is slow by two seconds each way.
#[tokio::test]
async fn a_server_that_never_answers_or_is_slow_is_left_in_time_and_found_again() {
    let scratch = Scratch::new("mute").unwrap();
    let binaries = Binaries::find(&|line| println!("{line}")).unwrap();
    let valkey = Valkey::start(&binaries, scratch.path()).await.unwrap();
    let link = Link::to(valkey.port()).await.unwrap();
    let bus = Bus::open(&quick(&format!("redis://127.0.0.1:{}", link.port()))).unwrap();
    let heard = bus.subscribe(&["one"], &[]);
    let sees = || async { if heard.sight().blind_since.is_none() { Ok(()) } else { Err("blind") } };
    let is_blind = || async { if heard.sight().blind_since.is_some() { Ok(()) } else { Err("sees") } };
    wait::until("the subscription", PATIENCE, sees).await.unwrap();
    for how in ["mute", "slow"] {
        if how == "mute" {
            link.mute();
        } else {
            link.slow(Duration::from_secs(2));
        }
        let begun = std::time::Instant::now();
        // Many at once wait no longer than one.
        let asked = futures::future::join_all((0..20).map(|_| bus.publish("one", "x"))).await;
        let took = begun.elapsed();
        assert!(asked.iter().all(Result::is_err) && took < Duration::from_secs(9), "{how}: {took:.1?}");
        if how == "mute" {
            wait::until("it to be blind", PATIENCE, is_blind).await.unwrap();
        }
        let blind = begun.elapsed();
        link.mend();
        let begun = std::time::Instant::now();
        let publishes = || async { bus.publish("one", "x").await.map_err(|e| e.to_string()) };
        wait::until("publishing to work", PATIENCE, publishes).await.unwrap();
        wait::until("the subscription to be back", PATIENCE, sees).await.unwrap();
        println!(
            "{how}: refused after {took:.1?}, noticed after {blind:.1?}, back {:.1?} after the end",
            begun.elapsed()
        );
    }
}
