//! What an operator asks for: checked, planned, written down with the operator's name, and done exactly as planned.

use std::collections::BTreeMap;

use arbees_proto::{GameId, Payload, ShardId, v1};
use serde::{Deserialize, Serialize};

use super::place::{Grounds, Why};
use super::{Fleet, reason};
use crate::placement::{Place, weight_of};
use crate::settings::short;
use crate::state::{Drain, ServiceKey};

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Verb {
    /// Moves all games off the shard, and gives it none.
    Drain {
        shard: ShardId,
    },
    /// Gives it games again.
    Undrain {
        shard: ShardId,
    },
    /// Moves one game.
    Move {
        game: GameId,
        shard: ShardId,
    },
    /// Keeps the game on this shard, or on the one that has it.
    Pin {
        game: GameId,
        shard: Option<ShardId>,
    },
    Unpin {
        game: GameId,
    },
    /// Stops automatic moves, but for those off lost shards.
    Pause,
    Resume,
    /// Tells the shard all its games again.
    Resync {
        shard: ShardId,
    },
}

impl Verb {
    /// As it is spelt.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Drain { .. } => "drain",
            Self::Undrain { .. } => "undrain",
            Self::Move { .. } => "move",
            Self::Pin { .. } => "pin",
            Self::Unpin { .. } => "unpin",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Resync { .. } => "resync",
        }
    }

    const fn game(&self) -> Option<&GameId> {
        match self {
            Self::Move { game, .. } | Self::Pin { game, .. } | Self::Unpin { game } => Some(game),
            _ => None,
        }
    }

    const fn shard(&self) -> Option<&ShardId> {
        match self {
            Self::Drain { shard } | Self::Undrain { shard } | Self::Move { shard, .. } | Self::Resync { shard } => {
                Some(shard)
            }
            Self::Pin { shard, .. } => shard.as_ref(),
            Self::Unpin { .. } | Self::Pause | Self::Resume => None,
        }
    }
}

/// A request of an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    #[serde(flatten)]
    pub verb: Verb,
    /// Who asks.
    pub operator: String,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
    /// Do it only if the log still ends here: the basis of the plan that was looked at.
    #[serde(default)]
    pub basis: Option<u64>,
}

/// One game that moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedMove {
    pub game: GameId,
    pub from: Option<ShardId>,
    pub to: ShardId,
}

/// What a shard owns before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedLoad {
    pub shard: ShardId,
    pub before: u32,
    pub after: u32,
    pub max_games: u32,
}

/// What is done about a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The end of the log it was made on.
    pub basis: u64,
    pub moves: Vec<PlannedMove>,
    /// Games that find no other place now, and wait where they are.
    pub stay: Vec<GameId>,
    pub loads: Vec<PlannedLoad>,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("there is no shard {0}; `arbees shards` lists them")]
    UnknownShard(ShardId),
    #[error("there is no game {0}; `arbees games --all` lists them")]
    UnknownGame(GameId),
    #[error("game {0} is over: nobody watches it")]
    Over(GameId),
    #[error("shard {shard} may not take {game}: {why}")]
    Unfit { shard: ShardId, game: GameId, why: &'static str },
    #[error("{0}")]
    AlreadySo(String),
    #[error("the log has moved on from {basis} to {head}: look at the plan again")]
    Stale { basis: u64, head: u64 },
    #[error("the leader's turn is full, nothing was done: ask again")]
    Busy,
}

impl Fleet {
    /// Does what an operator asks for, or only plans it.
    ///
    /// # Errors
    /// [`Refused`]: nothing is done.
    pub fn operate(&mut self, now: super::Now, ask: &Ask) -> Result<Plan, Refused> {
        self.turn_to(now);
        let plan = self.plan(&ask.verb)?;
        if let Some(basis) = ask.basis.filter(|basis| *basis != plan.basis) {
            return Err(Refused::Stale { basis, head: plan.basis });
        }
        if ask.dry_run {
            return Ok(plan);
        }
        if self.room() < plan.moves.len() + 3 {
            return Err(Refused::Busy);
        }
        self.carry_out(ask, &plan);
        self.unplaced = true;
        Ok(plan)
    }

    fn plan(&self, verb: &Verb) -> Result<Plan, Refused> {
        self.check(verb)?;
        let mut places = self.places();
        let before: BTreeMap<ShardId, u32> = places.iter().map(|p| (p.shard.clone(), p.load)).collect();
        let (mut moves, mut stay) = (Vec::new(), Vec::new());
        match verb {
            Verb::Drain { shard } => self.plan_drain(shard, &mut places, &mut moves, &mut stay),
            Verb::Move { game, shard } | Verb::Pin { game, shard: Some(shard) } => {
                moves.extend(self.plan_move(game, shard, &mut places)?);
            }
            _ => {}
        }
        let load = |p: &Place| PlannedLoad {
            shard: p.shard.clone(),
            before: before.get(&p.shard).copied().unwrap_or(0),
            after: p.load,
            max_games: p.max_games,
        };
        let loads = places.iter().map(load).filter(|l| l.before != l.after).collect();
        Ok(Plan { basis: self.state.head.sequence, moves, stay, loads })
    }

