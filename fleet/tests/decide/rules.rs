//! Whatever comes in, and whatever is done to the log: the rules hold.

use arbees_fleet::ReportedPhase::{Canceled, Final, Live, Postponed, Pre, Suspended};
use arbees_fleet::decide::MarketsFound;
use arbees_fleet::{Entry, GameSet, Input, Phase, ReportedPhase, SECOND, State};
use arbees_proto::{InstanceId, Sealed};
use proptest::prelude::*;

use crate::plane::{Plane, at, live_game};

#[derive(Clone, Debug)]
enum Step {
    Wait(i64),
    Slate(Vec<(u8, ReportedPhase)>),
    Beat(u8),
    RedisBeat(u8, Vec<u8>),
    Markets(u8),
    NewLeader,
}

fn step() -> impl Strategy<Value = Step> {
    let phase = prop_oneof![Just(Pre), Just(Live), Just(Suspended), Just(Postponed), Just(Canceled), Just(Final)];
    prop_oneof![
        (0..40i64).prop_map(Step::Wait),
        proptest::collection::vec((0..12u8, phase), 0..8).prop_map(Step::Slate),
        (0..3u8).prop_map(Step::Beat),
        (3..5u8, proptest::collection::vec(0..12u8, 0..4)).prop_map(|(s, g)| Step::RedisBeat(s, g)),
        (0..12u8).prop_map(Step::Markets),
        Just(Step::NewLeader),
    ]
}

fn play(steps: &[Step]) -> Plane {
    let mut p = Plane::new();
    let id = |g: u8| format!("{}-{g}", if g.is_multiple_of(2) { "nfl" } else { "nba" });
    for step in steps {
        match step {
            Step::Wait(seconds) => p.wait(*seconds),
            Step::Slate(games) => {
                let named: Vec<(String, ReportedPhase)> = games.iter().map(|(g, phase)| (id(*g), *phase)).collect();
                p.slate(&named.iter().map(|(id, phase)| (id.as_str(), *phase)).collect::<Vec<_>>());
            }
            Step::Beat(shard) => p.beat(&format!("s{shard}"), 4),
            Step::RedisBeat(shard, games) => {
                let bare: Vec<String> = games.iter().map(ToString::to_string).collect();
                p.redis_beat(&format!("old.{shard}"), &bare.iter().map(String::as_str).collect::<Vec<_>>());
            }
            Step::Markets(g) => p.hear(Input::Markets(MarketsFound {
                game: g.to_string(),
                sport: None,
                kalshi: Some(format!("K{g}")),
                polymarket: None,
            })),
            Step::NewLeader => p = Plane::over(p.folded(), p.log.clone(), p.now),
        }
    }
    p
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever comes in: the log folds to the leader's state, no shard is over capacity, every game has at most one owner at
    /// every position, each shard's own reading of the log agrees, and the same inputs give the same bytes.
    #[test]
    fn the_rules_hold_whatever_comes_in(steps in proptest::collection::vec(step(), 0..60)) {
        let p = play(&steps);
        prop_assert_eq!(&p.folded(), p.fleet.state());
        let mut state = State::default();
        let mut sets: Vec<GameSet> = ["s0", "s1", "s2", "old.3", "old.4"]
            .iter().map(|s| GameSet::new(InstanceId::lenient(s).unwrap())).collect();
        for (entry, sealed) in p.entries().iter().zip(&p.log) {
            state.fold(entry).unwrap();
            for set in &mut sets {
                set.apply(entry.sequence, &sealed.event);
            }
            for (id, game) in &state.games {
                let holders = sets.iter().filter(|s| s.held().contains_key(id)).count();
                prop_assert_eq!(holders, usize::from(game.owner.is_some()), "{} at {}", id, entry.sequence);
            }
        }
        for (shard, load) in state.loads() {
            let most = if shard.as_str().starts_with('s') { 4 } else { 20 };
            prop_assert!(load <= most, "{shard} owns {load}");
        }
        prop_assert!(p.fleet.state().games.values().all(|g| !(g.phase.is_over() && g.queued_since_us.is_some())));
        let again = play(&steps);
        prop_assert_eq!(again.log, p.log);
    }
}

#[test]
fn strangers_and_deposed_leaders_are_skipped_and_the_chain_goes_on() {
    let mut p = live_game();
    let mut entries = p.entries();
    let stranger = Entry {
        subject: "arbees.control.leader".into(),
        event_type: String::new(),
        hash: None,
        payload: "hi".into(),
        sequence: 0,
    };
    entries.insert(3, stranger);
    let mut state = State::default();
    for (i, entry) in entries.iter_mut().enumerate() {
        entry.sequence = i as u64 + 1;
        assert_eq!(state.fold(entry).is_err(), i == 3);
    }
    assert_eq!((state.head.skipped, state.games.len()), (1, 1));
    assert_eq!(state.games.values().next().unwrap().phase, Phase::Live);
    // Its events chain rightly, but a newer term is in the log.
    p.fleet.take_office(at(p.now), 0);
    p.end_turn();
    let mut state = p.folded();
    let mut old = p.log[4].event.clone();
    old.term = 1;
    let sealed = Sealed::new(p.log[4].subject.clone(), old, Some(&state.head.hash)).unwrap();
    let entry = Entry {
        sequence: state.head.sequence + 1,
        subject: sealed.subject,
        event_type: sealed.event_type.to_owned(),
        hash: sealed.hash,
        payload: sealed.payload,
    };
    assert!(matches!(state.fold(&entry), Err(arbees_fleet::Skip::Deposed { found: 1, newest: 2 })));
}

#[test]
fn an_edited_dropped_or_swapped_event_does_not_chain() {
    let entries = live_game().entries();
    let skipped = |entries: &[Entry]| {
        let mut state = State::default();
        entries.iter().filter(|e| state.fold(e).is_err()).count()
    };
    assert_eq!(skipped(&entries), 0);
    for at in 0..entries.len() {
        let mut edited = entries.clone();
        let mut bytes = edited[at].payload.to_vec();
        bytes[20] ^= 1;
        edited[at].payload = bytes.into();
        assert!(skipped(&edited) > 0, "payload of {at}");
        let mut moved = entries.clone();
        moved[at].subject.push('x');
        assert!(skipped(&moved) > 0, "subject of {at}");
        let mut dropped = entries.clone();
        dropped.remove(at);
        assert!(at + 1 == entries.len() || skipped(&dropped) > 0, "without {at}");
        if at > 0 {
            let mut swapped = entries.clone();
            swapped.swap(at - 1, at);
            assert!(skipped(&swapped) > 0, "{at} before its predecessor");
        }
    }
}

#[test]
fn time_in_the_log_never_goes_back_whatever_the_clock_does() {
    let mut p = live_game();
    p.now -= 3_600 * SECOND;
    p.slate(&[("nfl-1", Suspended)]);
    assert_eq!(p.log.last().unwrap().event_type, "GameSuspended");
    assert!(p.log.windows(2).all(|w| w[0].event.occurred_at_us <= w[1].event.occurred_at_us));
}
