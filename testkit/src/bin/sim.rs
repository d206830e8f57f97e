//! `arbees-sim`: plays simulated worlds by seed, and prints what broke in them.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use arbees_testkit::simulation::{LENGTH, Report, play, play_day};

const USAGE: &str = "usage: arbees-sim SEED            play one seed and print its history if it breaks a rule
       arbees-sim FIRST COUNT     play so many seeds from FIRST on, on all cores; stops at the first that breaks a rule
       arbees-sim day SEED        play a day of 24 hours in which nothing fails but what passes by itself
example: arbees-sim 0 2000";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    let is_day = args.next_if(|a| a == "day").is_some();
    let numbers: Option<Vec<u64>> = args.map(|a| a.parse().ok()).collect();
    match numbers.as_deref() {
        Some([seed]) if is_day => one(*seed, &play_day(*seed, 24)),
        Some([seed]) => one(*seed, &play(*seed)),
        Some([first, count]) => many(*first, *count),
        _ => {
            println!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn one(seed: u64, report: &Report) -> ExitCode {
    for line in &report.history {
        println!("{line}");
    }
    println!(
        "seed {seed}: {} events, {} moves, {} lost, {} terms, {} late outputs dropped, {} by a fixed time-out, {}",
        report.events, report.moves, report.lost, report.terms, report.dropped, report.naive_deaths, report.fingerprint
    );
    match &report.violation {
        None => ExitCode::SUCCESS,
        Some(violation) => {
            println!("BROKEN: {violation}");
            ExitCode::FAILURE
        }
    }
}

fn many(first: u64, count: u64) -> ExitCode {
    let begun = Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (next, played, is_broken) = (AtomicU64::new(first), AtomicU64::new(0), AtomicBool::new(false));
    let totals = [const { AtomicU64::new(0) }; 4];
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while !is_broken.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let report = play(seed);
                    played.fetch_add(1, Ordering::Relaxed);
                    let seen = [report.events, report.moves, report.lost, report.terms];
                    for (total, n) in totals.iter().zip(seen) {
                        total.fetch_add(n, Ordering::Relaxed);
                    }
                    if let Some(violation) = report.violation {
                        is_broken.store(true, Ordering::Relaxed);
                        println!("seed {seed} BROKEN: {violation}\n  history: arbees-sim {seed}");
                    }
                }
            });
        }
    });
    let (played, seconds) = (played.load(Ordering::Relaxed), begun.elapsed().as_secs_f64());
    #[allow(clippy::cast_precision_loss)]
    let hours_per_minute = played as f64 * LENGTH as f64 / 3.6e9 / (seconds * cores as f64 / 60.0);
    let [events, moves, lost, terms] = totals.map(|t| t.load(Ordering::Relaxed));
    println!(
        "{played} seeds in {seconds:.1} s on {cores} cores: {hours_per_minute:.0} simulated hours per CPU-minute; {events} \
         events, {moves} moves, {lost} shards lost, {terms} terms"
    );
    if is_broken.load(Ordering::Relaxed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
