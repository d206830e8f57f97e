//! What the leader decides, told as stories: given a log and a fleet, when something comes in, then this is decided.

use arbees_fleet::decide::{MarketsFound, Medium};
use arbees_fleet::{Effect, Entry, Fleet, GameReport, GameSet, Input, Phase, ReportedPhase, SECOND, Settings, State};
use arbees_proto::subject::{Names, type_name};
use arbees_proto::{GameId, InstanceId, League, Payload, Sealed, v1};
use proptest::prelude::*;

/// Some moment in 2026.
const T0: i64 = 1_790_000_000 * SECOND;

/// A leader with its log and a clock that is ours.
struct Plane {
    fleet: Fleet,
    log: Vec<Sealed>,
    effects: Vec<Effect>,
    now: i64,
}

fn me() -> v1::Producer {
    v1::Producer { service: "orchestrator".into(), instance: "o1".into(), process: "p1".into() }
}

impl Plane {
    fn new() -> Self {
        Self::over(State::default(), Vec::new(), T0)
    }

    fn over(state: State, log: Vec<Sealed>, now: i64) -> Self {
        let fleet = Fleet::new(state, Settings::default(), Names::new(""), me(), now);
        let mut plane = Self { fleet, log, effects: Vec::new(), now };
        plane.fleet.take_office(now, 0);
        plane.end_turn();
        plane
    }

    fn end_turn(&mut self) {
        let turn = self.fleet.end_turn();
        self.log.extend(turn.events);
        self.effects.extend(turn.effects);
    }

    fn hear(&mut self, input: Input) {
        self.fleet.decide(self.now, input);
        self.end_turn();
    }

    fn wait(&mut self, seconds: i64) {
        self.now += seconds * SECOND;
        self.hear(Input::Tick);
    }

    fn slate(&mut self, games: &[(&str, ReportedPhase)]) {
        let games = games.iter().map(|(id, phase)| report(id, *phase, self.now)).collect();
        self.hear(Input::Slate { games, schedule: false });
    }

    /// A beat of a log shard that watches what the log gives to it.
    fn beat(&mut self, shard: &str, max_games: u32) {
        let held = |(id, g): (&GameId, &arbees_fleet::state::Game)| {
            let owner = g.owner.as_ref().filter(|o| o.shard.as_str() == shard)?;
            Some(v1::Watched { game: id.to_string(), epoch: owner.epoch.0 })
        };
        let games = self.fleet.state().games.iter().filter_map(held).collect();
        let input = Input::Beat(Box::new(beat(shard, max_games, true, games)), Medium::Log);
        self.hear(input);
    }

    fn redis_beat(&mut self, shard: &str, games: &[&str]) {
        let watched = |g: &&str| v1::Watched { game: (*g).to_owned(), epoch: 0 };
        let event = beat(shard, 20, false, games.iter().map(watched).collect());
        self.hear(Input::Beat(Box::new(event), Medium::Redis));
    }

    fn types(&self) -> Vec<&'static str> {
        self.log.iter().filter_map(|e| e.event.payload.as_ref()).map(type_name).collect()
    }

    fn count(&self, name: &str) -> usize {
        self.types().iter().filter(|t| **t == name).count()
    }

    fn owner(&self, game: &str) -> Option<String> {
        let game = self.fleet.state().games.get(&game.parse::<GameId>().unwrap())?;
        game.owner.as_ref().map(|o| o.shard.to_string())
    }

    /// The log as a reader finds it.
    fn entries(&self) -> Vec<Entry> {
        let entry = |(i, e): (usize, &Sealed)| Entry {
            sequence: i as u64 + 1,
            subject: e.subject.clone(),
            event_type: e.event_type.to_owned(),
            hash: e.hash,
            payload: e.payload.clone(),
        };
        self.log.iter().enumerate().map(entry).collect()
    }

    fn folded(&self) -> State {
        let mut state = State::default();
        for entry in self.entries() {
            state.fold(&entry).unwrap();
        }
        state
    }
}

