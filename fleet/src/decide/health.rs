//! How each service is: from what it says, and from its silence.

use std::collections::BTreeMap;

use arbees_proto::{EventId, Payload, ServiceKind, v1};

use super::alert::Severity;
use super::{Effect, Fleet, Medium, reason};
use crate::settings::{GOOD_BEATS, MAX_NAMED, READMIT_AGAIN, REPLACED_WITHIN, SAY_AGAIN};
use crate::silence::{Probe, Silence};
use crate::state::{Service, ServiceKey, Status};

/// Cause of a loss that is no mere silence.
pub const CLOSED: &str = "its connection is closed";

/// What was last heard of a service. Times are steady.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub silence: Silence,
    /// When it beat last, by the wall clock; 0: not heard since this process listens.
    pub wall_us: i64,
    /// Reports healthy, with all that its kind needs.
    pub good: bool,
    /// Good beats in a row.
    good_beats: u32,
    pub max_games: u32,
    /// How far apart its last two beats were.
    pub interval_us: i64,
    /// Since when it is not well.
    pub unwell_since_us: Option<i64>,
    /// When it was last written down that it was heard again.
    readmitted_us: Option<i64>,
    /// The process that beat under its name before, and when that was last seen.
    pub before: Option<(v1::Service, i64)>,
}

impl Heard {
    /// Whether it was heard at all since this process listens.
    pub const fn is_real(&self) -> bool {
        self.wall_us != 0
    }
}

impl Fleet {
    /// Everybody the log knows is expected to beat from now on.
    pub(super) fn expect_beats(&mut self) {
        let now_us = self.now.steady_us;
        for (key, service) in &self.state.services {
            let expected = Heard {
                silence: Silence::since(now_us),
                wall_us: 0,
                good: false,
                good_beats: 0,
                max_games: service.info.max_games,
                interval_us: self.settings.redis_interval,
                unwell_since_us: None,
                readmitted_us: None,
                before: None,
            };
            self.seen.services.entry(key.clone()).or_insert(expected);
        }
    }

    /// Microseconds since the last beat of whoever has been silent longest, by kind; of those who are expected to beat.
    #[must_use]
    pub fn silences(&self, now_us: i64) -> BTreeMap<ServiceKind, i64> {
        let mut longest = BTreeMap::new();
        for (key, heard) in &self.seen.services {
            if self.state.services.get(key).is_some_and(|s| !s.status.is_gone()) {
                let silent_us = now_us - heard.silence.at_us();
                let known = longest.entry(key.kind).or_insert(silent_us);
                *known = silent_us.max(*known);
            }
        }
        longest
    }

    /// Takes in a beat. False: an older one than is known.
    pub(super) fn hear(&mut self, key: &ServiceKey, beat: &v1::Heartbeat, medium: Medium) -> bool {
        let now_us = self.now.steady_us;
        let sequence = match medium {
            Medium::Log { sequence } => sequence,
            Medium::Redis => 0,
        };
        let known = self.seen.services.get(key);
        let mut silence = known.map_or(Silence::since(now_us), |h| h.silence);
        if !silence.hear(now_us, sequence) {
            return false;
        }
        let default_us = self.settings.redis_interval;
        let good = beat.status == "healthy" && failed_checks(key.kind, beat).is_empty();
        let good_beats = if good { known.map_or(0, |h| h.good_beats).saturating_add(1) } else { 0 };
        let unwell_since_us = if good && (good_beats >= GOOD_BEATS) {
            None
        } else if good {
            known.and_then(|h| h.unwell_since_us)
        } else {
            known.and_then(|h| h.unwell_since_us).or(Some(now_us))
        };
        let heard = Heard {
            silence,
            wall_us: self.now.wall_us.max(1),
            good,
            good_beats,
            max_games: beat.service.as_ref().map_or(0, |s| s.max_games),
            interval_us: known
                .filter(|h| h.is_real())
                .map_or(default_us, |h| (now_us - h.silence.at_us()).clamp(crate::SECOND, 6 * default_us)),
            unwell_since_us,
            readmitted_us: known.and_then(|h| h.readmitted_us),
            before: known.and_then(|h| h.before.clone()),
        };
        self.seen.services.insert(key.clone(), heard);
        true
    }

