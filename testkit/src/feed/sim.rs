//! Made-up games: the same for the same begin, with delays, suspensions and postponements.

use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};

use super::Show;

/// Leagues by their path, with how many periods a game has.
const LEAGUES: [(&str, u32); 8] = [
    ("football/nfl", 4),
    ("basketball/nba", 4),
    ("hockey/nhl", 3),
    ("baseball/mlb", 9),
    ("football/college-football", 4),
    ("basketball/mens-college-basketball", 2),
    ("soccer/usa.1", 2),
    ("soccer/eng.1", 2),
];
/// Minutes of game time from start to end.
const LENGTH: i64 = 150;
/// A league has a game every so many minutes.
const EVERY: i64 = 50;
/// How far ahead the slate looks, in minutes.
const AHEAD: i64 = 30;
/// How long a finished game stays on the slate, in minutes.
const BEHIND: i64 = 120;
const CITIES: [&str; 12] = [
    "Ashford",
    "Brindle",
    "Carrow",
    "Dunmere",
    "Elmsley",
    "Farrow",
    "Glenhaven",
    "Hartwick",
    "Irvine Bay",
    "Jarrow",
    "Kestrel",
    "Larkfield",
];
const BIRDS: [&str; 7] = ["Herons", "Kites", "Larks", "Martins", "Orioles", "Plovers", "Wrens"];

/// What happens to a game at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Play begins or goes on.
    Play,
    /// Play pauses; `state` stays `in`.
    Delay,
    /// Stopped, to be taken up again; `state` becomes `post` and `completed` stays false.
    Suspend,
    /// Not on the slate at all.
    Vanish,
    /// Will be played on another day.
    Postpone,
    /// Over.
    End,
}

/// One made-up game.
#[derive(Clone, Debug)]
pub struct SimGame {
    /// Index into the eight leagues.
    pub league: usize,
    /// ESPN's event id.
    pub event: u64,
    /// Minutes of feed time from the begin to the scheduled start.
    pub start: i64,
    /// What happens when, in minutes of feed time from the begin; ordered.
    pub script: Vec<(i64, Turn)>,
}

/// Made-up games by a script, or for ever.
#[derive(Debug)]
pub struct Sim {
    begun: Instant,
    begun_at: DateTime<Utc>,
    speed: f64,
    script: Option<Vec<SimGame>>,
}

impl Sim {
    /// Games for ever, in all leagues.
    #[must_use]
    pub fn rolling(speed: f64) -> Self {
        Self { begun: Instant::now(), begun_at: Utc::now(), speed, script: None }
    }

    /// These games only.
    #[must_use]
    pub fn scripted(speed: f64, games: Vec<SimGame>) -> Self {
        Self { script: Some(games), ..Self::rolling(speed) }
    }

    /// `count` games over all leagues, in play from the begin until `minutes` of feed time.
    #[must_use]
    pub fn all_live(speed: f64, count: usize, minutes: i64) -> Self {
        let game = |i: usize| SimGame {
            league: i % LEAGUES.len(),
            event: 800_000_000 + i as u64,
            start: -10,
            script: vec![(-10, Turn::Play), (minutes, Turn::End)],
        };
        Self::scripted(speed, (0..count).map(game).collect())
    }

    /// Minutes of feed time since the begin.
    fn minutes(&self) -> f64 {
        self.begun.elapsed().as_secs_f64() * self.speed / 60.0
    }

    fn games(&self, league: usize, now: f64) -> Vec<SimGame> {
        if let Some(script) = &self.script {
            return script.iter().filter(|g| g.league == league).cloned().collect();
        }
        let offset = i64::try_from(league).unwrap_or(0) * 7 - 2 * LENGTH;
        #[allow(clippy::cast_possible_truncation)]
        let number = |minute: f64| ((minute as i64 - offset) / EVERY).max(0);
        #[allow(clippy::cast_precision_loss)]
        let (first, last) = (number(now - (LENGTH * 2 + BEHIND) as f64), number(now + AHEAD as f64));
        (first..=last).map(|n| rolling_game(league, n, offset + n * EVERY)).collect()
    }

