//! The first day: a fleet that is already watching, taken over without a move, tried out in the shadow, and given back.

use std::collections::BTreeSet;

use arbees_testkit::feed::Sim;
use arbees_testkit::wait;

use crate::old_shard::OldShard;
use crate::plane::{PATIENCE, Plane, confirmed, games_of, is, moves};

/// Bare ids of the games `from..to` of [`Sim::all_live`].
fn ids(from: usize, to: usize) -> BTreeSet<String> {
    (from..to).map(|n| (800_000_000 + n).to_string()).collect()
}

/// Two old shards watch 40 games, and the log is empty.
async fn old_fleet(name: &str) -> (Plane, [OldShard; 2]) {
    let plane = Plane::new(name, Sim::all_live(60.0, 40, 24 * 60)).await;
    let bus = plane.bus();
    let shards =
        [OldShard::watching(&bus, "old-1", 30, ids(0, 25)), OldShard::watching(&bus, "old-2", 30, ids(25, 40))];
    (plane, shards)
}

/// Twice an old shard's interval, and what the leader waits after that: what it would do wrong, it would do by then.
async fn settle() {
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
}

#[tokio::test]
async fn forty_games_that_old_shards_already_watch_are_adopted_and_none_is_moved_or_removed() {
    let (mut plane, old) = old_fleet("adoption").await;
    plane.projector().await;
    plane.shard("shard_01").await;
    plane.orchestrator().await;
    let (state, _) = plane.until("40 games confirmed", |s| is(confirmed(s), 40)).await;
    assert_eq!((games_of(&state, "old-1").len(), games_of(&state, "old-2").len()), (25, 15));
    settle().await;
    let events = plane.events().await;
    let adopted = |(t, e): &&(String, _)| {
        let e: &arbees_proto::v1::Event = e;
        t == "GameAssigned" && e.reason.as_ref().is_some_and(|r| r.cause == "adopted")
    };
    assert_eq!((events.iter().filter(adopted).count(), moves(&plane).await.len()), (40, 0));
    assert_eq!((old[0].told("remove_game"), old[1].told("remove_game")), (0, 0));
    assert_eq!((old[0].count(), old[1].count()), (25, 15));
    plane.verified().await;
    plane.stop(&[]).await;
}

/// Decides in the shadow of the old orchestrator, is put in its place, and put back.
#[tokio::test]
async fn from_the_shadow_to_the_lead_and_back_no_game_moves_and_the_shadow_says_nothing() {
    let (mut plane, old) = old_fleet("shadow").await;
    let shadow = plane.with(&[("ORCHESTRATOR_MODE", "shadow")]);
    plane.programs.start("orchestrator", "arbees-orchestrator", &shadow).await.unwrap();
    plane.until("40 games confirmed", |s| is(confirmed(s), 40)).await;
    // The old orchestrator moves a game: it is followed.
    let moved = old[0].games.lock().unwrap().pop_first().unwrap();
    old[1].games.lock().unwrap().insert(moved.clone());
    let follows = |s: &arbees_fleet::State| is((games_of(s, "old-1").len(), games_of(s, "old-2").len()), (24, 16));
    plane.until("the move to be followed", follows).await;
    // A game is lost at its shard: in the shadow that is seen, and nothing is sent.
    let lost = old[0].games.lock().unwrap().pop_first().unwrap();
    settle().await;
    assert_eq!(
        (old[0].commands.lock().unwrap().len(), old[1].commands.lock().unwrap().len()),
        (0, 0),
        "it says nothing"
    );
    assert!(plane.state().await.shadow);

    // Cut-over: the same log goes on, and what the shadow only saw is repaired.
    plane.programs.stop("orchestrator").await.unwrap();
    plane.orchestrator().await;
    let probe = || async { is(old[0].count(), 24) };
    wait::until("the lost game to be back", PATIENCE, probe).await.unwrap();
    assert!(old[0].games.lock().unwrap().contains(&lost));
    settle().await;
    let (told, removed) = (old[1].commands.lock().unwrap().len(), old[0].told("remove_game"));
    assert_eq!((told, removed), (0, 0), "what was well is left alone");
    let of_moves = moves(&plane).await.len();
    assert_eq!(of_moves, 1, "the one of the old orchestrator");

    // The way back.
    plane.programs.stop("orchestrator").await.unwrap();
    plane.programs.start("orchestrator", "arbees-orchestrator", &shadow).await.unwrap();
    plane.until("the shadow", |s| is(s.shadow, true)).await;
    let before = old[0].commands.lock().unwrap().len();
    old[0].games.lock().unwrap().pop_first().unwrap();
    settle().await;
    let of_moves = moves(&plane).await.len();
    assert_eq!((old[0].commands.lock().unwrap().len(), of_moves), (before, 1), "it says nothing again");
    plane.stop(&[]).await;
}
