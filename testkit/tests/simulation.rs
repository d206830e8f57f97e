//! Two thousand worlds, each ten minutes long, in which things break: the rules hold in all of them.

use std::sync::atomic::{AtomicU64, Ordering};

use arbees_testkit::simulation::{play, play_day};

/// Seeds played, unless `ARBEES_SEEDS` says otherwise.
const SEEDS: u64 = 2_000;

#[test]
fn the_rules_hold_in_every_world() {
    let seeds = std::env::var("ARBEES_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(SEEDS);
    let (next, moves, lost) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let player = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return;
            }
            let report = play(seed);
            moves.fetch_add(report.moves, Ordering::Relaxed);
            lost.fetch_add(report.lost, Ordering::Relaxed);
            let how = format!("seed {seed}: cargo run -p arbees-testkit --bin arbees-sim {seed}");
            assert_eq!(report.violation, None, "{how}\n{}", report.history.join("\n"));
        }
    };
    std::thread::scope(|scope| {
        let players: Vec<_> = (0..cores).map(|_| scope.spawn(player)).collect();
        players.into_iter().for_each(|p| p.join().unwrap());
    });
    let (moves, lost) = (moves.into_inner(), lost.into_inner());
    println!("{seeds} seeds: {moves} moves, {lost} shards lost");
    assert!(moves > seeds && lost > seeds / 2, "a world in which nothing happens proves nothing");
}

/// A day of short stops, outages of the log and a frozen leader: nobody is taken for dead. A fixed time-out of a minute does it
/// whenever the one who listens was frozen for longer.
#[test]
fn in_a_day_without_a_death_nobody_is_taken_for_dead() {
    let day = play_day(1, 24);
    println!("24 hours: {} false deaths; with a fixed time-out of 60 s {}", day.lost, day.naive_deaths);
    assert_eq!((day.violation, day.lost), (None, 0), "{}", day.history.join("\n"));
    assert!(day.naive_deaths > 0, "the control finds the difference");
}

/// One seed is one world, to the byte.
#[test]
fn a_seed_played_twice_is_the_same_world() {
    for seed in [3, 77, 1_234] {
        assert_eq!(play(seed), play(seed));
    }
}
