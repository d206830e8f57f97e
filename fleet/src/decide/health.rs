//! How each service is: from what it says, and from its silence.

use arbees_proto::{EventId, Payload, ServiceKind, v1};

use super::alert::Severity;
use super::{Effect, Fleet, Medium, reason};
use crate::settings::{
    FENCE_FRESH, GOOD_BEATS, JUDGE_AGAIN, MAX_NAMED, PROBE_EVERY, PROBE_GRACE, REPLACED_WITHIN, SAY_AGAIN,
};
use crate::state::{Service, ServiceKey, Status};

/// What a service that was asked whether it is there answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// It is there.
    Answered,
    /// Its connection is closed: the server knows of nobody.
    Nobody,
    /// No answer in time.
    Silent,
}

/// What was last heard of a service. Times are steady.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub at_us: i64,
    /// When it beat last, by the wall clock; 0: not heard since this process listens.
    pub wall_us: i64,
    /// HEARTBEATS sequence of its last beat; 0: not heard, or it beats on Redis.
    pub sequence: u64,
    /// Reports healthy, with all that its kind needs.
    pub good: bool,
    /// Good beats in a row.
    good_beats: u32,
    pub max_games: u32,
    /// How far apart its last two beats were.
    pub interval_us: i64,
    /// Since when it is not well.
    pub unwell_since_us: Option<i64>,
    probe: Option<Asked>,
    judging_since_us: Option<i64>,
    /// When its subject was last fenced.
    fenced_us: Option<i64>,
    /// The process that beat under its name before, and when that was last seen.
    pub before: Option<(v1::Service, i64)>,
}

/// A probe on its way, and what came of the last.
#[derive(Debug, Clone, Copy)]
struct Asked {
    at_us: i64,
    answer: Option<Probe>,
    /// When it first answered.
    answered_us: Option<i64>,
}

impl Heard {
    /// Whether it was heard at all since this process listens.
    pub const fn is_real(&self) -> bool {
        self.wall_us != 0
    }

    /// Its connection was seen to close: that is proof, not silence.
    pub fn is_proven(&self) -> bool {
        self.probe.is_some_and(|p| p.answer == Some(Probe::Nobody))
    }
}

impl Fleet {
    /// Everybody the log knows is expected to beat from now on.
    pub(super) fn expect_beats(&mut self) {
        let now_us = self.now.steady_us;
        for (key, service) in &self.state.services {
            let expected = Heard {
                at_us: now_us,
                wall_us: 0,
                sequence: 0,
                good: false,
                good_beats: 0,
                max_games: service.info.max_games,
                interval_us: self.settings.redis_interval,
                unwell_since_us: None,
                probe: None,
                judging_since_us: None,
                fenced_us: None,
                before: None,
            };
            self.seen.services.entry(key.clone()).or_insert(expected);
        }
    }

    /// Takes in a beat. False: an older one than is known.
    pub(super) fn hear(&mut self, key: &ServiceKey, beat: &v1::Heartbeat, medium: Medium) -> bool {
        let now_us = self.now.steady_us;
        let sequence = match medium {
            Medium::Log { sequence } => sequence,
            Medium::Redis => 0,
        };
        let known = self.seen.services.get(key);
        if known.is_some_and(|h| sequence != 0 && sequence <= h.sequence) {
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
            at_us: now_us,
            wall_us: self.now.wall_us.max(1),
            sequence,
            good,
            good_beats,
            max_games: beat.service.as_ref().map_or(0, |s| s.max_games),
            interval_us: known
                .filter(|h| h.is_real())
                .map_or(default_us, |h| (now_us - h.at_us).clamp(crate::SECOND, 6 * default_us)),
            unwell_since_us,
            probe: None,
            judging_since_us: None,
            fenced_us: None,
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
        };
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
                let silent = self.seen.services.get(&key).map_or(0, |h| now_us - h.at_us);
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
        let silent_us = now_us - heard.at_us;
        if silent_us < suspect_after {
            return;
        }
        if heard.probe.is_none_or(|p| now_us - p.at_us >= PROBE_EVERY) {
            let before = heard.probe;
            heard.probe = Some(Asked {
                at_us: now_us,
                answer: before.and_then(|p| p.answer),
                answered_us: before.and_then(|p| p.answered_us),
            });
            self.turn.effects.push(Effect::Probe { key: key.clone() });
        }
        let spared = heard.probe.is_some_and(|p| {
            p.answer == Some(Probe::Answered) && p.answered_us.is_some_and(|at| now_us - at < PROBE_GRACE)
        });
        let is_asked = heard.judging_since_us.is_some_and(|at| now_us - at < JUDGE_AGAIN);
        if silent_us >= limit && !spared && !is_asked {
            heard.judging_since_us = Some(now_us);
            self.turn.effects.push(Effect::Judge { key: key.clone(), heartbeat: heard.sequence });
        }
    }

