//! From ESPN's JSON to what decisions and watchers need.

use arbees_fleet::{GameReport, ReportedPhase};
use arbees_proto::{GameId, League, v1};
use chrono::{DateTime, NaiveDateTime};
use serde_json::value::RawValue;

use super::wire::{Body, Competitor, Event, Status, Team};

/// Longest text taken over from a body: a team's name, a status.
const MAX_TEXT: usize = 120;
/// Events of one scoreboard that are read; the largest slate ever recorded has some 160.
const MAX_EVENTS: usize = 2_000;

/// Why a body is no scoreboard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("not JSON: {0}")]
    Json(String),
    #[error("an error instead of data: {message} (code {code})")]
    Refused { code: i64, message: String },
    #[error("no `events` at the top or under `content.sbData`, no `header`")]
    NoEvents,
    #[error("{at}: {why}")]
    Event { at: String, why: String },
}

/// A scoreboard.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slate {
    pub games: Vec<Sighting>,
    /// Events that could not be read, each with where and why; the others are not harmed.
    pub unreadable: Vec<ParseError>,
    /// Status names never seen before; they were taken by their `state`.
    pub unknown_statuses: Vec<String>,
}

/// A game as a scoreboard shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sighting {
    /// For decisions.
    pub report: GameReport,
    /// For those who watch.
    pub view: View,
}

/// What a watcher tells of a game. Unknown values are none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// `pre`, `in` or `post`.
    pub state: String,
    pub home_score: Option<u32>,
    pub away_score: Option<u32>,
    pub period: Option<u32>,
    pub clock: Option<String>,
    /// Abbreviation of the team in possession.
    pub possession: Option<String>,
    /// Between 0 and 1.
    pub home_win_prob: Option<f64>,
}

/// Reads a scoreboard of `league`.
///
/// # Errors
/// When it is none; single events that can't be read are told in the slate.
pub fn parse_scoreboard(league: League, body: &[u8]) -> Result<Slate, ParseError> {
    let body = parse_body(body)?;
    let events = body
        .events
        .or_else(|| body.content.and_then(|c| c.scoreboard).and_then(|s| s.events))
        .ok_or(ParseError::NoEvents)?;
    let mut slate = Slate::default();
    for (index, raw) in events.into_iter().take(MAX_EVENTS).enumerate() {
        slate.add(league, &format!("events[{index}]"), raw);
    }
    Ok(slate)
}

/// Reads the one game of a summary of `league`.
///
/// # Errors
/// When it is none, or its game cannot be read.
pub fn parse_summary(league: League, body: &[u8]) -> Result<Slate, ParseError> {
    let header = parse_body(body)?.header.ok_or(ParseError::NoEvents)?;
    let mut slate = Slate::default();
    slate.add(league, "header", header);
    slate.unreadable.pop().map_or(Ok(slate), Err)
}

fn parse_body(body: &[u8]) -> Result<Body<'_>, ParseError> {
    let body: Body<'_> = serde_json::from_slice(body).map_err(|e| ParseError::Json(e.to_string()))?;
    match body.error {
        Some(error) => Err(ParseError::Refused { code: error.code, message: short(&error.message) }),
        None => Ok(body),
    }
}

impl Slate {
    fn add(&mut self, league: League, at: &str, raw: &RawValue) {
        match sighting(league, raw) {
            Ok((sighting, is_known)) => {
                if !is_known {
                    self.unknown_statuses.push(sighting.report.status.clone());
                }
                self.games.push(sighting);
            }
            Err(why) => self.unreadable.push(ParseError::Event { at: at.to_owned(), why }),
        }
    }
}

/// ESPN's number for the part of a season in which the champion is found.
const POSTSEASON: u64 = 3;