    fn event(&self, game: &SimGame, now: f64) -> Option<Value> {
        #[allow(clippy::cast_precision_loss)]
        let done = game.script.iter().take_while(|(at, _)| *at as f64 <= now);
        let (mut played, mut playing_since, mut turn) = (0.0, None, None);
        for (at, next) in done {
            #[allow(clippy::cast_precision_loss)]
            let at = *at as f64;
            if let Some(since) = playing_since.take() {
                played += at - since;
            }
            if *next == Turn::Play {
                playing_since = Some(at);
            }
            turn = Some(*next);
        }
        played += playing_since.map_or(0.0, |since| now - since);
        let periods = LEAGUES[game.league].1;
        let status = status(turn, played, periods)?;
        let start = self.begun_at + minutes(game.start, self.speed);
        let seed = game.event * 31 + game.league as u64;
        let side = |name: &str, salt: u64| {
            let city = CITIES[pick(seed + salt, CITIES.len())];
            let bird = BIRDS[pick(seed * 3 + salt, BIRDS.len())];
            json!({
                "homeAway": name, "score": score(seed + salt, played).to_string(),
                "team": { "id": salt.to_string(), "displayName": format!("{city} {bird}"), "abbreviation": city[..3].to_uppercase() },
            })
        };
        Some(json!({
            "id": game.event.to_string(), "date": start.to_rfc3339_opts(SecondsFormat::Secs, true), "status": status,
            "competitions": [{ "competitors": [side("home", 1), side("away", 2)] }],
        }))
    }
}

fn rolling_game(league: usize, n: i64, start: i64) -> SimGame {
    let event = 900_000_000 + (league as u64) * 1_000_000 + u64::try_from(n).unwrap_or(0);
    let mid = start + LENGTH / 2;
    let script = match event % 11 {
        3 => vec![(start, Turn::Play), (mid, Turn::Delay), (mid + 20, Turn::Play), (start + LENGTH + 20, Turn::End)],
        5 => vec![(start, Turn::Play), (mid, Turn::Suspend), (mid + 60, Turn::Play), (start + LENGTH + 60, Turn::End)],
        7 => vec![(start - 15, Turn::Postpone)],
        _ => vec![(start, Turn::Play), (start + LENGTH, Turn::End)],
    };
    SimGame { league, event, start, script }
}

fn status(turn: Option<Turn>, played: f64, periods: u32) -> Option<Value> {
    let (name, state, completed) = match turn {
        None => ("STATUS_SCHEDULED", "pre", false),
        Some(Turn::Play) => ("STATUS_IN_PROGRESS", "in", false),
        Some(Turn::Delay) => ("STATUS_DELAYED", "in", false),
        Some(Turn::Suspend) => ("STATUS_SUSPENDED", "post", false),
        Some(Turn::Postpone) => ("STATUS_POSTPONED", "post", false),
        Some(Turn::End) => ("STATUS_FINAL", "post", true),
        Some(Turn::Vanish) => return None,
    };
    #[allow(clippy::cast_precision_loss)]
    let length = LENGTH as f64 / f64::from(periods);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let (period, left) = ((played / length) as u32 + 1, (length - played % length) as u32);
    let period = if turn.is_none() { 0 } else { period.min(periods) };
    Some(json!({
        "period": period, "displayClock": format!("{left}:00"),
        "type": { "name": name, "state": state, "completed": completed },
    }))
}

/// Points after so many minutes of play: never fewer than before.
fn score(seed: u64, played: f64) -> u64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let steps = (played / 5.0).max(0.0) as u64;
    (0..steps).map(|step| u64::from(mix(seed + step * 97).is_multiple_of(4))).sum()
}

fn pick(seed: u64, from: usize) -> usize {
    usize::try_from(mix(seed) % from as u64).unwrap_or(0)
}

/// splitmix64's finaliser: spreads a seed over all bits.
const fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn minutes(count: i64, speed: f64) -> TimeDelta {
    let played = Duration::from_secs(60 * count.unsigned_abs()).div_f64(speed);
    let delta = TimeDelta::from_std(played).unwrap_or_default();
    if count < 0 { -delta } else { delta }
}

impl Show for Sim {
    fn begin(&mut self) {
        (self.begun, self.begun_at) = (Instant::now(), Utc::now());
    }

    fn scoreboard(&self, path: &str) -> Option<Bytes> {
        let league = LEAGUES.iter().position(|(p, _)| *p == path)?;
        let now = self.minutes();
        let events: Vec<Value> = self.games(league, now).iter().filter_map(|g| self.event(g, now)).collect();
        Some(json!({ "events": events }).to_string().into())
    }

    fn summary(&self, path: &str, event: &str) -> Option<Bytes> {
        let league = LEAGUES.iter().position(|(p, _)| *p == path)?;
        let now = self.minutes();
        let game = self.games(league, now).into_iter().find(|g| g.event.to_string() == event)?;
        Some(json!({ "header": self.event(&game, now)? }).to_string().into())
    }
}
