//! How events change the state: the one `apply` of leader, standby, projector and audit.

use arbees_proto::envelope::{EventId, Hash, chain_hash};
use arbees_proto::{Epoch, GameId, InstanceId, Payload, ServiceKind, v1};
use bytes::Bytes;
use prost::Message as _;

use crate::settings::{KEEP_ENDED, KEEP_GONE};
use crate::state::{Breaker, Circuit, Drain, Game, Owner, Phase, Service, ServiceKey, State, Status};

/// How often ended games are looked through, in event time.
const SWEEP_EVERY: i64 = 3600 * crate::SECOND;

/// A message of CONTROL as it was stored.
#[derive(Clone, Debug)]
pub struct Entry {
    pub sequence: u64,
    pub subject: String,
    /// Header `Arbees-Type`.
    pub event_type: String,
    /// Header `Arbees-Hash`.
    pub hash: Option<Hash>,
    pub payload: Bytes,
}

/// Why a message of CONTROL is no valid event. Every fold skips it; the chain goes on from the last valid one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    #[error("does not decode: {0}")]
    Undecodable(String),
    #[error("its header names type {0:?}, its payload is {1:?}")]
    WrongType(String, String),
    #[error("does not chain to the valid event before it")]
    Unchained,
    #[error("term {found} is lower than {newest}, the newest before it")]
    Deposed { found: u64, newest: u64 },
    #[error("generation {found} is lower than {newest}, the newest before it")]
    OldGeneration { found: u64, newest: u64 },
    #[error("names an id that is not allowed: {0}")]
    BadId(#[from] arbees_proto::ids::BadId),
}

/// What an event changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Touched {
    pub game: Option<GameId>,
    pub service: Option<ServiceKey>,
    /// Games that ended so long ago that the state forgets them, as they were last.
    pub forgotten: Vec<(GameId, Game)>,
    /// Services that are gone for so long that the state forgets them.
    pub forgotten_services: Vec<(ServiceKey, Service)>,
}

impl State {
    /// Folds the message `entry`, which must come right after the head.
    ///
    /// # Errors
    /// [`Skip`] when it is no valid event: the head moves past it, nothing else changes.
    pub fn fold(&mut self, entry: &Entry) -> Result<(Touched, v1::Event), Skip> {
        match self.check(entry) {
            Ok((event, hash)) => {
                let touched = self.accept(entry.sequence, hash, &event)?;
                Ok((touched, event))
            }
            Err(skip) => {
                self.head.sequence = entry.sequence;
                self.head.skipped += 1;
                Err(skip)
            }
        }
    }

    fn check(&self, entry: &Entry) -> Result<(v1::Event, Hash), Skip> {
        let hash = chain_hash(&self.head.hash, &entry.subject, &entry.event_type, &entry.payload);
        if entry.hash != Some(hash) {
            return Err(Skip::Unchained);
        }
        let event = v1::Event::decode(entry.payload.clone()).map_err(|e| Skip::Undecodable(e.to_string()))?;
        let found = event.payload.as_ref().map_or("nothing", arbees_proto::subject::type_name);
        if found != entry.event_type {
            return Err(Skip::WrongType(entry.event_type.clone(), found.to_owned()));
        }
        if event.term < self.head.term {
            return Err(Skip::Deposed { found: event.term, newest: self.head.term });
        }
        if event.generation < self.head.generation {
            return Err(Skip::OldGeneration { found: event.generation, newest: self.head.generation });
        }
        Ok((event, hash))
    }

    /// Applies a valid event stored (or about to be) at `sequence`.
    ///
    /// # Errors
    /// [`Skip::BadId`] when it names an id that is not allowed; only the head changes.
    pub fn accept(&mut self, sequence: u64, hash: Hash, event: &v1::Event) -> Result<Touched, Skip> {
        let hour_before = self.head.occurred_at_us / SWEEP_EVERY;
        self.head.sequence = sequence;
        self.head.hash = hash;
        self.head.term = event.term;
        self.head.generation = event.generation;
        self.head.occurred_at_us = event.occurred_at_us;
        let (mut forgotten, mut forgotten_services) = (Vec::new(), Vec::new());
        if event.occurred_at_us / SWEEP_EVERY != hour_before {
            forgotten = self.forget_ended(event.occurred_at_us);
            forgotten_services = self.forget_gone(event.occurred_at_us);
        }
        let touched = self.change(sequence, event).inspect_err(|_| self.head.skipped += 1)?;
        let touched = Touched { forgotten, forgotten_services, ..touched };
        self.mark(&touched, sequence, event);
        Ok(touched)
    }

