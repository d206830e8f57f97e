//! What is told, and what is not.

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