fn sighting(league: League, raw: &RawValue) -> Result<(Sighting, bool), String> {
    let event: Event = serde_json::from_str(raw.get()).map_err(|e| e.to_string())?;
    let id = GameId::new(league, &event.id).map_err(|e| e.to_string())?;
    let competition = event.competitions.into_iter().next().unwrap_or_default();
    let status = event.status.or(competition.status).ok_or_else(|| format!("{id} has no status"))?;
    let date = event.date.or(competition.date);
    let starts_at_us = match &date {
        Some(date) => parse_date(date).ok_or_else(|| format!("{id} has date {:?}", short(date)))?,
        None => 0,
    };
    let (phase, is_known) = phase(&status)
        .ok_or_else(|| format!("{id} has state {:?}: allowed are pre, in and post", short(&status.kind.state)))?;
    let competitors = competition.competitors.unwrap_or_default();
    let side = |name: &str| competitors.iter().find(|c| c.side.as_deref() == Some(name));
    let (home, away) = (side("home"), side("away"));
    let situation = competition.situation;
    let holder = situation.as_ref().and_then(|s| s.possession.as_deref());
    let view = View {
        state: status.kind.state.clone(),
        home_score: home.and_then(|c| c.score),
        away_score: away.and_then(|c| c.score),
        period: status.period,
        clock: status.clock.as_deref().map(short),
        possession: holder.and_then(|id| abbreviation_of(&competitors, id)),
        home_win_prob: situation
            .and_then(|s| s.last_play)
            .and_then(|p| p.probability)
            .and_then(|p| p.home)
            .filter(|p| (0.0..=1.0).contains(p)),
    };
    let info = v1::Game {
        id: id.to_string(),
        league: league.as_str().to_owned(),
        home: Some(team(home)),
        away: Some(team(away)),
        starts_at_us,
        markets: None,
        postseason: event.season.is_some_and(|s| s["type"] == POSTSEASON),
    };
    let report = GameReport { id, info, phase, status: short(&status.kind.name) };
    Ok((Sighting { report, view }, is_known))
}

fn team(competitor: Option<&Competitor>) -> v1::Team {
    let team = competitor.and_then(|c| c.team.as_ref());
    let name = |t: &Team| t.display_name.clone().or_else(|| t.name.clone());
    v1::Team {
        name: team.and_then(name).map(|n| short(&n)).unwrap_or_default(),
        abbreviation: team.and_then(|t| t.abbreviation.as_deref()).map(short).unwrap_or_default(),
    }
}

fn abbreviation_of(competitors: &[Competitor], id: &str) -> Option<String> {
    let mut teams = competitors.iter().filter_map(|c| c.team.as_ref());
    teams.find(|t| t.id.as_deref() == Some(id))?.abbreviation.as_deref().map(short)
}

/// Where a game stands, and whether the status name was known. `post` without `completed` is not over.
fn phase(status: &Status) -> Option<(ReportedPhase, bool)> {
    let by_state = match (status.kind.state.as_str(), status.kind.completed) {
        ("pre", _) => ReportedPhase::Pre,
        ("in", _) => ReportedPhase::Live,
        ("post", true) => ReportedPhase::Final,
        ("post", false) => ReportedPhase::Suspended,
        _ => return None,
    };
    let name = status.kind.name.strip_prefix("STATUS_").unwrap_or(&status.kind.name);
    Some(match name {
        "POSTPONED" => (ReportedPhase::Postponed, true),
        "CANCELED" | "CANCELLED" | "ABANDONED" => (ReportedPhase::Canceled, true),
        "SUSPENDED" => (ReportedPhase::Suspended, true),
        _ if name.starts_with("FORFEIT") => (ReportedPhase::Canceled, true),
        _ => (by_state, KNOWN.contains(&name)),
    })
}

/// Status names that say no more than their `state` does.
const KNOWN: [&str; 19] = [
    "SCHEDULED",
    "PRE_FIGHT",
    "IN_PROGRESS",
    "HALFTIME",
    "END_PERIOD",
    "END_OF_REGULATION",
    "END_OF_EXTRATIME",
    "FIRST_HALF",
    "SECOND_HALF",
    "OVERTIME",
    "EXTRA_TIME",
    "SHOOTOUT",
    "DELAYED",
    "RAIN_DELAY",
    "UNCONTESTED",
    "FINAL",
    "FINAL_AET",
    "FINAL_PEN",
    "FULL_TIME",
];

/// Both spellings: `2025-06-01T17:05Z` and RFC 3339 with seconds.
fn parse_date(text: &str) -> Option<i64> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.timestamp_micros());
    }
    let naive = NaiveDateTime::parse_from_str(text.strip_suffix('Z')?, "%Y-%m-%dT%H:%M").ok()?;
    Some(naive.and_utc().timestamp_micros())
}