    fn mark(&mut self, touched: &Touched, sequence: u64, event: &v1::Event) {
        if let Some(game) = touched.game.as_ref().and_then(|id| self.games.get_mut(id)) {
            game.last_sequence = sequence;
            game.last_event = event_id(event);
        }
        if let Some(service) = touched.service.as_ref().and_then(|key| self.services.get_mut(key)) {
            service.last_sequence = sequence;
            if !matches!(event.payload, Some(Payload::AssignmentConfirmed(_))) {
                service.standing = event_id(event);
            }
        }
    }

    fn forget_ended(&mut self, now_us: i64) -> Vec<(GameId, Game)> {
        let is_old = |g: &Game| g.owner.is_none() && g.phase.is_over() && now_us - g.phase_since_us >= KEEP_ENDED;
        self.games.extract_if(.., |_, g| is_old(g)).collect()
    }

    fn forget_gone(&mut self, now_us: i64) -> Vec<(ServiceKey, Service)> {
        let owners: std::collections::BTreeSet<_> =
            self.games.values().filter_map(|g| Some(g.owner.as_ref()?.shard.clone())).collect();
        let is_old = |key: &ServiceKey, s: &Service| {
            let owns = key.kind == ServiceKind::Shard && owners.contains(&key.instance);
            s.status.is_gone() && now_us - s.status_since_us >= KEEP_GONE && !owns
        };
        self.services.extract_if(.., |key, s| is_old(key, s)).collect()
    }

