//! Names of checks that shards report and the leader understands.

use arbees_proto::League;

/// Whether the data of all its leagues come in, as the Redis contract has it.
pub const ESPN: &str = "espn_api_ok";

/// Whether the data of `league` come in: reported by who watches a game of it.
#[must_use]
pub fn espn(league: League) -> String {
    format!("espn_{league}_ok")
}

/// The league whose data a check is about, if it is about one.
#[must_use]
pub fn league_of(check: &str) -> Option<&str> {
    check.strip_prefix("espn_")?.strip_suffix("_ok").filter(|league| league.parse::<League>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leagues_check_is_told_from_the_others() {
        assert_eq!(league_of(&espn(League::Nfl)), Some("nfl"));
        assert_eq!((league_of(ESPN), league_of("redis_ok")), (None, None));
    }
}
