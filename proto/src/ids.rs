//! Identifiers of games, shards and services: what is allowed, and what is refused with which words.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest id of a game or log shard: subject tokens stay short, and a hostile id cannot fill a log line.
pub const MAX_ID_LEN: usize = 64;
/// Longest instance id taken over from an old service; host names end at 253.
pub const MAX_INSTANCE_LEN: usize = 253;
/// The word that stands for "no shard" in subjects.
pub const NONE: &str = "none";

/// Why an identifier was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadId {
    /// Empty, or longer than allowed.
    #[error("id of {0} characters: allowed are 1 to {1}")]
    Length(usize, usize),
    /// A character outside the allowed set.
    #[error("id {0:?} has a character other than letters, digits, '_' and '-'")]
    Character(String),
    /// The reserved word.
    #[error("id \"none\" is reserved")]
    Reserved,
    /// Not one of the eight leagues.
    #[error("unknown league {0:?}: allowed are nfl nba nhl mlb ncaaf ncaab mls soccer")]
    League(String),
    /// Not `{league}-{event id}`.
    #[error("game id {0:?} is not {{league}}-{{event id}}, as in nfl-401547698")]
    Game(String),
}

fn check(id: &str) -> Result<(), BadId> {
    if id.is_empty() || id.len() > MAX_ID_LEN {
        return Err(BadId::Length(id.chars().count(), MAX_ID_LEN));
    }
    if !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
        return Err(BadId::Character(id.chars().take(MAX_ID_LEN).collect()));
    }
    if id == NONE {
        return Err(BadId::Reserved);
    }
    Ok(())
}

/// A league that ESPN and this system both know; `sport` in the Redis contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum League {
    Nfl,
    Nba,
    Nhl,
    Mlb,
    Ncaaf,
    Ncaab,
    Mls,
    Soccer,
}

impl League {
    /// All of them, in the order in which they are asked for.
    pub const ALL: [Self; 8] =
        [Self::Nfl, Self::Nba, Self::Nhl, Self::Mlb, Self::Ncaaf, Self::Ncaab, Self::Mls, Self::Soccer];

    /// Its name in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nfl => "nfl",
            Self::Nba => "nba",
            Self::Nhl => "nhl",
            Self::Mlb => "mlb",
            Self::Ncaaf => "ncaaf",
            Self::Ncaab => "ncaab",
            Self::Mls => "mls",
            Self::Soccer => "soccer",
        }
    }

    /// Its path at ESPN.
    #[must_use]
    pub const fn espn_path(self) -> &'static str {
        match self {
            Self::Nfl => "football/nfl",
            Self::Nba => "basketball/nba",
            Self::Nhl => "hockey/nhl",
            Self::Mlb => "baseball/mlb",
            Self::Ncaaf => "football/college-football",
            Self::Ncaab => "basketball/mens-college-basketball",
            Self::Mls => "soccer/usa.1",
            Self::Soccer => "soccer/eng.1",
        }
    }
}

impl fmt::Display for League {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for League {
    type Err = BadId;
    fn from_str(s: &str) -> Result<Self, BadId> {
        Self::ALL
            .into_iter()
            .find(|l| l.as_str() == s)
            .ok_or_else(|| BadId::League(s.chars().take(MAX_ID_LEN).collect()))
    }
}

/// One sporting event: `{league}-{event id}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GameId {
    league: League,
    text: Box<str>,
}

impl GameId {
    /// The id of ESPN's event `event` in `league`.
    pub fn new(league: League, event: &str) -> Result<Self, BadId> {
        let text = format!("{league}-{event}");
        check(event)?;
        check(&text)?;
        Ok(Self { league, text: text.into() })
    }

    /// Its league.
    #[must_use]
    pub const fn league(&self) -> League {
        self.league
    }

    /// The bare event id, as Redis channels and payloads name it.
    #[must_use]
    pub fn event(&self) -> &str {
        &self.text[self.league.as_str().len() + 1..]
    }

    /// The whole id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for GameId {
    type Err = BadId;
    fn from_str(s: &str) -> Result<Self, BadId> {
        s.to_owned().try_into()
    }
}