    fn change(&mut self, sequence: u64, event: &v1::Event) -> Result<Touched, Skip> {
        let at = event.occurred_at_us;
        let epoch = Epoch::new(event.generation, sequence);
        match event.payload.as_ref() {
            None
            | Some(
                Payload::LeaderElected(_)
                | Payload::OperatorVerb(_)
                | Payload::ResyncCompleted(_)
                | Payload::Heartbeat(_)
                | Payload::Fence(_)
                | Payload::GameStateChanged(_)
                | Payload::AlertRaised(_)
                | Payload::AlertResolved(_)
                | Payload::AlertDelivered(_)
                | Payload::AlertDeliveryFailed(_)
                | Payload::AlertSuppressed(_)
                | Payload::AlertAcknowledged(_)
                | Payload::AlertSilenced(_),
            ) => Ok(Touched::default()),
            Some(Payload::GameDiscovered(e)) => self.discovered(e.game.as_ref(), event),
            Some(Payload::GameWentLive(e)) => self.phase(&e.game, Phase::Live, "", at),
            Some(Payload::GameSuspended(e)) => self.phase(&e.game, Phase::Suspended, &e.status, at),
            Some(Payload::GameResumed(e)) => self.phase(&e.game, Phase::Live, "", at),
            Some(Payload::GamePostponed(e)) => self.phase(&e.game, Phase::Postponed, &e.status, at),
            Some(Payload::GameCanceled(e)) => self.phase(&e.game, Phase::Canceled, &e.status, at),
            Some(Payload::GameFinished(e)) => self.phase(&e.game, Phase::Finished, &e.status, at),
            Some(Payload::GameQueued(e)) => self.game(&e.game, |g| g.queued_since_us = Some(at)),
            Some(Payload::MarketsMatched(e)) => self.game(&e.game, |g| g.info.markets.clone_from(&e.markets)),
            Some(Payload::GameAssigned(e)) => self.owner(e.game.as_ref(), &e.shard, epoch, at),
            Some(Payload::GameReleased(e)) => self.game(&e.game, |g| g.owner = None),
            Some(Payload::GameReassigned(e)) => self.owner(e.game.as_ref(), &e.shard, epoch, at),
            Some(Payload::GamePinned(e)) => {
                let shard = InstanceId::lenient(&e.shard)?;
                self.game(&e.game, |g| g.pin = Some(shard))
            }
            Some(Payload::GameUnpinned(e)) => self.game(&e.game, |g| g.pin = None),
            Some(Payload::AssignmentConfirmed(e)) => {
                let touched = self.owned(e.game.as_ref(), e.epoch, |owner| {
                    owner.confirmed_at_us.get_or_insert(at);
                })?;
                if let Some(game) = touched.game.as_ref().and_then(|id| self.games.get_mut(id)) {
                    game.queued_since_us = None;
                }
                let taken = self.shard(&e.shard, |s| s.breaker.taken_up())?;
                Ok(Touched { service: taken.service, ..touched })
            }
            Some(Payload::AssignmentAmended(e)) => self.owned(e.game.as_ref(), e.epoch, |_| ()),
            Some(Payload::ServiceRegistered(e)) => self.registered(e.service.as_ref(), at, false),
            Some(Payload::ServiceRestarted(e)) => self.registered(e.service.as_ref(), at, true),
            Some(Payload::ServiceStatusChanged(e)) => {
                let Some(to) = Status::of_name(&e.to) else { return Ok(Touched::default()) };
                self.status(&e.kind, &e.instance, to, &e.failed_checks, at)
            }
            Some(Payload::ServiceLost(e)) => self.status(&e.kind, &e.instance, Status::Dead, &[], at),
            Some(Payload::ServiceRecovered(e)) => self.status(&e.kind, &e.instance, Status::Recovered, &[], at),
            Some(Payload::AssignmentFailed(e)) => self.shard(&e.shard, |s| s.breaker.failures = e.failures),
            Some(Payload::CircuitOpened(e)) => self.shard(&e.shard, |s| {
                let since = if s.breaker.circuit == Circuit::Closed { at } else { s.breaker.opened_at_us };
                let failures = s.breaker.failures;
                s.breaker = Breaker { circuit: Circuit::Open, failures, successes: 0, opened_at_us: since };
            }),
            Some(Payload::CircuitHalfOpened(e)) => self.shard(&e.shard, |s| {
                s.breaker = Breaker { circuit: Circuit::HalfOpen, failures: 0, successes: 0, ..s.breaker };
            }),
            Some(Payload::CircuitClosed(e)) => self.shard(&e.shard, |s| s.breaker = Breaker::default()),
            Some(Payload::DrainStarted(e)) => self.shard(&e.shard, |s| s.drain = Drain::Draining),
            Some(Payload::DrainCompleted(e)) => self.shard(&e.shard, |s| s.drain = Drain::Drained),
            Some(Payload::DrainCanceled(e)) => self.shard(&e.shard, |s| s.drain = Drain::No),
            Some(Payload::BrakeEngaged(_)) => Ok(self.fleet(|f| f.brake_since_us = Some(at))),
            Some(Payload::BrakeReleased(_)) => Ok(self.fleet(|f| f.brake_since_us = None)),
            Some(Payload::MovesPaused(_)) => Ok(self.fleet(|f| f.paused = true)),
            Some(Payload::MovesResumed(_)) => Ok(self.fleet(|f| f.paused = false)),
            Some(Payload::ShadowMode(e)) => Ok(self.fleet(|f| f.shadow = e.on)),
        }
    }

    fn fleet(&mut self, change: impl FnOnce(&mut Self)) -> Touched {
        change(self);
        Touched::default()
    }

    fn discovered(&mut self, info: Option<&v1::Game>, event: &v1::Event) -> Result<Touched, Skip> {
        let Some(info) = info else { return Ok(Touched::default()) };
        let id: GameId = info.id.parse()?;
        let game = self.games.entry(id.clone()).or_insert_with(|| Game {
            info: v1::Game::default(),
            phase: Phase::Scheduled,
            phase_since_us: event.occurred_at_us,
            status: String::new(),
            owner: None,
            queued_since_us: None,
            pin: None,
            origin: event_id(event),
            last_event: event_id(event),
            last_sequence: 0,
        });
        let markets = game.info.markets.take();
        game.info = v1::Game { markets: info.markets.clone().or(markets), ..info.clone() };
        Ok(Touched { game: Some(id), ..Touched::default() })
    }

    fn game(&mut self, id: &str, change: impl FnOnce(&mut Game)) -> Result<Touched, Skip> {
        let id: GameId = id.parse()?;
        let Some(game) = self.games.get_mut(&id) else { return Ok(Touched::default()) };
        change(game);
        Ok(Touched { game: Some(id), ..Touched::default() })
    }

