//! What is told, when, and how often. Pure: it folds the events of ALERTS, and time comes in as an argument, so that whoever
//! leads next goes on where the last one stopped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use arbees_proto::{EventId, Payload, v1};

use super::Severity;

const SECOND: i64 = 1_000_000;

/// Incidents of one kind that come within this are one message: twenty shards of one broken host.
const GROUP_WITHIN: i64 = SECOND;
/// Messages of one kind within the rate limit; more incidents than that wait, and come as one list.
const MOST_OF_A_KIND: usize = 5;
/// Incidents kept after their end, for the rate limit. A bound against floods of names.
const MOST_REMEMBERED: usize = 10_000;
/// A message that no channel has taken an hour after it was due is not sent again after a restart.
const STALE: i64 = 3_600 * SECOND;

/// How often people are told. Microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The same incident again, and more than a few of a kind, are not told sooner (`ALERT_RATE_LIMIT_SECS`).
    pub rate_limit_us: i64,
    /// A critical one that nobody has acknowledged is told again, more loudly, after this (`ALERT_ESCALATE_SECS`).
    pub escalate_us: i64,
    /// One that lasts is told again this often (`ALERT_REMIND_SECS`).
    pub remind_us: i64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { rate_limit_us: 300 * SECOND, escalate_us: 900 * SECOND, remind_us: 3_600 * SECOND }
    }
}

/// Why a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    Raised,
    /// Nobody has acknowledged it, or it got worse.
    Escalated,
    Reminder,
    Resolved,
}

impl What {
    /// As events have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raised => "raised",
            Self::Escalated => "escalated",
            Self::Reminder => "reminder",
            Self::Resolved => "resolved",
        }
    }
}

/// One incident in a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub incident: String,
    pub summary: String,
    pub since_us: i64,
}

/// A message to people: one kind, one reason, one or more incidents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The same for the same incidents, reason and time.
    pub id: String,
    pub kind: String,
    pub what: What,
    pub severity: Severity,
    pub incidents: Vec<Line>,
    /// Incidents since the last message of this kind that were not told.
    pub suppressed: u32,
    pub since_us: i64,
    pub at_us: i64,
    /// Channels that have it already.
    pub has: BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct Incident {
    kind: String,
    severity: Severity,
    /// How bad it was before it got worse, and when it did.
    milder: Option<(Severity, i64)>,
    summary: String,
    since_us: i64,
    /// When it was last told, with which severity and why.
    told: Option<(i64, Severity, What)>,
    first_told_us: Option<i64>,
    /// Channels that have taken the last message about it.
    has: BTreeSet<String>,
    is_acknowledged: bool,
    is_escalated: bool,
    is_suppressed: bool,
    ended_us: Option<i64>,
}

/// The incidents that last, and what was told of them.
#[derive(Clone, Debug, Default)]
pub struct Desk {
    pub rules: Rules,
    incidents: BTreeMap<String, Incident>,
    /// When an incident that is over was last told, and how bad it was.
    recent: BTreeMap<String, (i64, Severity)>,
    /// When messages of a kind were last sent.
    sent: BTreeMap<String, VecDeque<i64>>,
    /// Incidents of a kind that came and went untold.
    untold: BTreeMap<String, u32>,
    silenced: BTreeMap<String, i64>,
}

impl Desk {
    /// A desk without incidents.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// The incidents that last.
    #[must_use]
    pub fn open(&self) -> BTreeSet<String> {
        self.incidents.iter().filter(|(_, i)| i.ended_us.is_none()).map(|(name, _)| name.clone()).collect()
    }

    /// Takes in an event of ALERTS, in the stream's order.
    pub fn apply(&mut self, event: &v1::Event) {
        let at = event.occurred_at_us;
        match &event.payload {
            Some(Payload::AlertRaised(a)) => self.raised(a, at),
            Some(Payload::AlertResolved(a)) => {
                if let Some(incident) = self.incidents.get_mut(&a.incident) {
                    incident.ended_us.get_or_insert(at);
                }
            }
            Some(Payload::AlertDelivered(a)) => {
                for name in &a.incidents {
                    self.delivered(name, a);
                }
            }
            Some(Payload::AlertAcknowledged(a)) => {
                if let Some(incident) = self.incidents.get_mut(&a.incident) {
                    incident.is_acknowledged = true;
                }
            }
            Some(Payload::AlertSilenced(a)) => drop(self.silenced.insert(a.kind.clone(), a.until_us)),
            _ => {}
        }
    }

