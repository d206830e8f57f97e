//! What ails most of the fleet at once: then it is not the shards that are ill, and no place is better.

use std::collections::{BTreeMap, BTreeSet};

use arbees_proto::ServiceKind;

use super::Fleet;
use super::alert::Severity;
use crate::checks::{ESPN, league_of};
use crate::settings::COMMON_PATIENCE;
use crate::state::{Service, ServiceKey, Status};

impl Fleet {
    /// Checks that more than half of those who can fail them do fail: then it is not they who are ill, and no place is better.
    /// A league's data can only fail for who watches a game of that league.
    pub(super) fn common_checks(&self) -> BTreeSet<String> {
        // Those that would be heard to fail it, if they did.
        let redis_works = self.seen.redis.is_fresh(self.now.steady_us);
        let is_alive = |(key, s): &(&ServiceKey, &Service)| {
            let is_sports = matches!(s.info.shard_type.as_str(), "sports" | "game");
            key.kind == ServiceKind::Shard && !s.status.is_gone() && is_sports && (s.info.on_log || redis_works)
        };
        let mut failing: BTreeMap<&str, usize> = BTreeMap::new();
        let mut alive = BTreeSet::new();
        for (key, service) in self.state.services.iter().filter(is_alive) {
            alive.insert(&key.instance);
            if service.status == Status::Degraded {
                real_causes(service).for_each(|c| *failing.entry(c).or_default() += 1);
            }
        }
        let can_fail = |check: &str| match league_of(check) {
            None => alive.len(),
            Some(league) => {
                let its = self.owned().filter(|(id, _)| id.league().as_str() == league);
                let owners: BTreeSet<_> = its.filter_map(|(_, g)| Some(&g.owner.as_ref()?.shard)).collect();
                owners.intersection(&alive).count()
            }
        };
        failing.into_iter().filter(|(check, n)| 2 * n > can_fail(check)).map(|(check, _)| check.to_owned()).collect()
    }

    /// The checks whose failing is nobody's own: `common` now, or a moment ago.
    pub(super) fn excused(&mut self, common: BTreeSet<String>) -> BTreeSet<String> {
        let now_us = self.now.steady_us;
        // Only what hangs on a breaker is found out late: who is deaf is deaf.
        let lingers = |check: &str| check == ESPN || check == "redis_ok" || league_of(check).is_some();
        let late = common.iter().filter(|check| lingers(check)).map(|check| (check.clone(), now_us));
        self.seen.common.extend(late);
        self.seen.common.retain(|_, at| now_us - *at < COMMON_PATIENCE);
        self.seen.common.keys().cloned().chain(common).collect()
    }

    /// Tells people of what all shards fail, and that it is over.
    pub(super) fn note_common(&mut self, common: &BTreeSet<String>) {
        let leagues: Vec<&str> = common.iter().filter_map(|c| league_of(c)).collect();
        if leagues.is_empty() {
            self.settle("external_dependency", "espn");
        } else {
            let summary =
                format!("no data of {} for anybody who watches it: nothing moves for that", leagues.join(", "));
            self.raise("external_dependency", "espn", Severity::Warning, summary);
        }
        let others: Vec<&str> = common.iter().filter(|c| league_of(c).is_none()).map(String::as_str).collect();
        if others.is_empty() {
            self.settle("all_shards_degraded", "");
        } else {
            let summary = format!("most shards fail {}: nothing moves for that", others.join(", "));
            self.raise("all_shards_degraded", "", Severity::Critical, summary);
        }
    }
}

/// The checks that say why a service is not well. That some league's data fails is said once for each league.
fn real_causes(service: &Service) -> impl Iterator<Item = &str> {
    let names_league = service.failed_checks.iter().any(|c| league_of(c).is_some());
    service.failed_checks.iter().map(String::as_str).filter(move |c| !(names_league && *c == ESPN))
}

/// Whether all that it fails is nobody's own.
pub(super) fn is_excused(service: &Service, excused: &BTreeSet<String>) -> bool {
    if service.status == Status::Recovered && service.failed_checks.is_empty() {
        // It falls ill again while it recovers, and of what is not written down at every beat.
        return !excused.is_empty();
    }
    let mut causes = real_causes(service).peekable();
    causes.peek().is_some() && causes.all(|c| excused.contains(c))
}
