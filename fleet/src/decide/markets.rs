//! What an answer of market discovery leads to. Markets come late and never hold up watching.

use arbees_proto::{GameId, Payload, v1};

use super::{Effect, Fleet, reason};

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
    pub(super) fn on_markets(&mut self, now_us: i64, found: &MarketsFound) {
        let Some(id) = self.resolve_id(&found.game, found.sport) else { return };
        let Some(game) = self.state.games.get(&id) else { return };
        let markets = merged(game.info.markets.as_ref(), found);
        if markets.by_type.is_empty() || game.info.markets.as_ref() == Some(&markets) {
            return;
        }
        let matched = v1::MarketsMatched { game: id.to_string(), markets: Some(markets) };
        let why = reason("market discovery answered", "markets may come late");
        self.emit_game(now_us, &id, Payload::MarketsMatched(matched), why, None);
        self.amend(now_us, &id);
    }

    fn amend(&mut self, now_us: i64, id: &GameId) {
        let Some(game) = self.state.games.get(id) else { return };
        let Some(owner) = game.owner.clone() else { return };
        let info = game.info.clone();
        let amended =
            v1::AssignmentAmended { game: Some(info.clone()), shard: owner.shard.to_string(), epoch: owner.epoch.0 };
        let why = reason("markets found", "the owner must know");
        self.emit_game(now_us, id, Payload::AssignmentAmended(amended), why, None);
        self.command(now_us, &owner.shard, id, owner.epoch, true, "markets found");
        self.turn.effects.push(Effect::FollowMarkets { game: info });
    }

    /// Asks for the game's markets, unless it has some or was asked for lately.
    pub(super) fn ask_markets(&mut self, now_us: i64, id: &GameId) {
        let Some(game) = self.state.games.get(id).filter(|g| g.info.markets.is_none()) else { return };
        let lately = self.seen.asked_markets.get(id).is_some_and(|at| now_us - at < self.settings.ask_markets);
        if !lately {
            self.turn.effects.push(Effect::AskMarkets { game: game.info.clone() });
            self.seen.asked_markets.insert(id.clone(), now_us);
        }
    }
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
        moneyline.kalshi.clone_from(kalshi);
    }
    if let Some(polymarket) = found.polymarket.as_ref().filter(|id| !id.is_empty()) {
        moneyline.polymarket.clone_from(polymarket);
    }
    if !moneyline.kalshi.is_empty() || !moneyline.polymarket.is_empty() {
        markets.by_type.push(moneyline);
    }
    markets
}