    fn check(&self, verb: &Verb) -> Result<(), Refused> {
        let service = |shard: &ShardId| self.state.services.get(&ServiceKey::shard(shard.clone()));
        if let Some(shard) = verb.shard()
            && service(shard).is_none()
        {
            return Err(Refused::UnknownShard(shard.clone()));
        }
        let game = verb.game().map(|id| self.state.games.get(id).ok_or_else(|| Refused::UnknownGame(id.clone())));
        let game = game.transpose()?;
        let so = |text: String| Err(Refused::AlreadySo(text));
        match verb {
            Verb::Drain { shard } if service(shard).is_some_and(|s| s.drain != Drain::No) => {
                so(format!("shard {shard} is drained already"))
            }
            Verb::Undrain { shard } if service(shard).is_some_and(|s| s.drain == Drain::No) => {
                so(format!("shard {shard} is not drained"))
            }
            Verb::Move { game: id, .. } | Verb::Pin { game: id, .. } if game.is_some_and(|g| g.phase.is_over()) => {
                Err(Refused::Over(id.clone()))
            }
            Verb::Pin { game: id, shard: None } if game.is_some_and(|g| g.owner.is_none()) => {
                so(format!("nobody watches {id}: name the shard to pin it to"))
            }
            Verb::Unpin { game: id } if game.is_some_and(|g| g.pin.is_none()) => so(format!("game {id} is not pinned")),
            Verb::Pause if self.state.paused => so("automatic moves are paused already".to_owned()),
            Verb::Resume if !self.state.paused => so("automatic moves are not paused".to_owned()),
            _ => Ok(()),
        }
    }

    fn plan_drain(&self, shard: &ShardId, places: &mut [Place], moves: &mut Vec<PlannedMove>, stay: &mut Vec<GameId>) {
        for (id, game) in self.owned() {
            let Some(owner) = game.owner.as_ref().filter(|o| o.shard == *shard) else { continue };
            let choice = self.choose(id, game, Some(owner), Why::Draining, places);
            let Some(to) = choice.chosen.and_then(|index| places.get_mut(index)) else {
                stay.push(id.clone());
                continue;
            };
            to.take(id.league(), weight_of(&game.info));
            moves.push(PlannedMove { game: id.clone(), from: Some(shard.clone()), to: to.shard.clone() });
            if let Some(from) = places.iter_mut().find(|p| p.shard == *shard) {
                from.give_back(id.league(), weight_of(&game.info));
            }
        }
    }

    fn plan_move(&self, id: &GameId, shard: &ShardId, places: &mut [Place]) -> Result<Option<PlannedMove>, Refused> {
        let game = self.state.games.get(id);
        let (owner, weight) = (game.and_then(|g| g.owner.as_ref()), game.map_or(1, |g| weight_of(&g.info)));
        if owner.is_some_and(|o| o.shard == *shard) {
            return Ok(None);
        }
        let Some(to) = places.iter_mut().find(|p| p.shard == *shard) else {
            return Err(Refused::UnknownShard(shard.clone()));
        };
        let full = (!to.has_room()).then_some(crate::placement::Refusal::Full);
        if let Some(refusal) = to.refusal.or(full) {
            return Err(Refused::Unfit { shard: shard.clone(), game: id.clone(), why: refusal.code() });
        }
        to.take(id.league(), weight);
        let from = owner.map(|o| o.shard.clone());
        if let Some(place) = from.as_ref().and_then(|from| places.iter_mut().find(|p| p.shard == *from)) {
            place.give_back(id.league(), weight);
        }
        Ok(Some(PlannedMove { game: id.clone(), from, to: shard.clone() }))
    }

    fn carry_out(&mut self, ask: &Ask, plan: &Plan) {
        let operator = short(&ask.operator);
        let text = |id: Option<String>| id.unwrap_or_default();
        let asked = v1::OperatorVerb {
            verb: ask.verb.name().to_owned(),
            operator: operator.clone(),
            game: text(ask.verb.game().map(ToString::to_string)),
            shard: text(ask.verb.shard().map(ToString::to_string)),
            basis: ask.basis.unwrap_or(0),
        };
        let why = || reason(&format!("{operator} asked for it"), "an operator's word");
        let cause = self.emit_fleet(Payload::OperatorVerb(asked), why());
        let game = || text(ask.verb.game().map(ToString::to_string));
        match &ask.verb {
            Verb::Drain { shard } => {
                let (shard, operator) = (shard.to_string(), operator.clone());
                self.emit_service(Payload::DrainStarted(v1::DrainStarted { shard, operator }), why(), cause);
            }
            Verb::Undrain { shard } => {
                let (shard, operator) = (shard.to_string(), operator.clone());
                self.emit_service(Payload::DrainCanceled(v1::DrainCanceled { shard, operator }), why(), cause);
            }
            Verb::Pin { game: id, shard } => {
                let owner = self.state.games.get(id).and_then(|g| g.owner.as_ref()).map(|o| o.shard.clone());
                let shard = text(shard.clone().or(owner).map(|s| s.to_string()));
                let pinned = Payload::GamePinned(v1::GamePinned { game: game(), shard });
                self.emit_game(id, pinned, why(), cause);
            }
            Verb::Unpin { game: id } => {
                let unpinned = Payload::GameUnpinned(v1::GameUnpinned { game: game() });
                self.emit_game(id, unpinned, why(), cause);
            }
            Verb::Pause => {
                let operator = operator.clone();
                self.emit_fleet(Payload::MovesPaused(v1::MovesPaused { operator }), why());
            }
            Verb::Resume => {
                let operator = operator.clone();
                self.emit_fleet(Payload::MovesResumed(v1::MovesResumed { operator }), why());
            }
            Verb::Resync { shard } => self.resync_now(shard),
            Verb::Move { .. } => {}
        }
        for planned in &plan.moves {
            let asked_for = format!("{operator} asked for it");
            let why = Grounds { cause: &asked_for, rule: "an operator's word", event: cause };
            self.give(&planned.game, &planned.to, why, crate::placement::Choice::default());
        }
    }
}