fn report(id: &str, phase: ReportedPhase, starts_at_us: i64) -> GameReport {
    let id: GameId = id.parse().unwrap();
    let info = v1::Game { id: id.to_string(), league: id.league().to_string(), starts_at_us, ..v1::Game::default() };
    let info = v1::Game { starts_at_us: if phase == ReportedPhase::Pre { starts_at_us } else { T0 }, ..info };
    GameReport { id, info, phase, status: format!("STATUS_{phase:?}").to_uppercase() }
}

fn beat(shard: &str, max_games: u32, on_log: bool, games: Vec<v1::Watched>) -> v1::Event {
    let service = v1::Service {
        kind: "shard".into(),
        instance: shard.into(),
        process: "p".into(),
        started_at_us: T0,
        shard_type: "sports".into(),
        max_games,
        on_log,
        ..v1::Service::default()
    };
    let checks = vec![v1::Check { name: "redis_ok".into(), ok: true }];
    let heartbeat =
        v1::Heartbeat { service: Some(service), status: "healthy".into(), checks, games, ..v1::Heartbeat::default() };
    v1::Event { payload: Some(Payload::Heartbeat(heartbeat)), ..v1::Event::default() }
}

use ReportedPhase::{Canceled, Final, Live, Postponed, Pre, Suspended};

#[test]
fn a_live_game_is_discovered_assigned_and_confirmed() {
    let mut p = Plane::new();
    p.beat("s1", 20);
    p.wait(2);
    p.beat("s1", 20);
    p.slate(&[("nfl-1", Live)]);
    p.beat("s1", 20);
    let expected =
        ["LeaderElected", "ServiceRegistered", "GameDiscovered", "GameWentLive", "GameAssigned", "AssignmentConfirmed"];
    assert_eq!(p.types(), expected);
    assert_eq!(p.log[4].subject, "arbees.control.assignment.nfl-1.none.s1");
    let reason = p.log[4].event.reason.clone().unwrap();
    assert_eq!((reason.cause.as_str(), reason.candidates.len()), ("live", 1));
    p.beat("s1", 20);
    assert_eq!(p.log.len(), expected.len(), "a second report confirms nothing anew");
    assert!(matches!(&p.effects[0], Effect::AddGame { shard, .. } if shard.as_str() == "s1"));
}

#[test]
fn nothing_is_placed_before_the_fleet_had_time_to_beat() {
    let mut p = Plane::new();
    p.beat("s1", 20);
    p.slate(&[("nfl-1", Live), ("nfl-2", Live)]);
    assert_eq!(p.count("GameAssigned"), 0);
    p.wait(1);
    p.beat("s2", 20);
    p.beat("s1", 20);
    p.wait(1);
    assert_eq!((p.owner("nfl-1").as_deref(), p.owner("nfl-2").as_deref()), (Some("s1"), Some("s2")));
}

#[test]
fn a_scheduled_game_is_assigned_fifteen_minutes_before_its_start() {
    let mut p = Plane::new();
    p.wait(2);
    p.beat("s1", 20);
    let start = p.now + 16 * 60 * SECOND;
    p.hear(Input::Slate { games: vec![report("nba-7", Pre, start)], schedule: true });
    assert_eq!((p.count("GameDiscovered"), p.count("GameAssigned")), (1, 0));
    p.wait(61);
    p.beat("s1", 20);
    p.wait(0);
    assert_eq!(p.owner("nba-7").as_deref(), Some("s1"));
}

#[test]
fn final_counts_when_reported_twice_thirty_seconds_apart() {
    let mut p = live_game();
    p.slate(&[("nfl-1", Final)]);
    p.wait(29);
    p.slate(&[("nfl-1", Final)]);
    assert_eq!(p.count("GameReleased"), 0);
    p.slate(&[("nfl-1", Live)]);
    p.wait(2);
    p.slate(&[("nfl-1", Final)]);
    assert_eq!(p.count("GameReleased"), 0, "a live report in between begins the count anew");
    p.wait(30);
    p.slate(&[("nfl-1", Final)]);
    assert_eq!((p.count("GameFinished"), p.count("GameReleased")), (1, 1));
    assert!(matches!(p.effects.last(), Some(Effect::RemoveGame { .. })));
    p.slate(&[("nfl-1", Final)]);
    assert_eq!(p.count("GameFinished"), 1);
}

