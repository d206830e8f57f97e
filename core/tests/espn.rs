//! The client against a feed that misbehaves: one league's trouble is its own, and it ends when the trouble does.

use std::time::Duration;

use arbees_core::espn::{Espn, EspnConfig, EspnError};
use arbees_proto::League;
use arbees_testkit::feed::{Fault, Feed, Sim};
use chrono::Utc;

#[tokio::test]
async fn a_league_that_misbehaves_harms_only_itself_and_comes_back() {
    let feed = Feed::serve("127.0.0.1:0".parse().unwrap(), Sim::all_live(60.0, 16, 600)).await.unwrap();
    let espn = Espn::new(&EspnConfig::at(&feed.url())).unwrap();
    let faults = [
        (Fault::Status { status: 500 }, "answered 500"),
        (Fault::Status { status: 429 }, "answered 429"),
        (Fault::Half, "not JSON"),
        (Fault::Wrong, "not JSON"),
        (Fault::Huge, "larger than 16 MiB"),
        (Fault::Delay { ms: 6_000 }, ""),
    ];
    for (fault, says) in faults {
        feed.set_fault("football/nfl", fault);
        let (bad, good) =
            tokio::join!(espn.scoreboard(League::Nfl, Utc::now()), espn.scoreboard(League::Nba, Utc::now()));
        let error = bad.expect_err(&format!("{fault:?}"));
        assert!(error.to_string().starts_with("nfl: ") && error.to_string().contains(says), "{fault:?}: {error}");
        assert_eq!(good.unwrap().games.len(), 2);
        feed.set_fault("football/nfl", Fault::None);
        assert_eq!(espn.scoreboard(League::Nfl, Utc::now()).await.unwrap().games.len(), 2, "after {fault:?}");
    }
}

#[tokio::test]
async fn what_has_not_changed_is_not_sent_again_and_an_absent_game_is_had_by_id() {
    let feed = Feed::serve("127.0.0.1:0".parse().unwrap(), Sim::all_live(0.001, 8, 600)).await.unwrap();
    let espn = Espn::new(&EspnConfig::at(&feed.url())).unwrap();
    let first = espn.scoreboard(League::Mlb, Utc::now()).await.unwrap();
    let second = espn.scoreboard(League::Mlb, Utc::now()).await.unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &second), "answered 304: the same slate, not a copy");
    let id = &first.games[0].report.id;
    assert_eq!(espn.game(id).await.unwrap().games[0].report, first.games[0].report);
    let unknown = espn.game(&"mlb-1".parse().unwrap()).await.unwrap_err();
    assert!(matches!(unknown, EspnError::Status { status: 404, .. }), "{unknown}");
}

/// An endpoint that fails five times in a row is left alone for a while; then one try decides.
#[tokio::test]
async fn an_endpoint_that_keeps_failing_is_left_alone_and_tried_again() {
    let feed = Feed::serve("127.0.0.1:0".parse().unwrap(), Sim::all_live(60.0, 16, 600)).await.unwrap();
    let rest = Duration::from_millis(500);
    let mut config = EspnConfig::at(&feed.url());
    config.breaker.rest = rest;
    let espn = Espn::new(&config).unwrap();
    let ask = async || espn.scoreboard(League::Nfl, Utc::now()).await;
    feed.set_fault("football/nfl", Fault::Status { status: 503 });
    for _ in 0..5 {
        assert!(matches!(ask().await, Err(EspnError::Status { status: 503, .. })));
    }
    let error = ask().await.unwrap_err();
    assert_eq!(error.to_string(), "nfl: not asked, after 5 failures in a row");
    assert_eq!(espn.scoreboard(League::Nba, Utc::now()).await.unwrap().games.len(), 2, "its own trouble");
    // The rest itself is what is tested.
    tokio::time::sleep(rest).await;
    assert!(matches!(ask().await, Err(EspnError::Status { .. })), "one try");
    assert!(matches!(ask().await, Err(EspnError::Resting { .. })), "and no more");
    feed.set_fault("football/nfl", Fault::None);
    tokio::time::sleep(rest).await;
    assert_eq!(ask().await.unwrap().games.len(), 2);
    assert_eq!(ask().await.unwrap().games.len(), 2, "closed");
}
