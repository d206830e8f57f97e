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
mod tests {
    use std::str::FromStr as _;

    use super::*;

    fn event(at: i64, payload: Payload) -> v1::Event {
        v1::Event { occurred_at_us: at * SECOND, payload: Some(payload), ..v1::Event::default() }
    }

    fn raise(desk: &mut Desk, at: i64, subject: &str, severity: &str) {
        let alert = v1::AlertRaised {
            kind: "shard_lost".into(),
            incident: format!("shard_lost:{subject}"),
            severity: severity.into(),
            summary: format!("shard {subject} lost"),
        };
        desk.apply(&event(at, Payload::AlertRaised(alert)));
    }

    fn resolve(desk: &mut Desk, at: i64, subject: &str) {
        let (kind, incident) = ("shard_lost".into(), format!("shard_lost:{subject}"));
        desk.apply(&event(at, Payload::AlertResolved(v1::AlertResolved { kind, incident })));
    }

    /// `channel` has taken the message about shard a that was composed at `sent`.
    fn delivered(sent: i64, channel: &str, what: What) -> Payload {
        let notice = EventId::derive(sent * SECOND, &[what.as_str().as_bytes()]).to_string();
        let (kind, channel, what) = ("shard_lost".into(), channel.to_owned(), what.as_str().to_owned());
        let incidents = vec!["shard_lost:a".to_owned()];
        Payload::AlertDelivered(v1::AlertDelivered { kind, notice, channel, incidents, what, ..Default::default() })
    }

    /// Why, and how many incidents: each message that is due then.
    fn due(desk: &mut Desk, at: i64) -> Vec<(What, usize)> {
        desk.due(at * SECOND).0.iter().map(|n| (n.what, n.incidents.len())).collect()
    }

    #[test]
    fn many_of_a_kind_at_once_are_one_message_and_so_is_their_end() {
        let mut desk = Desk::default();
        for n in 0..20 {
            raise(&mut desk, 100, &n.to_string(), "critical");
        }
        assert_eq!(due(&mut desk, 100), [], "more may be coming");
        assert_eq!(due(&mut desk, 101), [(What::Raised, 20)]);
        assert_eq!(due(&mut desk, 102), []);
        for n in 0..20 {
            resolve(&mut desk, 110, &n.to_string());
        }
        assert_eq!(due(&mut desk, 111), [(What::Resolved, 20)]);
        assert_eq!((due(&mut desk, 112), desk.open().len()), (vec![], 0));
    }

    #[test]
    fn the_same_again_waits_for_the_rate_limit_and_worse_does_not() {
        let mut desk = Desk::default();
        raise(&mut desk, 100, "a", "warning");
        assert_eq!(due(&mut desk, 101), [(What::Raised, 1)]);
        resolve(&mut desk, 102, "a");
        assert_eq!(due(&mut desk, 103), [(What::Resolved, 1)]);
        raise(&mut desk, 110, "a", "warning");
        let (notices, held) = desk.due(112 * SECOND);
        assert_eq!((notices.len(), held.len(), held[0].reason.as_str()), (0, 1, "rate limit"));
        assert_eq!(desk.due(113 * SECOND).1.len(), 0, "said once");
        raise(&mut desk, 114, "a", "critical");
        assert_eq!(due(&mut desk, 115), [(What::Raised, 1)], "it got worse");
    }

    #[test]
    fn what_came_and_went_untold_is_counted_in_the_next_message() {
        let mut desk = Desk::default();
        raise(&mut desk, 100, "a", "critical");
        assert_eq!(due(&mut desk, 101).len(), 1);
        resolve(&mut desk, 102, "a");
        assert_eq!(due(&mut desk, 104).len(), 1);
        raise(&mut desk, 110, "a", "critical");
        assert_eq!(due(&mut desk, 112), []);
        resolve(&mut desk, 113, "a");
        assert_eq!(due(&mut desk, 115), []);
        raise(&mut desk, 120, "b", "critical");
        let (notices, _) = desk.due(122 * SECOND);
        assert_eq!((notices.len(), notices[0].suppressed), (1, 1));
    }

    #[test]
    fn more_than_a_few_of_a_kind_wait_and_come_as_one_list() {
        let mut desk = Desk::default();
        for n in 0..8 {
            raise(&mut desk, 100 + 2 * n, &n.to_string(), "critical");
            due(&mut desk, 101 + 2 * n);
        }
        assert_eq!(due(&mut desk, 402), [(What::Raised, 3)], "the first is out of the window");
    }