#[test]
fn a_suspended_game_is_kept_while_absent_and_resumes_under_its_id() {
    let mut p = live_game();
    p.slate(&[("nfl-1", Suspended)]);
    for _ in 0..3 {
        p.wait(300);
        p.slate(&[]);
    }
    assert_eq!(p.owner("nfl-1").as_deref(), Some("s1"), "never released for absence");
    let asked = p.effects.iter().filter(|e| matches!(e, Effect::AskGame { .. })).count();
    assert_eq!(asked, 3, "asked for by id every five minutes");
    p.slate(&[("nfl-1", Live)]);
    assert_eq!((p.count("GameResumed"), p.count("GameAssigned")), (1, 1));
}

#[test]
fn a_game_first_seen_suspended_is_watched_and_one_first_seen_over_is_not() {
    let mut p = Plane::new();
    p.wait(2);
    p.beat("s1", 20);
    p.slate(&[("mlb-1", Suspended), ("mlb-2", Final), ("mlb-3", Canceled), ("mlb-4", Postponed)]);
    assert_eq!(p.owner("mlb-1").as_deref(), Some("s1"));
    assert_eq!(p.fleet.state().games.len(), 2, "the postponed one is known, as it may come back");
    assert_eq!(p.count("GameAssigned"), 1);
}

#[test]
fn postponed_and_canceled_games_are_released_at_once_and_a_live_report_opens_them_again() {
    for phase in [Postponed, Canceled] {
        let mut p = live_game();
        p.slate(&[("nfl-1", phase)]);
        assert_eq!((p.owner("nfl-1"), p.count("GameReleased")), (None, 1), "{phase:?}");
        p.slate(&[("nfl-1", Live)]);
        assert_eq!(p.owner("nfl-1").as_deref(), Some("s1"), "{phase:?}");
    }
}

#[test]
fn a_game_with_nowhere_to_go_waits_and_is_placed_as_soon_as_there_is_room() {
    let mut p = Plane::new();
    p.wait(2);
    p.beat("s1", 1);
    p.slate(&[("nfl-1", Live), ("nfl-2", Live)]);
    p.wait(1);
    p.beat("s1", 1);
    p.wait(1);
    assert_eq!((p.count("GameAssigned"), p.count("GameQueued")), (1, 1), "queued once, never over capacity");
    let queued = p.log.iter().find(|e| e.event_type == "GameQueued").unwrap();
    assert_eq!(queued.event.reason.as_ref().unwrap().rejections[0].code, "full");
    p.beat("s2", 1);
    p.wait(0);
    assert_eq!(p.owner("nfl-2").as_deref(), Some("s2"));
}

#[test]
fn a_shard_that_is_not_operational_or_not_heard_gets_nothing() {
    let mut p = Plane::new();
    p.wait(2);
    let mut sick = beat("s1", 20, true, Vec::new());
    if let Some(Payload::Heartbeat(h)) = &mut sick.payload {
        h.checks.clear();
    }
    p.hear(Input::Beat(Box::new(sick), Medium::Log));
    p.redis_beat("full", &[]);
    p.slate(&[("nfl-1", Live)]);
    assert_eq!(p.owner("nfl-1").as_deref(), Some("full"));
    p.slate(&[("nfl-1", Canceled)]);
    p.beat("s1", 20);
    p.wait(70);
    p.slate(&[("nfl-1", Live)]);
    assert_eq!(p.owner("nfl-1"), None, "silent for longer than a lease");
}

#[test]
fn a_new_leader_decides_nothing_that_was_decided_before() {
    let mut p = live_game();
    p.slate(&[("nfl-1", Live), ("nba-2", Live)]);
    p.beat("s1", 20);
    let (before, state) = (p.log.len(), p.folded());
    assert_eq!(&state, p.fleet.state());
    let mut q = Plane::over(state, p.log.clone(), p.now + SECOND);
    for _ in 0..5 {
        q.beat("s1", 20);
        q.slate(&[("nfl-1", Live), ("nba-2", Live)]);
        q.wait(1);
    }
    assert_eq!(q.types()[before..], ["LeaderElected"]);
    assert_eq!(q.fleet.state().head.term, 2);
}

