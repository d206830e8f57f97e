//! What keeps an old owner's late word from having effect: for each game only the newest epoch seen passes.

use std::collections::BTreeMap;

use arbees_proto::{Epoch, GameId};

/// Passes outputs of the newest epoch of each game, and counts the others.
#[derive(Clone, Debug, Default)]
pub struct EpochGate {
    /// The newest epoch of each game, and how many outputs under older ones did not pass.
    games: BTreeMap<GameId, (Epoch, u64)>,
}

impl EpochGate {
    /// A gate that has seen these epochs.
    #[must_use]
    pub fn new(newest: BTreeMap<GameId, Epoch>) -> Self {
        Self { games: newest.into_iter().map(|(id, epoch)| (id, (epoch, 0))).collect() }
    }

    /// Whether an output for `game` under `epoch` passes: none of a newer epoch has passed before.
    pub fn admit(&mut self, game: &GameId, epoch: Epoch) -> bool {
        let (newest, dropped) = self.games.entry(game.clone()).or_insert((epoch, 0));
        let passes = epoch >= *newest;
        if passes {
            *newest = epoch;
        } else {
            *dropped += 1;
        }
        passes
    }

    /// Each game with its newest epoch and how many outputs did not pass.
    pub fn all(&self) -> impl Iterator<Item = (&GameId, Epoch, u64)> {
        self.games.iter().map(|(id, (epoch, dropped))| (id, *epoch, *dropped))
    }

    /// How many outputs did not pass.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.games.values().map(|(_, dropped)| dropped).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_epoch_is_dropped_and_counted_and_games_do_not_mix() {
        let (a, b): (GameId, GameId) = ("nfl-1".parse().unwrap(), "nfl-2".parse().unwrap());
        let mut gate = EpochGate::new(BTreeMap::from([(b.clone(), Epoch::new(1, 9))]));
        assert!(gate.admit(&a, Epoch::new(1, 5)) && gate.admit(&a, Epoch::new(1, 5)));
        assert!(gate.admit(&a, Epoch::new(1, 8)));
        assert!(!gate.admit(&a, Epoch::new(1, 5)) && !gate.admit(&b, Epoch::new(1, 8)));
        assert!(gate.admit(&b, Epoch::new(2, 1)), "a newer generation beats any sequence");
        assert_eq!(gate.dropped(), 2);
        assert_eq!(
            gate.all().map(|(_, epoch, dropped)| (epoch, dropped)).collect::<Vec<_>>(),
            [(Epoch::new(1, 8), 1), (Epoch::new(2, 1), 1)]
        );
    }
}