    #[test]
    fn a_critical_one_that_nobody_acknowledges_escalates_once_and_reminders_go_on() {
        let mut desk = Desk::default();
        raise(&mut desk, 0, "a", "critical");
        raise(&mut desk, 0, "b", "critical");
        assert_eq!(due(&mut desk, 1), [(What::Raised, 2)]);
        let (kind, incident, operator) = ("shard_lost".into(), "shard_lost:b".into(), "ann".into());
        let seen = v1::AlertAcknowledged { kind, incident, operator, false_alarm: false };
        desk.apply(&event(5, Payload::AlertAcknowledged(seen)));
        assert_eq!(due(&mut desk, 900), []);
        assert_eq!(due(&mut desk, 901), [(What::Escalated, 1)], "not the acknowledged one");
        assert_eq!(due(&mut desk, 4_500), []);
        assert_eq!(due(&mut desk, 4_501), [(What::Reminder, 1)]);
    }

    #[test]
    fn a_silenced_kind_is_told_when_the_silence_ends_if_it_lasts() {
        let mut desk = Desk::default();
        let silence = v1::AlertSilenced { kind: "all".into(), until_us: 200 * SECOND, operator: "ann".into() };
        desk.apply(&event(50, Payload::AlertSilenced(silence)));
        raise(&mut desk, 100, "a", "critical");
        raise(&mut desk, 100, "b", "critical");
        let (notices, held) = desk.due(102 * SECOND);
        assert_eq!((notices.len(), held.len()), (0, 2));
        resolve(&mut desk, 150, "b");
        assert_eq!(due(&mut desk, 199), []);
        assert_eq!(due(&mut desk, 200), [(What::Raised, 1)]);
    }

    /// Who takes over folds the same events: what was told is not told again, but to channels that have not had it.
    #[test]
    fn after_a_restart_only_what_was_not_delivered_is_sent() {
        let mut desk = Desk::default();
        raise(&mut desk, 100, "a", "critical");
        raise(&mut desk, 100, "b", "critical");
        desk.apply(&event(102, delivered(101, "slack", What::Raised)));
        let channels: BTreeSet<String> = ["slack", "file"].map(str::to_owned).into();
        let left = desk.left_over(103 * SECOND, &channels);
        assert_eq!((left.len(), left[0].incidents[0].incident.as_str()), (1, "shard_lost:a"));
        assert_eq!(left[0].has, ["slack".to_owned()].into());
        assert_eq!(due(&mut desk, 103), [(What::Raised, 1)], "b, of which nobody heard");
        let second = EventId::from_str(&left[0].id).unwrap().millis();
        assert_eq!(second, 101_000, "it is the same message");
        desk.apply(&event(104, delivered(101, "file", What::Raised)));
        assert_eq!(desk.left_over(105 * SECOND, &channels).len(), 1, "b is in no channel's hands yet");
    }

    /// A channel was slow, or the log away: what it took then is about an incident that is over.
    #[test]
    fn a_late_delivery_is_not_taken_for_one_of_a_newer_incident() {
        let mut desk = Desk::default();
        raise(&mut desk, 100, "a", "critical");
        assert_eq!(due(&mut desk, 101), [(What::Raised, 1)]);
        resolve(&mut desk, 102, "a");
        assert_eq!(due(&mut desk, 103), [(What::Resolved, 1)]);
        raise(&mut desk, 500, "a", "critical");
        desk.apply(&event(501, delivered(101, "slack", What::Raised)));
        assert_eq!(due(&mut desk, 502), [(What::Raised, 1)], "nobody was told of this one");
        desk.apply(&event(503, delivered(103, "slack", What::Resolved)));
        assert_eq!(desk.open().len(), 1, "this one lasts");
        resolve(&mut desk, 504, "a");
        raise(&mut desk, 505, "a", "critical");
        desk.apply(&event(506, delivered(504, "slack", What::Resolved)));
        assert_eq!(desk.open().len(), 1, "it was back when that was told");
    }

    /// Who takes over knows that people were told of a warning, not of what became of it.
    #[test]
    fn what_got_worse_before_its_delivery_was_written_down_still_escalates() {
        let mut desk = Desk::default();
        raise(&mut desk, 100, "a", "warning");
        raise(&mut desk, 102, "a", "critical");
        desk.apply(&event(103, delivered(101, "slack", What::Raised)));
        assert_eq!(due(&mut desk, 104), [(What::Escalated, 1)]);
    }

    #[test]
    fn an_older_message_that_a_slow_channel_takes_undoes_nothing() {
        let mut desk = Desk::default();
        raise(&mut desk, 0, "a", "critical");
        assert_eq!(due(&mut desk, 1), [(What::Raised, 1)]);
        assert_eq!(due(&mut desk, 901), [(What::Escalated, 1)]);
        desk.apply(&event(902, delivered(901, "slack", What::Escalated)));
        desk.apply(&event(903, delivered(1, "webhook", What::Raised)));
        let channels: BTreeSet<String> = ["slack".to_owned()].into();
        assert_eq!(desk.left_over(904 * SECOND, &channels).len(), 0, "the last message is in its hands");
    }
}
