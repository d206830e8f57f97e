//! The brake: when most fall silent at once, it is rarely they who died. It is for silence; a connection seen to close is
//! proof and needs none.

use std::collections::BTreeMap;

use arbees_proto::{Payload, ServiceKind, v1};

use super::alert::Severity;
use super::health::Heard;
use super::{Fleet, reason};
use crate::settings::{BRAKE_EVERY, BRAKE_RELEASE};
use crate::state::{Service, ServiceKey};

/// Who fell, and how moves off them are held back. Times are steady.
#[derive(Debug, Default)]
pub(super) struct Brake {
    /// Log shards lately declared lost, and when.
    fell: BTreeMap<ServiceKey, i64>,
    engaged_us: Option<i64>,
    below_since_us: Option<i64>,
    last_move_us: Option<i64>,
}

impl Fleet {
    /// Notes that `key` is about to be declared lost.
    pub(super) fn fell(&mut self, key: &ServiceKey) {
        if self.state.services.get(key).is_some_and(|s| is_log_shard(key, s)) {
            self.seen.brake.fell.insert(key.clone(), self.now.steady_us);
        }
    }

    /// Log shards that are silent without proof, and how many there were before.
    fn silent(&self) -> (Vec<ServiceKey>, usize) {
        let now_us = self.now.steady_us;
        let alive = self.state.services.iter().filter(|(key, s)| is_log_shard(key, s) && !s.status.is_gone());
        let heard = |key: &ServiceKey| self.seen.services.get(key);
        let alive: Vec<_> = alive.filter_map(|(key, _)| Some((key, heard(key)?))).collect();
        let suspect = |h: &Heard| now_us - h.silence.at_us() >= self.settings.suspect_after() && !h.silence.is_proven();
        let mut silent: Vec<ServiceKey> =
            alive.iter().filter(|(_, h)| suspect(h)).map(|(key, _)| (*key).clone()).collect();
        let proven = |key: &ServiceKey| heard(key).is_some_and(|h| h.silence.is_proven());
        silent.extend(self.seen.brake.fell.keys().filter(|key| !proven(key)).cloned());
        (silent, alive.len() + self.seen.brake.fell.len())
    }

    /// Engages the brake when too many are silent, and releases it when they are not for long enough.
    pub(super) fn follow_brake(&mut self) {
        let now_us = self.now.steady_us;
        let is_engaged = self.state.brake_since_us.is_some();
        let keep = if is_engaged { self.settings.brake_hold } else { self.settings.lease_ttl };
        let services = &self.state.services;
        let is_still_gone = |key: &ServiceKey| services.get(key).is_some_and(|s| s.status.is_gone());
        self.seen.brake.fell.retain(|key, at| now_us - *at < keep && is_still_gone(key));
        let (silent, of) = self.silent();
        let share = usize::try_from(self.settings.brake_share).unwrap_or(usize::MAX);
        let too_many = silent.len() >= 2 && 100 * silent.len() > share * of;
        let brake = &mut self.seen.brake;
        if is_engaged {
            brake.engaged_us.get_or_insert(now_us);
            brake.below_since_us = if too_many { None } else { brake.below_since_us.or(Some(now_us)) };
            if brake.below_since_us.is_some_and(|at| now_us - at >= BRAKE_RELEASE) {
                self.release_brake();
            }
        } else if too_many && !self.seen.brake.fell.is_empty() {
            let names: Vec<String> = silent.iter().map(|key| key.instance.to_string()).collect();
            let of = u32::try_from(of).unwrap_or(u32::MAX);
            let summary = format!("{} of {of} shards silent at once: their games move slowly", names.len());
            let engaged = v1::BrakeEngaged { kind: ServiceKind::Shard.to_string(), silent: names, of };
            let seconds = self.settings.brake_hold / crate::SECOND;
            let rule = format!("silence is no proof: one game a second for {seconds} s");
            let why = reason("too many fell silent within a lease", &rule);
            self.emit_fleet(Payload::BrakeEngaged(engaged), why);
            self.seen.brake.engaged_us = Some(now_us);
            self.seen.brake.below_since_us = None;
            self.raise("brake_engaged", "", Severity::Critical, summary);
        }
    }

    fn release_brake(&mut self) {
        let now_us = self.now.steady_us;
        let engaged_us = now_us - self.seen.brake.engaged_us.take().unwrap_or(now_us);
        self.seen.brake.below_since_us = None;
        let released = v1::BrakeReleased { kind: ServiceKind::Shard.to_string(), engaged_us };
        let why = reason("no longer too many are silent", "released after 5 s of that");
        self.emit_fleet(Payload::BrakeReleased(released), why);
        self.settle("brake_engaged", "");
    }

    /// Whether a game may move off the lost shard `owner` now.
    pub(super) fn brake_lets_go(&mut self, owner: &ServiceKey) -> bool {
        let now_us = self.now.steady_us;
        let is_proven = self.seen.services.get(owner).is_some_and(|h| h.silence.is_proven());
        if self.state.brake_since_us.is_none() || is_proven {
            return true;
        }
        let engaged_us = *self.seen.brake.engaged_us.get_or_insert(now_us);
        let is_first = now_us - engaged_us < self.settings.brake_hold;
        let is_trusted = self.seen.log.works_for(now_us, self.settings.log_trust());
        if !is_first && is_trusted {
            // Whoever takes the games beats; nobody else may take one.
            return true;
        }
        let may = self.seen.brake.last_move_us.is_none_or(|at| now_us - at >= BRAKE_EVERY);
        if may {
            self.seen.brake.last_move_us = Some(now_us);
        }
        may
    }
}

fn is_log_shard(key: &ServiceKey, service: &Service) -> bool {
    key.kind == ServiceKind::Shard && service.info.on_log
}
