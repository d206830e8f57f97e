//! What the passing of time leads to.

use super::{Effect, Fleet};

/// Silence is looked for at every tick; all else that only time brings, this often.
const LOOK_EVERY: i64 = crate::SECOND / 2;

impl Fleet {
    pub(super) fn tick(&mut self) {
        self.watch_silence();
        let now_us = self.now.steady_us;
        if now_us - self.seen.looked_us < LOOK_EVERY {
            return;
        }
        self.seen.looked_us = now_us;
        self.try_circuits();
        self.resync();
        self.release_leftovers();
        self.ask_absent();
        self.follow_markets();
        self.forget_commands();
        self.look_at_alerts();
        self.unplaced = true;
    }

    /// A game that nobody mentions is not over: it is asked for by id.
    fn ask_absent(&mut self) {
        let now_us = self.now.steady_us;
        let owned: Vec<_> = self.owned().map(|(id, _)| id.clone()).collect();
        for game in owned {
            let at = *self.seen.on_slate.entry(game.clone()).or_insert(now_us);
            if now_us - at >= self.settings.ask_absent {
                self.seen.on_slate.insert(game.clone(), now_us);
                self.turn.effects.push(Effect::AskGame { game });
            }
        }
    }

    fn follow_markets(&mut self) {
        let owned: Vec<_> = self.owned().map(|(id, _)| id.clone()).collect();
        for id in owned {
            self.ask_markets(&id);
            self.tell_markets(&id);
        }
        let games = &self.state.games;
        let is_owned = |id: &arbees_proto::GameId| games.get(id).is_some_and(|g| g.owner.is_some());
        self.seen.asked_markets.retain(|id, _| is_owned(id));
        self.seen.told_markets.retain(|id, _| is_owned(id));
    }
}