    /// Draws the conclusion from a beat that was taken in.
    pub(super) fn follow_status(&mut self, key: &ServiceKey, beat: &v1::Heartbeat, cause: Option<EventId>) {
        let Some(service) = self.state.services.get(key) else { return };
        let Some(heard) = self.seen.services.get(key) else { return };
        let was = service.status;
        let is_told = heard.readmitted_us.is_some_and(|at| self.now.steady_us - at < READMIT_AGAIN);
        if beat.fence_sequence != 0 && !was.is_gone() && !is_told {
            // It was fenced and not lost, or did not hear that it is back: it acts on nothing until it does.
            self.recover(key, was, cause);
            return;
        }
        let mut failed = failed_checks(key.kind, beat);
        let next = match beat.status.as_str() {
            "stopping" => Status::Stopping,
            "unhealthy" => Status::Unhealthy,
            _ if was.is_gone() => Status::Recovered,
            "starting" => Status::Starting,
            "degraded" => {
                // What it blames counts, too: when all blame the same, there is no better place.
                failed = beat.checks.iter().filter(|c| !c.ok).map(|c| c.name.clone()).collect();
                Status::Degraded
            }
            _ if !heard.good && key.kind.needs_checks() => Status::Degraded,
            _ if !heard.good => return,
            _ => match was {
                Status::Starting | Status::Healthy => Status::Healthy,
                Status::Recovered if heard.good_beats >= GOOD_BEATS => Status::Healthy,
                _ => Status::Recovered,
            },
        };
        let lately = self.now.wall_us - service.status_since_us < SAY_AGAIN;
        // One that falls ill again while it recovers takes no games anyway: that is not written down at every beat.
        if was == Status::Recovered && next == Status::Degraded && lately {
            return;
        }
        if next == was && (next != Status::Degraded || service.failed_checks == failed || lately) {
            return;
        }
        if next == Status::Recovered {
            self.recover(key, was, cause);
        } else {
            self.change_status(key, next, failed, reason(&format!("it reports {}", beat.status), next.rule()), cause);
        }
    }

    fn recover(&mut self, key: &ServiceKey, was: Status, cause: Option<EventId>) {
        let since = self.state.services.get(key).and_then(|s| s.unwell_since_us);
        let recovered = v1::ServiceRecovered {
            kind: key.kind.to_string(),
            instance: key.instance.to_string(),
            from: was.as_str().to_owned(),
            unwell_us: since.map_or(0, |at| (self.now.wall_us - at).max(0)),
            heartbeat_sequence: self.seen.services.get(key).map_or(0, |h| h.silence.sequence()),
        };
        if let Some(heard) = self.seen.services.get_mut(key) {
            heard.readmitted_us = Some(self.now.steady_us);
        }
        self.emit_service(
            Payload::ServiceRecovered(recovered),
            reason("it beats well again", "healthy after three good beats"),
            cause,
        );
        self.settle("shard_lost", key.instance.as_str());
        self.unplaced = true;
    }

    fn change_status(
        &mut self,
        key: &ServiceKey,
        to: Status,
        failed_checks: Vec<String>,
        why: v1::Reason,
        cause: Option<EventId>,
    ) {
        let Some(from) = self.state.services.get(key).map(|s| s.status) else { return };
        let changed = v1::ServiceStatusChanged {
            kind: key.kind.to_string(),
            instance: key.instance.to_string(),
            from: from.as_str().to_owned(),
            to: to.as_str().to_owned(),
            failed_checks,
        };
        self.emit_service(Payload::ServiceStatusChanged(changed), why, cause);
        self.unplaced = true;
    }

    /// Looks for silence. Whoever beats on the log is asked, then judged by its subject; the others by the time alone.
    pub(super) fn watch_silence(&mut self) {
        let now_us = self.now.steady_us;
        let trusts_log = self.seen.log.works_for(now_us, self.settings.log_trust());
        let trusts_redis = self.seen.redis.works_for(now_us, self.settings.redis_trust());
        let beating = self.state.services.iter().filter(|(_, s)| !s.status.is_gone());
        let all: Vec<_> = beating.map(|(key, s)| (key.clone(), s.info.on_log)).collect();
        for (key, on_log) in all {
            if on_log && trusts_log {
                self.watch_on_log(&key);
            } else if !on_log && trusts_redis {
                let silent = self.seen.services.get(&key).map_or(0, |h| now_us - h.silence.at_us());
                if silent > self.settings.redis_timeout {
                    self.lose(&key, 0, 0);
                }
            }
        }
    }

    fn watch_on_log(&mut self, key: &ServiceKey) {
        let now_us = self.now.steady_us;
        let (suspect_after, limit) = (self.settings.suspect_after(), self.settings.log_timeout());
        let Some(heard) = self.seen.services.get_mut(key) else { return };
        let heartbeat = heard.silence.sequence();
        let due = heard.silence.due(now_us, suspect_after, limit);
        if due.probe {
            self.turn.effects.push(Effect::Probe { key: key.clone() });
        }
        if due.judge {
            self.turn.effects.push(Effect::Judge { key: key.clone(), heartbeat });
        }
    }

    /// When silence must be looked at next, on the steady clock.
    #[must_use]
    pub fn wake_at_us(&self) -> Option<i64> {
        let (suspect_after, limit) = (self.settings.suspect_after(), self.settings.log_timeout());
        let beating = self.state.services.iter().filter(|(_, s)| s.info.on_log && !s.status.is_gone());
        let due = |(key, _): (&ServiceKey, &Service)| {
            let heard = self.seen.services.get(key)?;
            heard.silence.look_at_us(self.now.steady_us, suspect_after, limit)
        };
        beating.filter_map(due).min()
    }

