//! Telling people: once for each incident while it lasts.

use std::collections::BTreeSet;

use arbees_proto::{ServiceKind, v1};

use super::{Effect, Fleet, Now};
use crate::incidents::incident_of;
use crate::settings::TWIN_WITHIN;
use crate::state::{Circuit, Service, ServiceKey, Status};

/// How bad it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Severity {
    Warning,
    Critical,
}

impl Fleet {
    pub(super) fn raise(&mut self, kind: &str, subject: &str, severity: Severity, summary: String) {
        let incident = incident_of(kind, subject);
        if !self.seen.alerts.raise(self.now.steady_us, &incident) {
            return;
        }
        let severity = match severity {
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        };
        let alert = v1::AlertRaised { kind: kind.to_owned(), incident, severity: severity.to_owned(), summary };
        self.turn.effects.push(Effect::Alert(alert));
    }

    /// The incident is over: the next one is told again.
    pub(super) fn settle(&mut self, kind: &str, subject: &str) {
        let incident = incident_of(kind, subject);
        if self.seen.alerts.settle(self.now.steady_us, &incident) {
            self.turn.effects.push(Effect::Resolve(v1::AlertResolved { kind: kind.to_owned(), incident }));
        }
    }

    /// The incidents that last, as ALERTS has them.
    pub fn know_open(&mut self, now: Now, open: &BTreeSet<String>) {
        self.seen.alerts.know(now.steady_us, open);
    }

    /// Raises and settles what the state itself tells: whatever a leader before raised too late, or did not come to, and what
    /// was said of services that are forgotten, retired or well again.
    pub(super) fn look_at_alerts(&mut self) {
        self.look_at_fleet();
        self.look_at_shards();
        self.look_at_twins();
        let Some(since_us) = self.state.brake_since_us else { return self.settle("brake_engaged", "") };
        let seconds = (self.now.wall_us - since_us).max(0) / crate::SECOND;
        let summary = format!("most shards fell silent at once {seconds} s ago: their games move slowly");
        self.raise("brake_engaged", "", Severity::Critical, summary);
    }

    /// Shards that are lost, and open breakers.
    fn look_at_shards(&mut self) {
        let shards = self.state.services.iter().filter(|(key, _)| key.kind == ServiceKind::Shard);
        let named = |is_it: &dyn Fn(&Service) -> bool| -> BTreeSet<String> {
            shards.clone().filter(|(_, s)| is_it(s)).map(|(key, _)| key.instance.to_string()).collect()
        };
        let lost = named(&|s| s.status == Status::Dead);
        let open = named(&|s| s.breaker.circuit != Circuit::Closed);
        self.agree("shard_lost", &lost, Severity::Critical, |name| format!("shard {name} is lost"));
        self.agree("breaker_opened", &open, Severity::Warning, |name| {
            format!("shard {name} is given no more games: it did not take up what it was given")
        });
    }

    /// Makes the incidents of `kind` those about exactly `subjects`.
    fn agree(&mut self, kind: &str, subjects: &BTreeSet<String>, severity: Severity, say: impl Fn(&str) -> String) {
        let lasting = self.seen.alerts.lasting(self.now.steady_us, kind, 0).map(ToOwned::to_owned);
        let over: Vec<String> = lasting.filter(|name| !subjects.contains(name)).collect();
        over.iter().for_each(|name| self.settle(kind, name));
        for name in subjects {
            self.raise(kind, name, severity, say(name));
        }
    }

    /// Nobody says when one of two twins is gone: it is so when they have not alternated for long enough.
    fn look_at_twins(&mut self) {
        let now_us = self.now.steady_us;
        let alternates = |name: &str| {
            let of = self.seen.services.iter().filter(|(key, _)| key.instance.as_str() == name);
            of.filter_map(|(_, h)| h.before.as_ref()).any(|(_, at)| now_us - at < TWIN_WITHIN)
        };
        let named = self.seen.alerts.lasting(now_us, "duplicate_instance", TWIN_WITHIN);
        let over: Vec<String> = named.filter(|name| !alternates(name)).map(ToOwned::to_owned).collect();
        over.iter().for_each(|name| self.settle("duplicate_instance", name));
    }

    /// What is so of the fleet as a whole.
    fn look_at_fleet(&mut self) {
        let shards = |status: &dyn Fn(Status) -> bool| {
            let is_it = |(key, s): &(&ServiceKey, &Service)| key.kind == ServiceKind::Shard && status(s.status);
            self.state.services.iter().filter(is_it).count()
        };
        let known = shards(&|s| s != Status::Retired);
        let working = shards(&|s| !s.is_gone() && s != Status::Unhealthy);
        if known > 0 && working == 0 {
            let summary = format!("none of {known} shards works");
            self.raise("all_shards_unhealthy", "", Severity::Critical, summary);
        } else {
            self.settle("all_shards_unhealthy", "");
        }
        let discovery = self.state.services.iter().filter(|(key, _)| key.kind == ServiceKind::Discovery);
        let (gone, all) = discovery.fold((0, 0), |(gone, all), (_, s)| (gone + u32::from(s.status.is_gone()), all + 1));
        if all > 0 && gone == all {
            let summary = "no market discovery beats: games get no markets".to_owned();
            self.raise("no_market_discovery", "", Severity::Warning, summary);
        } else {
            self.settle("no_market_discovery", "");
        }
    }
}
