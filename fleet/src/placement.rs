//! Which shard takes a game, and why not the others.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use arbees_proto::{League, ShardId, v1};

use crate::settings::{MANY_MARKETS, MAX_CANDIDATES};

/// A shard as placement sees it.
#[derive(Clone, Debug)]
pub struct Place {
    pub shard: ShardId,
    /// Games it owns.
    pub load: u32,
    /// What those weigh.
    pub weight: u32,
    /// Games it may own.
    pub max_games: u32,
    /// Games of each league it owns: one league's outage should not take all of one shard's games.
    pub leagues: BTreeMap<League, u32>,
    /// Assignments in a row that it did not take up.
    pub failures: u32,
    /// Its breaker is half open: it may take one game.
    pub is_on_trial: bool,
    /// Why it takes none, if it does not.
    pub refusal: Option<Refusal>,
}

/// Why a shard takes no game; the code that is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// It does not watch sports.
    NotSports,
    /// Not heard for longer than a beat may be late.
    NotHeard,
    /// Log shards watch what is in the log: while the leader is to have no effect, it must not name one.
    Shadow,
    Draining,
    NotHealthy,
    /// Fails a check that it needs.
    Degraded,
    BreakerOpen,
    /// Its breaker is half open, and it has its one game.
    OnTrial,
    /// It has had as many moves in this second as it may.
    Busy,
    /// It did not take up this very game lately.
    FailedBefore,
    PinnedElsewhere,
    /// It has the game.
    IsOwner,
    Full,
}

impl Refusal {
    /// In snake case, as the log and the tables spell it.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotSports => "not_sports",
            Self::NotHeard => "not_heard",
            Self::Shadow => "shadow",
            Self::Draining => "draining",
            Self::NotHealthy => "not_healthy",
            Self::Degraded => "degraded",
            Self::BreakerOpen => "breaker_open",
            Self::OnTrial => "on_trial",
            Self::Busy => "busy",
            Self::FailedBefore => "failed_before",
            Self::PinnedElsewhere => "pinned_elsewhere",
            Self::IsOwner => "is_owner",
            Self::Full => "full",
        }
    }
}

/// How good a place is: the derived order is the policy, greatest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// Free share of its capacity after taking the game, in thousandths.
    free: u32,
    /// Fewest failures in a row.
    failures: Reverse<u32>,
    /// Fewest games of the same league.
    league: Reverse<u32>,
    /// The first by name, so that the choice is the same every time.
    name: Reverse<ShardId>,
}

impl Place {
    /// Whether it has room for one more.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.load < self.max_games
    }

    fn score(&self, league: League, weight: u32) -> Score {
        let left = u64::from(self.max_games.saturating_sub(self.weight + weight));
        let free = left * 1_000 / u64::from(self.max_games.max(1));
        Score {
            free: u32::try_from(free).unwrap_or(1_000),
            failures: Reverse(self.failures),
            league: Reverse(self.leagues.get(&league).copied().unwrap_or(0)),
            name: Reverse(self.shard.clone()),
        }
    }

    /// Counts a game of `league` that it owns.
    pub fn count(&mut self, league: League, weight: u32) {
        self.load += 1;
        self.weight += weight;
        *self.leagues.entry(league).or_default() += 1;
    }

    /// Counts a game of `league` as given to it.
    pub fn take(&mut self, league: League, weight: u32) {
        self.count(league, weight);
        if self.is_on_trial {
            self.refusal = self.refusal.or(Some(Refusal::OnTrial));
        }
    }

    /// Counts a game of `league` as given away.
    pub fn give_back(&mut self, league: League, weight: u32) {
        self.load = self.load.saturating_sub(1);
        self.weight = self.weight.saturating_sub(weight);
        if let Some(count) = self.leagues.get_mut(&league) {
            *count = count.saturating_sub(1);
        }
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

/// What a game weighs in the score: capacity counts games, but a play-off or a game of many markets is more to watch.
#[must_use]
pub fn weight_of(game: &v1::Game) -> u32 {
    let markets = game.markets.as_ref().map_or(0, |m| m.by_type.len());
    1 + u32::from(game.postseason) + u32::from(markets >= MANY_MARKETS)
}

/// Chooses the place for a game of `league` among those that `refuse` does not refuse and that have room.
#[must_use]
pub fn choose(places: &[Place], league: League, weight: u32, refuse: impl Fn(&Place) -> Option<Refusal>) -> Choice {
    let mut scored = Vec::new();
    let mut rejected: BTreeMap<Refusal, u32> = BTreeMap::new();
    for (index, place) in places.iter().enumerate() {
        let full = || (!place.has_room()).then_some(Refusal::Full);
        match refuse(place).or_else(full) {
            Some(refusal) => *rejected.entry(refusal).or_default() += 1,
            None => scored.push((place.score(league, weight), index)),
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
        Place {
            shard: InstanceId::strict(name).unwrap(),
            load,
            weight: load,
            max_games,
            leagues: BTreeMap::new(),
            failures: 0,
            is_on_trial: false,
            refusal: None,
        }
    }

    fn chosen(places: &[Place]) -> Option<&str> {
        choose(places, League::Mlb, 1, |p| p.refusal).chosen.map(|i| places[i].shard.as_str())
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
    fn a_heavy_game_counts_for_more_in_the_score_and_for_one_in_capacity() {
        let game = v1::Game { postseason: true, ..v1::Game::default() };
        assert_eq!((weight_of(&v1::Game::default()), weight_of(&game)), (1, 2));
        let mut heavy = place("a", 2, 20);
        heavy.weight = 4;
        assert_eq!(
            chosen(&[heavy.clone(), place("b", 3, 20)]),
            Some("b"),
            "three light ones weigh less than two heavy"
        );
        heavy.max_games = 3;
        heavy.take(League::Mlb, 2);
        assert!(!heavy.has_room() && heavy.load == 3);
    }

    #[test]
    fn nobody_goes_over_capacity_and_each_refusal_is_counted() {
        let mut sick = place("c", 0, 20);
        sick.refusal = Some(Refusal::NotHealthy);
        let choice = choose(&[place("a", 20, 20), place("b", 0, 0), sick], League::Nfl, 1, |p| p.refusal);
        assert_eq!(choice.chosen, None);
        let counts: Vec<_> = choice.rejections.iter().map(|r| (r.code.as_str(), r.count)).collect();
        assert_eq!(counts, [("not_healthy", 1), ("full", 2)]);
    }
}
