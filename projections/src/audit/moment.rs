//! A moment that somebody asks about: a time, or a sequence of CONTROL.

use chrono::{DateTime, Duration, NaiveDate, NaiveDateTime, NaiveTime, TimeZone, Utc};
use serde::Serialize;

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    Now,
    /// Right after the event with this sequence.
    Sequence(u64),
    /// Microseconds since the Unix epoch.
    Time(i64),
}

const ALLOWED: &str = "allowed are now, a sequence as in 1234, RFC 3339 as in 2026-11-22T21:04:00Z, local time as in \
                       '2026-11-22 21:04' or 21:04:30 (today), and a while ago as in 90s, 5m or 2h";

impl Moment {
    /// Reads `text`, with local times as `zone` has them.
    ///
    /// # Errors
    /// A text for people: what is wrong, and what is allowed.
    pub fn parse<Z: TimeZone>(text: &str, zone: &Z, now: DateTime<Utc>) -> Result<Self, String> {
        let text = text.trim();
        if text == "now" {
            return Ok(Self::Now);
        }
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().map(Self::Sequence).map_err(|_| format!("{text} is too large for a sequence"));
        }
        if let Ok(time) = DateTime::parse_from_rfc3339(text) {
            return Ok(Self::Time(time.timestamp_micros()));
        }
        if let Some(ago) = ago(text) {
            let then = now.checked_sub_signed(ago).ok_or_else(|| format!("{text} ago is before all time"))?;
            return Ok(Self::Time(then.timestamp_micros()));
        }
        let today = now.with_timezone(zone).date_naive();
        let local = local(text, today).ok_or_else(|| format!("{text:?} is no moment: {ALLOWED}"))?;
        match zone.from_local_datetime(&local) {
            chrono::LocalResult::Single(time) => Ok(Self::Time(time.with_timezone(&Utc).timestamp_micros())),
            chrono::LocalResult::None => Err(format!("{local} does not exist here: clocks were set forward over it")),
            chrono::LocalResult::Ambiguous(first, second) => {
                let [first, second] = [first, second].map(|t| t.with_timezone(&Utc).to_rfc3339());
                Err(format!("{local} happened twice here, as clocks were set back: say which, {first} or {second}"))
            }
        }
    }
}

/// `90s`, `5m`, `2h`.
fn ago(text: &str) -> Option<Duration> {
    let number: i64 = text.get(..text.len().checked_sub(1)?)?.parse().ok().filter(|n| *n >= 0)?;
    match text.as_bytes().last()? {
        b's' => Duration::try_seconds(number),
        b'm' => Duration::try_minutes(number),
        b'h' => Duration::try_hours(number),
        _ => None,
    }
}

/// A date and a time of day, or a time of day.
fn local(text: &str, today: NaiveDate) -> Option<NaiveDateTime> {
    let with_date = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"];
    let of_day = ["%H:%M:%S%.f", "%H:%M"];
    let dated = with_date.iter().find_map(|format| NaiveDateTime::parse_from_str(text, format).ok());
    dated.or_else(|| Some(today.and_time(of_day.iter().find_map(|f| NaiveTime::parse_from_str(text, f).ok())?)))
}

#[cfg(test)]
mod tests {
    use chrono::{FixedOffset, LocalResult, Offset as _};

    use super::*;

    /// A zone that sets its clocks back by an hour on 2026-10-25 at 03:00, and forward on 2026-03-29 at 02:00.
    #[derive(Clone, Copy, Debug)]
    struct Zone;

    fn hours(n: i32) -> FixedOffset {
        FixedOffset::east_opt(n * 3_600).unwrap()
    }

    impl TimeZone for Zone {
        type Offset = FixedOffset;
        fn from_offset(_: &FixedOffset) -> Self {
            Self
        }
        fn offset_from_local_date(&self, _: &NaiveDate) -> LocalResult<FixedOffset> {
            LocalResult::Single(hours(1))
        }
        fn offset_from_local_datetime(&self, local: &NaiveDateTime) -> LocalResult<FixedOffset> {
            let text = local.format("%Y-%m-%d %H").to_string();
            match text.as_str() {
                "2026-10-25 02" => LocalResult::Ambiguous(hours(2), hours(1)),
                "2026-03-29 02" => LocalResult::None,
                _ => LocalResult::Single(hours(1).fix()),
            }
        }
        fn offset_from_utc_date(&self, _: &NaiveDate) -> FixedOffset {
            hours(1)
        }
        fn offset_from_utc_datetime(&self, _: &NaiveDateTime) -> FixedOffset {
            hours(1)
        }
    }

    fn parse(text: &str) -> Result<Moment, String> {
        let now = DateTime::parse_from_rfc3339("2026-11-22T20:00:00Z").unwrap().with_timezone(&Utc);
        Moment::parse(text, &Zone, now)
    }

    fn at(rfc3339: &str) -> Moment {
        Moment::Time(DateTime::parse_from_rfc3339(rfc3339).unwrap().timestamp_micros())
    }

    #[test]
    fn times_sequences_and_whiles_are_read() {
        assert_eq!(parse("now"), Ok(Moment::Now));
        assert_eq!(parse("1234"), Ok(Moment::Sequence(1234)));
        assert_eq!(parse("2026-11-22T21:04:00.5+02:00"), Ok(at("2026-11-22T19:04:00.5Z")));
        assert_eq!(parse("2026-11-22 21:04"), Ok(at("2026-11-22T20:04:00Z")));
        assert_eq!(parse("19:30:15"), Ok(at("2026-11-22T18:30:15Z")));
        assert_eq!(parse("5m"), Ok(at("2026-11-22T19:55:00Z")));
    }

    #[test]
    fn an_hour_that_occurs_twice_or_never_is_refused_and_so_is_nonsense() {
        assert!(
            parse("2026-10-25 02:30").unwrap_err().contains("2026-10-25T00:30:00+00:00 or 2026-10-25T01:30:00+00:00")
        );
        assert!(parse("2026-03-29 02:30").unwrap_err().contains("does not exist"));
        for text in ["", "9999999999999s", "yesterday", "-5m", "25:00", "99999999999999999999"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
