//! What the passing of time leads to.

use super::{Effect, Fleet};

impl Fleet {
    pub(super) fn tick(&mut self, now_us: i64) {
        self.release_leftovers(now_us);
        self.place(now_us);
        self.ask_absent(now_us);
        self.follow_markets(now_us);
        self.forget_log_commands();
    }

    /// A game that nobody mentions is not over: it is asked for by id.
    fn ask_absent(&mut self, now_us: i64) {
        let owned: Vec<_> = self.owned().map(|(id, _)| id.clone()).collect();
        for game in owned {
            let at = *self.seen.on_slate.entry(game.clone()).or_insert(now_us);
            if now_us - at >= self.settings.ask_absent {
                self.seen.on_slate.insert(game.clone(), now_us);
                self.turn.effects.push(Effect::AskGame { game });
            }
        }
    }

    fn follow_markets(&mut self, now_us: i64) {
        let owned: Vec<_> = self.owned().map(|(id, _)| id.clone()).collect();
        for id in owned {
            self.ask_markets(now_us, &id);
            self.tell_markets(now_us, &id);
        }
        let games = &self.state.games;
        let is_owned = |id: &arbees_proto::GameId| games.get(id).is_some_and(|g| g.owner.is_some());
        self.seen.asked_markets.retain(|id, _| is_owned(id));
        self.seen.told_markets.retain(|id, _| is_owned(id));
    }
}
