//! A shard's game set, folded from its part of the log alone.

use std::collections::BTreeMap;

use arbees_proto::{Epoch, GameId, Payload, ShardId, v1};

/// A game the shard owns.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    pub game: v1::Game,
    pub epoch: Epoch,
}

/// What an event changed for the shard.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Watch this game from now on; or under a newer epoch than before.
    Start(GameId),
    /// Something about a game that is already watched.
    Amend(GameId),
    /// Watch it no more.
    Stop(GameId),
    /// The leader heard the shard again, by the beat at this sequence of HEARTBEATS.
    Readmitted { heartbeat_sequence: u64 },
}

/// All games that the log gives to one shard.
#[derive(Clone, Debug)]
pub struct GameSet {
    me: ShardId,
    held: BTreeMap<GameId, Held>,
    /// Sequence below which nothing of this shard's own can still arrive.
    last_applied: u64,
    /// What the history told of games beyond `last_applied`: the tail brings it again, and what it superseded.
    ahead: BTreeMap<GameId, u64>,
    /// The newest term seen: whoever writes under an older one was deposed.
    term: u64,
}

impl GameSet {
    /// An empty set.
    #[must_use]
    pub const fn new(me: ShardId) -> Self {
        Self { me, held: BTreeMap::new(), last_applied: 0, ahead: BTreeMap::new(), term: 0 }
    }

    /// The set of `me` from the last message of each of its subjects. All of them were read after the stream's end stood at
    /// `end`, so that the tail must go on from `end` + 1; some may be younger.
    #[must_use]
    pub fn recover(me: ShardId, end: u64, mut history: Vec<(u64, v1::Event)>) -> Self {
        let mut set = Self::new(me);
        history.sort_by_key(|(sequence, _)| *sequence);
        for (sequence, event) in &history {
            set.change(*sequence, event);
            if let Some(id) = game_of(event).filter(|_| *sequence > end) {
                set.ahead.insert(id, *sequence);
            }
        }
        set.last_applied = end;
        set
    }

    /// The games it holds.
    #[must_use]
    pub const fn held(&self) -> &BTreeMap<GameId, Held> {
        &self.held
    }

    /// Sequence below which nothing of this shard's own can still arrive.
    #[must_use]
    pub const fn last_applied(&self) -> u64 {
        self.last_applied
    }

    /// The log was read up to `sequence` and held nothing more for this shard.
    pub fn caught_up(&mut self, sequence: u64) {
        self.last_applied = self.last_applied.max(sequence);
    }

    /// Applies an event of one of the shard's own filters, in the order of the log. Repeats change nothing.
    pub fn apply(&mut self, sequence: u64, event: &v1::Event) -> Option<Change> {
        if sequence <= self.last_applied {
            return None;
        }
        self.last_applied = sequence;
        let is_known = game_of(event).is_some_and(|id| self.ahead.get(&id).is_some_and(|known| sequence <= *known));
        self.ahead.retain(|_, known| *known > sequence);
        if is_known { None } else { self.change(sequence, event) }
    }

    fn change(&mut self, sequence: u64, event: &v1::Event) -> Option<Change> {
        if event.term < self.term {
            return None;
        }
        self.term = event.term;
        match event.payload.as_ref()? {
            Payload::GameAssigned(e) => self.give(e.game.as_ref(), &e.shard, Epoch::new(event.generation, sequence)),
            Payload::GameReassigned(e) => self.give(e.game.as_ref(), &e.shard, Epoch::new(event.generation, sequence)),
            Payload::GameReleased(e) if e.shard == self.me.as_str() => self.drop_game(&e.game.parse().ok()?),
            Payload::AssignmentAmended(e) => self.amend(e.game.as_ref(), e.epoch),
            Payload::AssignmentConfirmed(e) => self.amend(e.game.as_ref(), e.epoch),
            Payload::ServiceRecovered(e) if e.kind == "shard" && e.instance == self.me.as_str() => {
                Some(Change::Readmitted { heartbeat_sequence: e.heartbeat_sequence })
            }
            _ => None,
        }
    }

    fn give(&mut self, game: Option<&v1::Game>, shard: &str, epoch: Epoch) -> Option<Change> {
        let (game, id) = parsed(game)?;
        if shard != self.me.as_str() {
            return self.drop_game(&id);
        }
        self.held.insert(id.clone(), Held { game, epoch });
        Some(Change::Start(id))
    }

    fn drop_game(&mut self, id: &GameId) -> Option<Change> {
        self.held.remove(id).map(|_| Change::Stop(id.clone()))
    }