    /// When silence must be looked at next, on the steady clock.
    #[must_use]
    pub fn wake_at_us(&self) -> Option<i64> {
        let (suspect_after, limit) = (self.settings.suspect_after(), self.settings.log_timeout());
        let beating = self.state.services.iter().filter(|(_, s)| s.info.on_log && !s.status.is_gone());
        let due = |(key, _): (&ServiceKey, &Service)| {
            let heard = self.seen.services.get(key)?;
            let steps = [heard.at_us + suspect_after, heard.at_us + limit];
            steps.into_iter().find(|at| *at > self.now.steady_us)
        };
        beating.filter_map(due).min()
    }

    pub(super) fn on_probed(&mut self, key: &ServiceKey, answer: Probe) {
        let now_us = self.now.steady_us;
        if let Some(probe) = self.seen.services.get_mut(key).and_then(|h| h.probe.as_mut()) {
            probe.answer = Some(answer);
            if answer == Probe::Answered {
                probe.answered_us.get_or_insert(now_us);
            }
        }
        self.watch_silence();
    }

    pub(super) fn on_fenced(&mut self, key: &ServiceKey, heartbeat: u64, fence: u64) {
        let now_us = self.now.steady_us;
        let Some(heard) = self.seen.services.get_mut(key).filter(|h| h.sequence <= heartbeat) else { return };
        heard.fenced_us = Some(now_us);
        heard.judging_since_us = None;
        if self.state.services.get(key).is_some_and(|s| !s.status.is_gone()) {
            self.lose(key, heartbeat, fence);
        }
        self.unplaced = true;
    }

    /// Whether a game may move off the lost shard `key` now: nobody can have beaten under its name since a moment ago. A shard
    /// that was fenced rests before it acts again; if it has had the time to come back, it is fenced anew first.
    pub(super) fn is_freshly_fenced(&mut self, key: &ServiceKey) -> bool {
        let now_us = self.now.steady_us;
        if self.state.services.get(key).is_none_or(|s| !s.info.on_log) {
            return true;
        }
        let Some(heard) = self.seen.services.get_mut(key) else { return true };
        if heard.fenced_us.is_some_and(|at| now_us - at < FENCE_FRESH) {
            return true;
        }
        if heard.judging_since_us.is_none_or(|at| now_us - at >= JUDGE_AGAIN) {
            heard.judging_since_us = Some(now_us);
            self.turn.effects.push(Effect::Judge { key: key.clone(), heartbeat: heard.sequence });
        }
        false
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
        let (process, silent_us) = (service.info.process.clone(), self.now.steady_us - heard.at_us);
        let last_heartbeat_us = if heard.is_real() { heard.wall_us } else { 0 };
        let is_shard = key.kind == ServiceKind::Shard;
        let owned = self.owned().filter(|(_, g)| g.owner.as_ref().is_some_and(|o| is_shard && o.shard == key.instance));
        let games: Vec<String> = owned.map(|(id, _)| id.to_string()).take(MAX_NAMED).collect();
        let count = games.len();
        let proof = if heard.is_proven() { "its connection is closed" } else { "it is silent" };
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
            Self::Degraded => "no new games, its own move after 10 s of it",
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
