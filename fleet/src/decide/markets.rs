//! What an answer of market discovery leads to. Markets come late and never hold up watching.

use arbees_proto::{GameId, Payload, v1};

use super::{Effect, Fleet, reason};
use crate::settings::short;

/// The only kind of market that discovery answers for today.
const MONEYLINE: &str = "moneyline";

/// An answer of market discovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarketsFound {
    /// As the message names it: bare or whole.
    pub game: String,
    pub sport: Option<arbees_proto::League>,
    pub kalshi: Option<String>,
    pub polymarket: Option<String>,
}

impl Fleet {
    pub(super) fn on_markets(&mut self, found: &MarketsFound) {
        let Some(id) = self.resolve_id(&found.game, found.sport) else { return };
        let Some(game) = self.state.games.get(&id) else { return };
        let markets = merged(game.info.markets.as_ref(), found);
        if markets.by_type.is_empty() || game.info.markets.as_ref() == Some(&markets) {
            return;
        }
        let matched = v1::MarketsMatched { game: id.to_string(), markets: Some(markets) };
        let why = reason("market discovery answered", "markets may come late");
        self.emit_game(&id, Payload::MarketsMatched(matched), why, None);
        self.seen.told_markets.remove(&id);
        self.tell_markets(&id);
    }

    /// Makes the owner of a game with markets know them: by the log at once when it was told others, and over Redis now and
    /// then, as what is said there can be lost. The monitors hear of it the same way.
    pub(super) fn tell_markets(&mut self, id: &GameId) {
        let Some(game) = self.state.games.get(id).filter(|g| g.info.markets.is_some()) else { return };
        let Some(owner) = game.owner.clone() else { return };
        let info = game.info.clone();
        if owner.markets != info.markets {
            let amended = v1::AssignmentAmended {
                game: Some(info.clone()),
                shard: owner.shard.to_string(),
                epoch: owner.epoch.0,
            };
            let why = reason("markets found", "the owner must know");
            self.emit_game(id, Payload::AssignmentAmended(amended), why, None);
        }
        let now_us = self.now.steady_us;
        let lately = self.seen.told_markets.get(id).is_some_and(|at| now_us - at < self.settings.tell_markets);
        if !lately {
            self.seen.told_markets.insert(id.clone(), now_us);
            self.command(&owner.shard, id, owner.epoch, true, "markets found");
            self.turn.effects.push(Effect::FollowMarkets { game: info });
        }
    }

    /// Asks for the game's markets while a side is missing, unless it was asked for lately.
    pub(super) fn ask_markets(&mut self, id: &GameId) {
        let Some(game) = self.state.games.get(id).filter(|g| !is_complete(g.info.markets.as_ref())) else { return };
        let now_us = self.now.steady_us;
        let lately = self.seen.asked_markets.get(id).is_some_and(|at| now_us - at < self.settings.ask_markets);
        if !lately {
            self.turn.effects.push(Effect::AskMarkets { game: game.info.clone() });
            self.seen.asked_markets.insert(id.clone(), now_us);
        }
    }
}

fn is_complete(markets: Option<&v1::Markets>) -> bool {
    let both = |m: &v1::Market| !m.kalshi.is_empty() && !m.polymarket.is_empty();
    markets.is_some_and(|m| m.by_type.iter().any(both))
}

/// What is known with what was found: an answer that names one side does not erase the other.
fn merged(known: Option<&v1::Markets>, found: &MarketsFound) -> v1::Markets {
    let mut markets = known.cloned().unwrap_or_default();
    let mut moneyline = markets
        .by_type
        .iter()
        .position(|m| m.market_type == MONEYLINE)
        .map(|at| markets.by_type.remove(at))
        .unwrap_or_else(|| v1::Market { market_type: MONEYLINE.to_owned(), ..v1::Market::default() });
    if let Some(kalshi) = found.kalshi.as_ref().filter(|id| !id.is_empty()) {
        moneyline.kalshi = short(kalshi);
    }
    if let Some(polymarket) = found.polymarket.as_ref().filter(|id| !id.is_empty()) {
        moneyline.polymarket = short(polymarket);
    }
    if !moneyline.kalshi.is_empty() || !moneyline.polymarket.is_empty() {
        markets.by_type.push(moneyline);
    }
    markets
}