    fn amend(&mut self, game: Option<&v1::Game>, epoch: u64) -> Option<Change> {
        let (game, id) = parsed(game)?;
        let held = self.held.get_mut(&id).filter(|h| h.epoch.0 == epoch && h.game != game)?;
        held.game = game;
        Some(Change::Amend(id))
    }
}

fn parsed(game: Option<&v1::Game>) -> Option<(v1::Game, GameId)> {
    let game = game?.clone();
    let id = game.id.parse().ok()?;
    Some((game, id))
}

/// The game that an assignment event is about.
fn game_of(event: &v1::Event) -> Option<GameId> {
    let info = |g: &Option<v1::Game>| g.as_ref().map(|g| g.id.clone());
    let id = match event.payload.as_ref()? {
        Payload::GameAssigned(e) => info(&e.game),
        Payload::GameReassigned(e) => info(&e.game),
        Payload::AssignmentAmended(e) => info(&e.game),
        Payload::AssignmentConfirmed(e) => info(&e.game),
        Payload::GameReleased(e) => Some(e.game.clone()),
        _ => None,
    };
    id?.parse().ok()
}

#[cfg(test)]
mod tests {
    use arbees_proto::InstanceId;

    use super::*;

    fn event(term: u64, payload: Payload) -> v1::Event {
        v1::Event { generation: 1, term, payload: Some(payload), ..v1::Event::default() }
    }

    fn game(id: &str) -> v1::Game {
        v1::Game { id: id.to_owned(), ..v1::Game::default() }
    }

    fn assigned(id: &str, shard: &str) -> v1::Event {
        event(1, Payload::GameAssigned(v1::GameAssigned { game: Some(game(id)), shard: shard.to_owned() }))
    }

    fn released(id: &str, epoch: u64) -> v1::Event {
        let (game, shard) = (id.to_owned(), "me".to_owned());
        event(1, Payload::GameReleased(v1::GameReleased { game, shard, epoch }))
    }

    fn me() -> ShardId {
        InstanceId::strict("me").unwrap()
    }

    fn ids(set: &GameSet) -> Vec<&str> {
        set.held().keys().map(GameId::as_str).collect()
    }

    #[test]
    fn games_come_and_go_by_the_log_and_repeats_change_nothing() {
        let mut set = GameSet::new(me());
        let start = set.apply(5, &assigned("nfl-1", "me"));
        assert_eq!(start, Some(Change::Start("nfl-1".parse().unwrap())));
        assert_eq!(set.held().values().next().unwrap().epoch, Epoch::new(1, 5));
        assert_eq!(set.apply(5, &assigned("nfl-1", "me")), None);
        assert!(matches!(set.apply(9, &released("nfl-1", 5)), Some(Change::Stop(_))));
        assert_eq!(set.last_applied(), 9);
    }

    #[test]
    fn an_amendment_of_another_epoch_is_not_ours() {
        let mut set = GameSet::new(me());
        set.apply(5, &assigned("nfl-1", "me"));
        let amended = |epoch| {
            let game = v1::Game { starts_at_us: 7, ..game("nfl-1") };
            let shard = "me".to_owned();
            event(1, Payload::AssignmentAmended(v1::AssignmentAmended { game: Some(game), shard, epoch }))
        };
        assert_eq!(set.apply(6, &amended(4)), None);
        assert!(matches!(set.apply(7, &amended(Epoch::new(1, 5).0)), Some(Change::Amend(_))));
    }

    /// The two filters are read one after the other while the log goes on: what the second read saw of one game must not
    /// hide what the tail has yet to say of another.
    #[test]
    fn what_happens_between_the_two_reads_is_not_lost() {
        let history = vec![(30, assigned("nfl-1", "me")), (10, assigned("nfl-2", "me")), (9, released("nfl-1", 3))];
        let mut set = GameSet::recover(me(), 20, history);
        assert_eq!((ids(&set), set.last_applied()), (vec!["nfl-1", "nfl-2"], 20));
        assert!(matches!(set.apply(25, &released("nfl-2", 10)), Some(Change::Stop(_))));
        assert_eq!(set.apply(28, &released("nfl-1", 3)), None, "superseded by what the history told");
        assert_eq!(set.apply(30, &assigned("nfl-1", "me")), None, "told before");
        assert_eq!(ids(&set), ["nfl-1"]);
    }

    #[test]
    fn a_deposed_leaders_word_does_not_count() {
        let mut set = GameSet::new(me());
        set.apply(5, &event(3, assigned("nfl-1", "me").payload.unwrap()));
        assert_eq!(set.apply(6, &released("nfl-1", 5)), None);
        assert_eq!(ids(&set), ["nfl-1"]);
    }
}