    fn phase(&mut self, id: &str, phase: Phase, status: &str, at: i64) -> Result<Touched, Skip> {
        self.game(id, |game| {
            game.phase = phase;
            game.phase_since_us = at;
            status.clone_into(&mut game.status);
            if phase.is_over() {
                game.queued_since_us = None;
            }
        })
    }

    fn owner(&mut self, info: Option<&v1::Game>, shard: &str, epoch: Epoch, at: i64) -> Result<Touched, Skip> {
        let Some(info) = info else { return Ok(Touched::default()) };
        let shard = InstanceId::lenient(shard)?;
        self.game(&info.id, |game| {
            let markets = info.markets.clone();
            // A pin yields to death and to an operator's move: it does not pull the game back afterwards.
            game.pin.take_if(|pin| *pin != shard);
            game.owner = Some(Owner { shard, epoch, since_us: at, confirmed_at_us: None, markets });
            game.queued_since_us = None;
        })
    }

    fn owned(&mut self, info: Option<&v1::Game>, epoch: u64, change: impl FnOnce(&mut Owner)) -> Result<Touched, Skip> {
        let Some(info) = info else { return Ok(Touched::default()) };
        self.game(&info.id, |game| {
            if let Some(owner) = game.owner.as_mut().filter(|o| o.epoch.0 == epoch) {
                owner.markets.clone_from(&info.markets);
                change(owner);
            }
        })
    }

    fn registered(&mut self, info: Option<&v1::Service>, at: i64, is_restart: bool) -> Result<Touched, Skip> {
        let Some(info) = info else { return Ok(Touched::default()) };
        let key = service_key(info)?;
        let service = self.services.entry(key.clone()).or_insert_with(|| Service {
            info: v1::Service::default(),
            registered_at_us: at,
            restarts: 0,
            status: Status::Starting,
            status_since_us: at,
            unwell_since_us: None,
            failed_checks: Vec::new(),
            breaker: Breaker::default(),
            drain: Drain::No,
            standing: EventId([0; 16]),
            last_sequence: 0,
        });
        service.info.clone_from(info);
        if is_restart {
            service.restarts += 1;
            service.breaker = Breaker::default();
            service.change_status(Status::Starting, &[], at);
        }
        Ok(Touched { service: Some(key), ..Touched::default() })
    }

    fn service(&mut self, key: ServiceKey, change: impl FnOnce(&mut Service)) -> Touched {
        let Some(service) = self.services.get_mut(&key) else { return Touched::default() };
        change(service);
        Touched { service: Some(key), ..Touched::default() }
    }

    fn shard(&mut self, instance: &str, change: impl FnOnce(&mut Service)) -> Result<Touched, Skip> {
        Ok(self.service(ServiceKey::shard(InstanceId::lenient(instance)?), change))
    }

    fn status(&mut self, kind: &str, instance: &str, to: Status, failed: &[String], at: i64) -> Result<Touched, Skip> {
        let key = ServiceKey { kind: ServiceKind::of_name(kind), instance: InstanceId::lenient(instance)? };
        Ok(self.service(key, |s| s.change_status(to, failed, at)))
    }
}

impl Service {
    fn change_status(&mut self, to: Status, failed: &[String], at: i64) {
        self.unwell_since_us = match to {
            Status::Healthy | Status::Starting => None,
            _ => self.unwell_since_us.or(Some(at)),
        };
        self.status = to;
        self.status_since_us = at;
        self.failed_checks = failed.to_vec();
    }
}

impl Breaker {
    const fn taken_up(&mut self) {
        self.failures = 0;
        if matches!(self.circuit, Circuit::HalfOpen) {
            self.successes += 1;
        }
    }
}

/// The key of the service that `info` describes.
///
/// # Errors
/// When its instance id is not allowed.
pub fn service_key(info: &v1::Service) -> Result<ServiceKey, arbees_proto::ids::BadId> {
    let kind = ServiceKind::of_name(&info.kind);
    let instance = InstanceId::lenient(&info.instance)?;
    Ok(ServiceKey { kind, instance })
}

fn event_id(event: &v1::Event) -> EventId {
    EventId::from_bytes(&event.id).unwrap_or(EventId([0; 16]))
}