#[test]
fn a_game_left_owned_after_its_end_is_released_by_the_next_leader() {
    let mut p = live_game();
    p.slate(&[("nfl-1", Canceled)]);
    // The batch was cut behind GameCanceled: a prefix is a valid log.
    p.log.pop();
    let q = {
        let mut q = Plane::over(p.folded(), p.log.clone(), p.now);
        q.wait(1);
        q
    };
    assert_eq!(q.owner("nfl-1"), None);
}

#[test]
fn markets_come_late_and_amend_the_assignment_under_its_epoch() {
    let mut p = live_game();
    assert!(p.effects.iter().any(|e| matches!(e, Effect::AskMarkets { .. })));
    let epoch = p.fleet.state().games.values().next().unwrap().owner.clone().unwrap().epoch;
    let found =
        MarketsFound { game: "1".into(), sport: Some(League::Nfl), kalshi: Some("K1".into()), polymarket: None };
    p.hear(Input::Markets(found.clone()));
    p.hear(Input::Markets(found));
    assert_eq!((p.count("MarketsMatched"), p.count("AssignmentAmended")), (1, 1));
    assert_eq!(p.fleet.state().games.values().next().unwrap().owner.clone().unwrap().epoch, epoch);
    let mut set = GameSet::new(InstanceId::strict("s1").unwrap());
    for (i, e) in p.log.iter().enumerate() {
        set.apply(i as u64 + 1, &e.event);
    }
    let markets = set.held().values().next().unwrap().game.markets.clone().unwrap();
    assert_eq!(markets.by_type[0].kalshi, "K1");
}

#[test]
fn a_bare_id_means_the_one_game_that_has_it_and_nothing_when_two_do() {
    let mut p = Plane::new();
    p.slate(&[("nfl-7", Live), ("nba-7", Live), ("nhl-8", Live)]);
    assert_eq!(p.fleet.resolve_id("8", None).unwrap().as_str(), "nhl-8");
    assert_eq!(p.fleet.resolve_id("7", None), None);
    assert_eq!(p.fleet.resolve_id("7", Some(League::Nba)).unwrap().as_str(), "nba-7");
    assert_eq!(p.fleet.resolve_id("a b", Some(League::Nba)), None);
}

#[test]
fn a_redis_only_shard_is_told_again_until_it_reports_the_game() {
    let mut p = Plane::new();
    p.wait(2);
    p.redis_beat("old", &[]);
    p.slate(&[("nfl-1", Live)]);
    let adds = |p: &Plane| p.effects.iter().filter(|e| matches!(e, Effect::AddGame { .. })).count();
    assert_eq!(adds(&p), 1);
    p.wait(5);
    p.redis_beat("old", &[]);
    assert_eq!(adds(&p), 1, "a beat may have left before the command came");
    for _ in 0..4 {
        p.wait(5);
        p.redis_beat("old", &[]);
    }
    assert_eq!(adds(&p), 2);
    p.wait(5);
    p.redis_beat("old", &["1"]);
    assert_eq!(p.count("AssignmentConfirmed"), 1);
    p.slate(&[("nfl-1", Canceled)]);
    let removes = |p: &Plane| p.effects.iter().filter(|e| matches!(e, Effect::RemoveGame { .. })).count();
    assert_eq!(removes(&p), 1);
    for _ in 0..5 {
        p.wait(5);
        p.redis_beat("old", &["1"]);
    }
    assert!(removes(&p) >= 2, "told again to remove what it still reports");
}

#[test]
fn a_changed_process_is_a_restart_and_moves_nothing() {
    let mut p = live_game();
    let mut again = beat("s1", 20, true, Vec::new());
    if let Some(Payload::Heartbeat(h)) = &mut again.payload {
        h.service.as_mut().unwrap().process = "p2".into();
    }
    p.hear(Input::Beat(Box::new(again), Medium::Log));
    assert_eq!((p.count("ServiceRestarted"), p.count("GameAssigned")), (1, 1));
    assert_eq!(p.fleet.state().services.values().next().unwrap().restarts, 1);
}

