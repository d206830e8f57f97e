//! Every recorded scoreboard is read right.

use std::collections::BTreeMap;
use std::path::Path;

use arbees_core::espn::{ParseError, Slate, parse_scoreboard, parse_summary};
use arbees_fleet::ReportedPhase;
use arbees_proto::League;
use arbees_testkit::recordings::folder_for_test;

fn league_of(path: &str) -> League {
    // Leagues beyond the eight are read by the same rules; the name only makes the ids.
    League::ALL.into_iter().find(|l| l.espn_path() == path).unwrap_or(League::Nba)
}

fn read(root: &Path, file: &str, league: League) -> Slate {
    let body = std::fs::read(root.join(file)).unwrap();
    parse_scoreboard(league, &body).unwrap_or_else(|e| panic!("{file}: {e}"))
}

#[test]
fn every_recorded_scoreboard_is_read_whole() {
    let Some(root) = folder_for_test("reading the recorded scoreboards") else { return };
    let index = std::fs::read_to_string(root.join("index.tsv")).unwrap();
    let mut phases: BTreeMap<ReportedPhase, usize> = BTreeMap::new();
    for line in index.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let slate = read(&root, fields[0], league_of(fields[1]));
        assert_eq!(slate.unreadable, [], "{}", fields[0]);
        assert_eq!(slate.unknown_statuses, [] as [String; 0], "{}", fields[0]);
        let events: usize = fields[5].parse().unwrap();
        // The index counts the events at the top; in the CDN's envelope they lie deeper.
        let expected = if fields[0].contains("cdn_envelope") { 16 } else { events };
        assert_eq!(slate.games.len(), expected, "{}", fields[0]);
        for game in &slate.games {
            *phases.entry(game.report.phase).or_default() += 1;
            assert_ne!(game.report.info.starts_at_us, 0, "{}", fields[0]);
        }
    }
    // Counted from the bodies by hand: 147 final and 13 full time, 61 in progress and a half-time, 4 postponed, 1 suspended.
    let expected = [
        (ReportedPhase::Pre, 128),
        (ReportedPhase::Live, 62),
        (ReportedPhase::Suspended, 1),
        (ReportedPhase::Postponed, 4),
        (ReportedPhase::Final, 160),
    ];
    assert_eq!(phases, expected.into());
}

#[test]
fn scores_clocks_and_teams_are_those_of_the_bodies() {
    let Some(root) = folder_for_test("reading recorded scores") else { return };
    let slate = read(&root, "espn/scoreboard/mlb/seq-2025-06-01/05_1115.json", League::Mlb);
    let game = slate.games.iter().find(|g| g.report.id.event() == "401695784").unwrap();
    assert_eq!(game.report.info.home.as_ref().unwrap().name, "Philadelphia Phillies");
    assert_eq!((game.view.home_score, game.view.period, game.view.clock.as_deref()), (Some(1), Some(2), Some("0:00")));
    let slate = read(&root, "espn/scoreboard/nba/2026-05-02_in_progress.json", League::Nba);
    let view = &slate.games[0].view;
    assert_eq!((view.clock.as_deref(), view.home_win_prob), (Some("8:41"), Some(0.364)));
    let slate = read(&root, "espn/scoreboard/soccer/usa.1_seq-2025-06-01/01_1040.json", League::Mls);
    assert_eq!((slate.games[0].view.period, slate.games[0].view.clock.as_deref()), (None, Some("0'")));
    let slate = read(&root, "espn/other/golf_lpga_no_competitors.json", League::Nba);
    assert_eq!((slate.games.len(), slate.unreadable.len()), (1, 0), "no competitors is no error");
}

#[test]
fn the_same_two_teams_twice_on_a_day_are_two_games() {
    let Some(root) = folder_for_test("reading a recorded doubleheader") else { return };
    let slate = read(&root, "espn/scoreboard/mlb/seq-2025-05-19_21/03_0521_1951.json", League::Mlb);
    let team = |t: &Option<arbees_proto::v1::Team>| t.as_ref().map(|t| t.abbreviation.clone()).unwrap_or_default();
    let is_pair = |g: &&arbees_core::espn::Sighting| {
        let info = &g.report.info;
        [team(&info.home), team(&info.away)] == ["MIN", "CLE"]
    };
    let both: Vec<_> = slate.games.iter().filter(is_pair).collect();
    assert_eq!(both.len(), 2);
    assert_ne!(both[0].report.id, both[1].report.id);
}

#[test]
fn malformed_bodies_say_where() {
    let Some(root) = folder_for_test("reading malformed recordings") else { return };
    let body = std::fs::read(root.join("espn/malformed/scoreboard_truncated.json")).unwrap();
    let error = parse_scoreboard(League::Nfl, &body).unwrap_err().to_string();
    assert!(error.contains("line") && error.contains("column"), "{error}");
    let body = std::fs::read(root.join("espn/malformed/situation_404_error_body.json")).unwrap();
    let error = parse_scoreboard(League::Nfl, &body).unwrap_err();
    assert!(matches!(error, ParseError::Refused { code: 404, .. }), "{error}");
}

#[test]
fn summaries_are_read_before_and_after_a_game() {
    let Some(root) = folder_for_test("reading recorded summaries") else { return };
    let read = |file: &str, league| {
        let body = std::fs::read(root.join("espn/summary").join(file)).unwrap();
        parse_summary(league, &body).unwrap_or_else(|e| panic!("{file}: {e}")).games.remove(0)
    };
    let before = read("nba_401772994_NY_IND_pre.json", League::Nba);
    assert_eq!((before.report.phase, before.view.home_score), (ReportedPhase::Pre, None));
    let after = read("nba_401772994_NY_IND_post.json", League::Nba);
    assert_eq!((after.report.id, after.report.phase), (before.report.id, ReportedPhase::Final));
    let nfl = read("nfl_401547417_GB_ATL_post.json", League::Nfl);
    assert_eq!(nfl.view.home_score, Some(25));
    let body = std::fs::read(root.join("espn/summary/wnba_401736228_header_without_competitions.json")).unwrap();
    assert!(parse_summary(League::Nba, &body).unwrap_err().to_string().contains("no status"));
}