impl fmt::Display for GameId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl TryFrom<String> for GameId {
    type Error = BadId;
    fn try_from(s: String) -> Result<Self, BadId> {
        check(&s)?;
        let (league, event) = s.split_once('-').ok_or_else(|| BadId::Game(s.clone()))?;
        let league = league.parse()?;
        check(event)?;
        Ok(Self { league, text: s.into() })
    }
}

impl From<GameId> for String {
    fn from(id: GameId) -> Self {
        id.text.into()
    }
}

/// A named service. Log shards keep to letters, digits, `_` and `-`; old services may be host names with dots.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(Box<str>);

/// A shard is a service; the name says which is meant.
pub type ShardId = InstanceId;

impl InstanceId {
    /// An id of an old service: any printable text; what a subject can't hold is escaped there.
    pub fn lenient(s: &str) -> Result<Self, BadId> {
        if s.is_empty() || s.len() > MAX_INSTANCE_LEN {
            return Err(BadId::Length(s.chars().count(), MAX_INSTANCE_LEN));
        }
        if s == NONE {
            return Err(BadId::Reserved);
        }
        if s.chars().any(char::is_control) {
            return Err(BadId::Character(s.chars().take(MAX_ID_LEN).collect()));
        }
        Ok(Self(s.into()))
    }

    /// An id of a log shard.
    pub fn strict(s: &str) -> Result<Self, BadId> {
        check(s)?;
        Ok(Self(s.into()))
    }

    /// The text of it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for InstanceId {
    type Err = BadId;
    fn from_str(s: &str) -> Result<Self, BadId> {
        Self::lenient(s)
    }
}

impl TryFrom<String> for InstanceId {
    type Error = BadId;
    fn try_from(s: String) -> Result<Self, BadId> {
        Self::lenient(&s)
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> Self {
        id.0.into()
    }
}

/// What a service is, told from its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceKind {
    Shard,
    Orchestrator,
    Polymarket,
    Kalshi,
    Discovery,
    Signal,
    Execution,
    Other,
}

impl ServiceKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Shard,
        Self::Orchestrator,
        Self::Polymarket,
        Self::Kalshi,
        Self::Discovery,
        Self::Signal,
        Self::Execution,
        Self::Other,
    ];

    /// In the order in which a service's name is searched for them.
    const NAMED: [Self; 7] = [
        Self::Shard,
        Self::Orchestrator,
        Self::Polymarket,
        Self::Kalshi,
        Self::Discovery,
        Self::Signal,
        Self::Execution,
    ];

    /// The kind of a service called `name`.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        Self::NAMED.into_iter().find(|k| name.contains(k.as_str())).unwrap_or(Self::Other)
    }

    /// Its name in lower case, as subjects and tables spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shard => "shard",
            Self::Orchestrator => "orchestrator",
            Self::Polymarket => "polymarket",
            Self::Kalshi => "kalshi",
            Self::Discovery => "discovery",
            Self::Signal => "signal",
            Self::Execution => "execution",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for ServiceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_game_id_names_league_and_event() {
        let id: GameId = "nfl-401547698".parse().unwrap();
        assert_eq!((id.league(), id.event()), (League::Nfl, "401547698"));
    }

    #[test]
    fn hostile_ids_are_refused_with_what_is_allowed() {
        for bad in ["", "none", "nfl-", "nfl-4.1", "nfl->", "xfl-1", "nfl", "nfl-\u{0}", &"nfl-".repeat(40)] {
            let error = bad.parse::<GameId>().unwrap_err().to_string();
            assert!(error.len() < 200, "{error}");
        }
        assert_eq!(InstanceId::strict("none"), Err(BadId::Reserved));
        assert_eq!(InstanceId::lenient("none"), Err(BadId::Reserved));
        assert!(InstanceId::strict("host.example").is_err());
        assert!(InstanceId::lenient("host.example").is_ok());
    }

    #[test]
    fn kinds_are_told_from_names() {
        assert_eq!(ServiceKind::of_name("market_discovery_rust"), ServiceKind::Discovery);
        assert_eq!(ServiceKind::of_name("kalshi_monitor"), ServiceKind::Kalshi);
        assert_eq!(ServiceKind::of_name("notification"), ServiceKind::Other);
    }
}