    pub(super) fn on_probed(&mut self, key: &ServiceKey, answer: Probe) {
        let now_us = self.now.steady_us;
        if let Some(heard) = self.seen.services.get_mut(key) {
            heard.silence.probed(now_us, answer);
        }
        self.watch_silence();
    }

    pub(super) fn on_fenced(&mut self, key: &ServiceKey, heartbeat: u64, fence: u64) {
        if !self.seen.services.get_mut(key).is_some_and(|h| h.silence.fenced(heartbeat)) {
            return;
        }
        if self.state.services.get(key).is_some_and(|s| !s.status.is_gone()) {
            self.lose(key, heartbeat, fence);
        }
        self.unplaced = true;
    }

    /// It is silent, and that is not the medium's fault.
    fn lose(&mut self, key: &ServiceKey, heartbeat: u64, fence: u64) {
        let Some(service) = self.state.services.get(key) else { return };
        let Some(heard) = self.seen.services.get(key) else { return };
        self.unplaced = true;
        if service.status == Status::Stopping || self.is_replaced(key, service) {
            let why = reason("it stopped or was replaced, and is silent", "retired without alert");
            self.change_status(key, Status::Retired, Vec::new(), why, None);
            return;
        }
        let (process, silent_us) = (service.info.process.clone(), self.now.steady_us - heard.silence.at_us());
        let last_heartbeat_us = if heard.is_real() { heard.wall_us } else { 0 };
        let is_shard = key.kind == ServiceKind::Shard;
        let owned = self.owned().filter(|(_, g)| g.owner.as_ref().is_some_and(|o| is_shard && o.shard == key.instance));
        let games: Vec<String> = owned.map(|(id, _)| id.to_string()).take(MAX_NAMED).collect();
        let count = games.len();
        let proof = if heard.silence.is_proven() { CLOSED } else { "it is silent" };
        let lost = v1::ServiceLost {
            kind: key.kind.to_string(),
            instance: key.instance.to_string(),
            process,
            silent_us,
            heartbeat_sequence: heartbeat,
            fence_sequence: fence,
            games,
            last_heartbeat_us,
        };
        let rule = if heartbeat == 0 { "silent for the time-out" } else { "lease over and heartbeat subject fenced" };
        self.fell(key);
        self.emit_service(Payload::ServiceLost(lost), reason(proof, rule), None);
        if is_shard {
            let ms = silent_us / 1_000;
            let summary = format!("shard {} lost after {ms} ms of silence with {count} games", key.instance);
            self.raise("shard_lost", key.instance.as_str(), Severity::Critical, summary);
        }
    }

    /// Another of its kind came when it went, and nothing depends on it.
    fn is_replaced(&self, key: &ServiceKey, service: &Service) -> bool {
        if key.kind == ServiceKind::Shard {
            return false;
        }
        let last_us = self.seen.services.get(key).map_or(0, |h| h.wall_us);
        self.state.services.iter().any(|(other, s)| {
            other.kind == key.kind
                && other != key
                && !s.status.is_gone()
                && s.registered_at_us > service.registered_at_us
                && (s.registered_at_us - last_us).abs() <= REPLACED_WITHIN
        })
    }
}

impl Status {
    /// The rule by which a beat leads to it.
    const fn rule(self) -> &'static str {
        match self {
            Self::Starting => "no games until it reports healthy",
            Self::Healthy => "takes games",
            Self::Degraded => "no new games, its own move when it lasts",
            Self::Unhealthy => "its games move at once",
            Self::Stopping => "its games are handed over",
            Self::Dead | Self::Recovered | Self::Retired => "",
        }
    }
}

/// What a service of this kind needs to be operational and does not have, by its own word. A check that is absent has failed.
fn failed_checks(kind: ServiceKind, beat: &v1::Heartbeat) -> Vec<String> {
    let ok = |name: &&&str| beat.checks.iter().any(|c| c.name == **name && c.ok);
    kind.needs().iter().filter(|name| !ok(name)).map(|name| (*name).to_owned()).collect()
}

/// What kinds of services need to do their work.
trait Needs {
    fn needs(self) -> &'static [&'static str];
    fn needs_checks(self) -> bool;
}

impl Needs for ServiceKind {
    fn needs(self) -> &'static [&'static str] {
        match self {
            Self::Shard => &["redis_ok"],
            Self::Kalshi => &["redis_ok", "ws_ok"],
            Self::Polymarket => &["redis_ok", "vpn_ok", "ws_ok"],
            _ => &[],
        }
    }

    fn needs_checks(self) -> bool {
        !self.needs().is_empty()
    }
}