    fn raised(&mut self, alert: &v1::AlertRaised, at: i64) {
        let severity = Severity::of(&alert.severity);
        let fresh = Incident {
            kind: alert.kind.clone(),
            severity,
            milder: None,
            summary: alert.summary.clone(),
            since_us: at,
            told: None,
            first_told_us: None,
            has: BTreeSet::new(),
            is_acknowledged: false,
            is_escalated: false,
            is_suppressed: false,
            ended_us: None,
        };
        match self.incidents.get_mut(&alert.incident) {
            // Back before its end was told: it never ended.
            Some(known) => {
                known.ended_us = None;
                if severity > known.severity {
                    known.milder = Some((known.severity, at));
                    known.severity = severity;
                }
                known.summary.clone_from(&alert.summary);
            }
            None => drop(self.incidents.insert(alert.incident.clone(), fresh)),
        }
    }

    /// A channel has taken a message. It may say so long after: messages are told apart by when they were composed, which their
    /// ids tell in whole milliseconds.
    fn delivered(&mut self, name: &str, told: &v1::AlertDelivered) {
        let Some(incident) = self.incidents.get_mut(name) else { return };
        let Ok(id) = told.notice.parse::<EventId>() else { return };
        let sent_ms = id.millis();
        if sent_ms < incident.since_us / 1_000 {
            // That was another one of this name.
            return;
        }
        let what = match told.what.as_str() {
            "resolved" if incident.ended_us.is_some_and(|ended| ended / 1_000 <= sent_ms) => return self.forget(name),
            // It is back since.
            "resolved" => return,
            "escalated" => What::Escalated,
            "reminder" => What::Reminder,
            _ => What::Raised,
        };
        let told_ms = incident.told.map(|(at, ..)| at / 1_000);
        if told_ms.is_some_and(|before| sent_ms < before) {
            return;
        }
        if told_ms != Some(sent_ms) {
            let severity = match incident.milder {
                Some((milder, until)) if sent_ms < until / 1_000 => milder,
                _ => incident.severity,
            };
            incident.told = Some((sent_ms * 1_000, severity, what));
            incident.has.clear();
        }
        incident.has.insert(told.channel.clone());
        incident.first_told_us.get_or_insert(sent_ms * 1_000);
        incident.is_escalated |= what == What::Escalated;
    }

    fn forget(&mut self, name: &str) {
        let Some(incident) = self.incidents.remove(name) else { return };
        if let Some((at, severity, _)) = incident.told {
            if self.recent.len() >= MOST_REMEMBERED {
                self.recent.pop_first();
            }
            self.recent.insert(name.to_owned(), (at, severity));
        }
    }

    fn is_silenced(&self, kind: &str, now: i64) -> bool {
        ["all", kind].iter().any(|k| self.silenced.get(*k).is_some_and(|until| now < *until))
    }

    /// A new one delivers from now on: what was told to some channels only is told to the others, too.
    #[must_use]
    pub fn left_over(&self, now: i64, channels: &BTreeSet<String>) -> Vec<Notice> {
        let is_half_told = |(_, incident): &(&String, &Incident)| {
            incident.told.is_some_and(|(at, ..)| now - at < STALE) && !incident.has.is_superset(channels)
        };
        let open = self.incidents.iter().filter(|(_, i)| i.ended_us.is_none());
        open.filter(is_half_told)
            .map(|(name, incident)| {
                let (told_us, what) = incident.told.map_or((now, What::Raised), |(at, _, what)| (at, what));
                // The same message, for those who have not had it.
                let mut notice = self.notice(&incident.kind, what, std::slice::from_ref(name), told_us);
                notice.has.clone_from(&incident.has);
                notice
            })
            .collect()
    }