fn short(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(extra: &str, status: &str) -> String {
        format!(r#"{{"events":[{{"id":"7","date":"2025-06-01T17:05Z"{extra},"status":{{"type":{status}}}}}]}}"#)
    }

    fn phase_of(status: &str) -> ReportedPhase {
        let slate = parse_scoreboard(League::Mlb, event("", status).as_bytes()).unwrap();
        slate.games[0].report.phase
    }

    #[test]
    fn post_without_completed_is_not_over() {
        let status = |name: &str, completed: bool| {
            format!(r#"{{"name":"STATUS_{name}","state":"post","completed":{completed}}}"#)
        };
        assert_eq!(phase_of(&status("SUSPENDED", false)), ReportedPhase::Suspended);
        assert_eq!(phase_of(&status("DELAYED", false)), ReportedPhase::Suspended);
        assert_eq!(phase_of(&status("POSTPONED", false)), ReportedPhase::Postponed);
        assert_eq!(phase_of(&status("CANCELED", false)), ReportedPhase::Canceled);
        assert_eq!(phase_of(&status("FORFEIT_HOME_TEAM", true)), ReportedPhase::Canceled);
        assert_eq!(phase_of(&status("FINAL", true)), ReportedPhase::Final);
    }

    #[test]
    fn an_unknown_status_goes_by_its_state_and_is_counted() {
        let body = event("", r#"{"name":"STATUS_METEOR_BREAK","state":"in"}"#);
        let slate = parse_scoreboard(League::Mlb, body.as_bytes()).unwrap();
        assert_eq!(slate.games[0].report.phase, ReportedPhase::Live);
        assert_eq!(slate.unknown_statuses, ["STATUS_METEOR_BREAK"]);
    }

    #[test]
    fn both_spellings_of_a_date_are_the_same_moment() {
        assert_eq!(parse_date("2025-06-01T17:05Z"), parse_date("2025-06-01T17:05:00+00:00"));
        assert_eq!(parse_date("2025-06-01"), None);
    }

    #[test]
    fn one_bad_event_harms_no_other_and_is_told_with_its_place() {
        let good = r#"{"id":7,"date":"2025-06-01T17:05Z","status":{"type":{"name":"STATUS_FINAL","state":"post","completed":true}}}"#;
        let body = format!(
            r#"{{"events":[{{"id":"a b"}},{good},{{"id":"8","date":"soon","status":{{"type":{{"name":"X","state":"in"}}}}}},5]}}"#
        );
        let slate = parse_scoreboard(League::Nfl, body.as_bytes()).unwrap();
        assert_eq!(slate.games.len(), 1);
        let told: Vec<String> = slate.unreadable.iter().map(ToString::to_string).collect();
        assert!(told[0].starts_with("events[0]: ") && told[1].contains("\"soon\""), "{told:?}");
        assert!(told[2].starts_with("events[3]: "), "{told:?}");
    }

    #[test]
    fn what_is_no_scoreboard_says_why() {
        let error = |body: &str| parse_scoreboard(League::Nfl, body.as_bytes()).unwrap_err().to_string();
        assert!(error("{\"events\":[{").contains("line 1 column"));
        assert!(error("<html>").contains("not JSON"));
        assert!(error("{}").contains("no `events`"));
        assert!(error(r#"{"error":{"message":"No event found","code":404}}"#).contains("code 404"));
    }

    #[test]
    fn missing_teams_scores_and_clocks_are_unknown_not_wrong() {
        let extra = r#","competitions":[{"competitors":[{"homeAway":"home","team":{"displayName":"TBD"}},{"homeAway":"away","score":"3"}]}]"#;
        let slate =
            parse_scoreboard(League::Mlb, event(extra, r#"{"name":"STATUS_SCHEDULED","state":"pre"}"#).as_bytes())
                .unwrap();
        let Sighting { report, view } = &slate.games[0];
        assert_eq!(report.info.home.as_ref().unwrap().name, "TBD");
        assert_eq!((view.home_score, view.away_score, view.clock.as_deref()), (None, Some(3), None));
    }
}