#[test]
fn a_batch_never_grows_over_a_thousand_events_and_the_rest_follows() {
    let mut p = Plane::new();
    p.wait(2);
    p.beat("s1", 5_000);
    let games: Vec<_> = (0..600).map(|i| report(&format!("nfl-{i}"), Live, T0)).collect();
    p.fleet.decide(p.now, Input::Slate { games: games.clone(), schedule: false });
    let turn = p.fleet.end_turn();
    assert_eq!(turn.events.len(), 1_000);
    p.log.extend(turn.events);
    p.hear(Input::Slate { games, schedule: false });
    p.hear(Input::Tick);
    assert_eq!(p.fleet.state().games.values().filter(|g| g.owner.is_some()).count(), 600);
    assert_eq!(&p.folded(), p.fleet.state());
}

#[test]
fn an_amendment_that_a_power_cut_took_is_decided_by_the_next_leader() {
    let mut p = live_game();
    let found =
        MarketsFound { game: "1".into(), sport: Some(League::Nfl), kalshi: Some("K1".into()), polymarket: None };
    p.hear(Input::Markets(found));
    assert_eq!(p.log.pop().unwrap().event_type, "AssignmentAmended");
    let mut q = Plane::over(p.folded(), p.log.clone(), p.now);
    q.wait(1);
    assert_eq!(q.count("AssignmentAmended"), 1);
    let follows = |p: &Plane| p.effects.iter().filter(|e| matches!(e, Effect::FollowMarkets { .. })).count();
    assert_eq!(follows(&q), 1, "and the monitors are told");
    q.wait(299);
    assert_eq!(follows(&q), 1);
    q.wait(1);
    assert_eq!((follows(&q), q.count("AssignmentAmended")), (2, 1), "again after five minutes, over Redis alone");
}

#[test]
fn what_is_over_is_opened_again_by_play_alone() {
    let mut p = live_game();
    p.slate(&[("nfl-1", Canceled)]);
    p.slate(&[("nfl-1", Suspended)]);
    p.slate(&[("nfl-1", Pre)]);
    assert_eq!((p.owner("nfl-1"), p.count("GameSuspended")), (None, 0));
}

#[test]
fn when_all_shards_fail_the_same_check_new_games_are_still_placed_on_the_log() {
    let mut p = Plane::new();
    p.wait(2);
    for shard in ["s1", "s2"] {
        let mut sick = beat(shard, 20, true, Vec::new());
        if let Some(Payload::Heartbeat(h)) = &mut sick.payload {
            h.checks[0].ok = false;
        }
        p.hear(Input::Beat(Box::new(sick), Medium::Log));
    }
    p.slate(&[("nfl-1", Live)]);
    assert_eq!(p.owner("nfl-1").as_deref(), Some("s1"));
}

#[test]
fn huge_texts_are_cut_and_a_log_that_lost_its_tail_goes_on_in_a_new_generation() {
    let mut p = Plane::new();
    let mut huge = beat("s1", 20, true, Vec::new());
    if let Some(Payload::Heartbeat(h)) = &mut huge.payload {
        let service = h.service.as_mut().unwrap();
        (service.version, service.kind) = ("é".repeat(1 << 20), format!("shard{}", "x".repeat(1 << 20)));
    }
    p.hear(Input::Beat(Box::new(huge), Medium::Log));
    let registered = p.log.last().unwrap();
    assert_eq!((registered.event_type, registered.payload.len() < 2_000), ("ServiceRegistered", true));
    let mut next = Fleet::new(p.folded(), Settings::default(), Names::new(""), me(), p.now);
    next.take_office(p.now, 2);
    assert_eq!(next.state().head.generation, 2);
}

/// One shard with one live game.
fn live_game() -> Plane {
    let mut p = Plane::new();
    p.wait(2);
    p.beat("s1", 20);
    p.slate(&[("nfl-1", Live)]);
    p.beat("s1", 20);
    assert_eq!(p.owner("nfl-1").as_deref(), Some("s1"));
    p
}

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
    p.fleet.take_office(p.now, 0);
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