    /// The messages that are due, and which incidents are held back for the first time, with the reason. What is handed out
    /// counts as told.
    pub fn due(&mut self, now: i64) -> (Vec<Notice>, Vec<v1::AlertSuppressed>) {
        self.recent.retain(|_, (at, _)| now - *at < self.rules.rate_limit_us);
        self.silenced.retain(|_, until| now < *until);
        for sent in self.sent.values_mut() {
            sent.retain(|at| now - *at < self.rules.rate_limit_us);
        }
        let mut groups: BTreeMap<(String, What), Vec<String>> = BTreeMap::new();
        let (mut suppressed, mut gone) = (Vec::new(), Vec::new());
        for (name, incident) in &self.incidents {
            match self.what_is_due(name, incident, now) {
                Due::Tell(what) => groups.entry((incident.kind.clone(), what)).or_default().push(name.clone()),
                Due::Forget => gone.push(name.clone()),
                Due::Hold(reason) if !incident.is_suppressed => {
                    let (kind, incident) = (incident.kind.clone(), name.clone());
                    suppressed.push(v1::AlertSuppressed { kind, incident, reason: reason.to_owned() });
                }
                Due::Hold(_) | Due::Nothing => {}
            }
        }
        for held in &suppressed {
            if let Some(incident) = self.incidents.get_mut(&held.incident) {
                incident.is_suppressed = true;
            }
        }
        for name in gone {
            if let Some(incident) = self.incidents.get(&name) {
                *self.untold.entry(incident.kind.clone()).or_default() += 1;
            }
            self.forget(&name);
        }
        let mut notices = Vec::new();
        for ((kind, what), names) in groups {
            let mut notice = self.notice(&kind, what, &names, now);
            notice.suppressed = self.untold.remove(&kind).unwrap_or(0);
            self.told(&notice, now);
            notices.push(notice);
        }
        (notices, suppressed)
    }

    fn what_is_due(&self, name: &str, incident: &Incident, now: i64) -> Due {
        let is_silenced = self.is_silenced(&incident.kind, now);
        let Some((told_us, told_as, _)) = incident.told else {
            if incident.ended_us.is_some() {
                return Due::Forget;
            }
            if now - incident.since_us < GROUP_WITHIN {
                return Due::Nothing;
            }
            let is_known = self.recent.get(name).is_some_and(|(_, severity)| *severity >= incident.severity);
            let is_many = self.sent.get(&incident.kind).is_some_and(|sent| sent.len() >= MOST_OF_A_KIND);
            return match (is_silenced, is_known || is_many) {
                (true, _) => Due::Hold("silenced"),
                (false, true) => Due::Hold("rate limit"),
                (false, false) => Due::Tell(What::Raised),
            };
        };
        if let Some(ended_us) = incident.ended_us {
            return if now - ended_us < GROUP_WITHIN { Due::Nothing } else { Due::Tell(What::Resolved) };
        }
        if is_silenced || incident.is_acknowledged {
            return Due::Nothing;
        }
        let first_us = incident.first_told_us.unwrap_or(told_us);
        let is_ignored = incident.severity == Severity::Critical
            && !incident.is_escalated
            && now - first_us >= self.rules.escalate_us;
        if incident.severity > told_as || is_ignored {
            return Due::Tell(What::Escalated);
        }
        if now - told_us >= self.rules.remind_us { Due::Tell(What::Reminder) } else { Due::Nothing }
    }

    fn told(&mut self, notice: &Notice, now: i64) {
        for line in &notice.incidents {
            if notice.what == What::Resolved {
                self.forget(&line.incident);
                continue;
            }
            let Some(incident) = self.incidents.get_mut(&line.incident) else { continue };
            incident.told = Some((now, incident.severity, notice.what));
            incident.first_told_us.get_or_insert(now);
            incident.has.clear();
            incident.is_escalated |= notice.what == What::Escalated;
        }
        if notice.what != What::Resolved {
            self.sent.entry(notice.kind.clone()).or_default().push_back(now);
        }
    }

    fn notice(&self, kind: &str, what: What, names: &[String], now: i64) -> Notice {
        let known = names.iter().filter_map(|n| Some((n, self.incidents.get(n)?)));
        let incidents: Vec<Line> = known
            .clone()
            .map(|(n, i)| Line { incident: n.clone(), summary: i.summary.clone(), since_us: i.since_us })
            .collect();
        let id = EventId::derive(now, &[what.as_str().as_bytes(), names.join(" ").as_bytes()]);
        Notice {
            id: id.to_string(),
            kind: kind.to_owned(),
            what,
            severity: known.clone().map(|(_, i)| i.severity).max().unwrap_or(Severity::Warning),
            since_us: known.map(|(_, i)| i.since_us).min().unwrap_or(now),
            incidents,
            suppressed: 0,
            at_us: now,
            has: BTreeSet::new(),
        }
    }
}

enum Due {
    Nothing,
    Tell(What),
    /// Not now, for this reason.
    Hold(&'static str),
    /// It came and went.
    Forget,
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
