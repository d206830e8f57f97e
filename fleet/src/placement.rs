//! Which shard takes a game, and why not the others.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use arbees_proto::{League, ShardId, v1};

use crate::settings::MAX_CANDIDATES;

/// A shard as placement sees it.
#[derive(Clone, Debug)]
pub struct Place {
    pub shard: ShardId,
    /// Games it owns.
    pub load: u32,
    /// Games it may own.
    pub max_games: u32,
    /// Games of each league it owns: one league's outage should not take all of one shard's games.
    pub leagues: BTreeMap<League, u32>,
    /// Why it takes none, if it does not.
    pub refusal: Option<Refusal>,
}

/// Why a shard takes no game; the code that is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    NotSports,
    NotHeard,
    NotHealthy,
    NotOperational,
    Full,
}

impl Refusal {
    /// In snake case, as the log and the tables spell it.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotSports => "not_sports",
            Self::NotHeard => "not_heard",
            Self::NotHealthy => "not_healthy",
            Self::NotOperational => "not_operational",
            Self::Full => "full",
        }
    }
}

/// How good a place is: the derived order is the policy, greatest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// Free share of its capacity after taking the game, in thousandths.
    free: u32,
    /// Fewest games of the same league.
    league: Reverse<u32>,
    /// The first by name, so that the choice is the same every time.
    name: Reverse<ShardId>,
}

impl Place {
    fn refusal(&self) -> Option<Refusal> {
        self.refusal.or_else(|| (self.load >= self.max_games).then_some(Refusal::Full))
    }

    fn score(&self, league: League) -> Score {
        let left = u64::from(self.max_games.saturating_sub(self.load + 1));
        let free = left * 1_000 / u64::from(self.max_games.max(1));
        Score {
            free: u32::try_from(free).unwrap_or(1_000),
            league: Reverse(self.leagues.get(&league).copied().unwrap_or(0)),
            name: Reverse(self.shard.clone()),
        }
    }

    /// Counts a game of `league` as taken.
    pub fn take(&mut self, league: League) {
        self.load += 1;
        *self.leagues.entry(league).or_default() += 1;
    }
}

/// A choice with its grounds.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Index of the chosen place; none when nobody may take the game.
    pub chosen: Option<usize>,
    /// The best ten.
    pub candidates: Vec<v1::Candidate>,
    /// How many were passed over, by code.
    pub rejections: Vec<v1::Rejection>,
}

/// Chooses the place for a game of `league`.
#[must_use]
pub fn choose(places: &[Place], league: League) -> Choice {
    let mut scored = Vec::new();
    let mut rejected: BTreeMap<Refusal, u32> = BTreeMap::new();
    for (index, place) in places.iter().enumerate() {
        match place.refusal() {
            Some(refusal) => *rejected.entry(refusal).or_default() += 1,
            None => scored.push((place.score(league), index)),
        }
    }
    scored.sort_by(|a, b| b.cmp(a));
    Choice {
        chosen: scored.first().map(|(_, index)| *index),
        candidates: scored
            .iter()
            .take(MAX_CANDIDATES)
            .map(|(score, index)| v1::Candidate { shard: places[*index].shard.to_string(), score: score.free })
            .collect(),
        rejections: rejected
            .into_iter()
            .map(|(refusal, count)| v1::Rejection { code: refusal.code().to_owned(), count })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use arbees_proto::InstanceId;

    use super::*;

    fn place(name: &str, load: u32, max_games: u32) -> Place {
        Place { shard: InstanceId::strict(name).unwrap(), load, max_games, leagues: BTreeMap::new(), refusal: None }
    }

    fn chosen(places: &[Place]) -> Option<&str> {
        choose(places, League::Mlb).chosen.map(|i| places[i].shard.as_str())
    }

    #[test]
    fn the_freest_takes_it_and_ties_go_by_league_then_name() {
        assert_eq!(chosen(&[place("a", 9, 20), place("b", 3, 20)]), Some("b"));
        assert_eq!(chosen(&[place("b", 3, 20), place("a", 3, 20)]), Some("a"));
        let mut a = place("a", 3, 20);
        a.leagues.insert(League::Mlb, 3);
        assert_eq!(chosen(&[a, place("b", 3, 20)]), Some("b"));
    }

    #[test]
    fn nobody_goes_over_capacity_and_each_refusal_is_counted() {
        let mut sick = place("c", 0, 20);
        sick.refusal = Some(Refusal::NotHealthy);
        let choice = choose(&[place("a", 20, 20), place("b", 0, 0), sick], League::Nfl);
        assert_eq!(choice.chosen, None);
        let counts: Vec<_> = choice.rejections.iter().map(|r| (r.code.as_str(), r.count)).collect();
        assert_eq!(counts, [("not_healthy", 1), ("full", 2)]);
    }
}
