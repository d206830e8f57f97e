//! Recorded bodies played back: the first one is now, gaps are divided by the speed, and long ones play as 5 s.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};

use super::Show;

/// No gap between two bodies plays longer than this.
const LONGEST_GAP: Duration = Duration::from_secs(5);

/// The recordings below a folder, by league.
#[derive(Debug)]
pub struct Playback {
    begun: Instant,
    leagues: BTreeMap<String, Vec<Frame>>,
}

/// One body, and when it is shown.
#[derive(Debug)]
struct Frame {
    at: Duration,
    body: Bytes,
    /// Its events by id, for summaries.
    events: BTreeMap<String, Value>,
}

/// A line of the index.
#[derive(Clone, Debug)]
struct Row {
    file: PathBuf,
    league: String,
    sequence: Option<(String, u32)>,
    recorded_at: Option<DateTime<Utc>>,
    events: u32,
}

impl Playback {
    /// Reads what lies below `folder`, which is the folder of an index or lies in one. Its time begins now.
    ///
    /// # Errors
    /// When there is no index, or nothing of it lies there.
    pub fn read(folder: &Path, speed: f64) -> Result<Self> {
        let folder = folder.canonicalize().with_context(|| format!("there is no folder {}", folder.display()))?;
        let root = folder.ancestors().find(|a| a.join("index.tsv").is_file());
        let root = root.with_context(|| format!("no index.tsv in {} or above it", folder.display()))?;
        let mut by_league: BTreeMap<String, Vec<Row>> = BTreeMap::new();
        for row in index(root)? {
            if root.join(&row.file).starts_with(&folder) {
                by_league.entry(row.league.clone()).or_default().push(row);
            }
        }
        if by_league.is_empty() {
            bail!("no recording of {} lies below {}", root.join("index.tsv").display(), folder.display());
        }
        let now = Utc::now();
        let mut leagues = BTreeMap::new();
        for (league, rows) in by_league {
            leagues.insert(league, frames(root, rows, speed, now)?);
        }
        Ok(Self { begun: Instant::now(), leagues })
    }

    /// How long it plays until the last body shows.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.leagues.values().filter_map(|f| f.last()).map(|f| f.at).max().unwrap_or_default()
    }

    fn frames_so_far(&self, path: &str) -> &[Frame] {
        let frames = self.leagues.get(path).map_or(&[][..], Vec::as_slice);
        let elapsed = self.begun.elapsed();
        &frames[..frames.partition_point(|f| f.at <= elapsed)]
    }
}

impl Show for Playback {
    fn begin(&mut self) {
        self.begun = Instant::now();
    }

    fn scoreboard(&self, path: &str) -> Option<Bytes> {
        self.frames_so_far(path).last().map(|f| f.body.clone())
    }

    fn summary(&self, path: &str, event: &str) -> Option<Bytes> {
        let shown = self.frames_so_far(path).iter().rev().find_map(|f| f.events.get(event))?;
        Some(json!({ "header": shown }).to_string().into())
    }
}

fn index(root: &Path) -> Result<Vec<Row>> {
    let path = root.join("index.tsv");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut rows = Vec::new();
    for (number, line) in text.lines().enumerate().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [file, league, sequence, order, recorded_at, events] = fields.as_slice() else {
            bail!("{}:{}: {} fields where 6 belong", path.display(), number + 1, fields.len());
        };
        rows.push(Row {
            file: file.into(),
            league: (*league).to_owned(),
            sequence: order.parse().ok().map(|order| ((*sequence).to_owned(), order)),
            recorded_at: DateTime::parse_from_rfc3339(recorded_at).ok().map(|t| t.to_utc()),
            events: events.parse().unwrap_or(0),
        });
    }
    Ok(rows)
}

/// The frames of one league: its sequences one after the other; without any, the fullest single body.
fn frames(root: &Path, rows: Vec<Row>, speed: f64, now: DateTime<Utc>) -> Result<Vec<Frame>> {
    let (mut sequence, single): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|r| r.sequence.is_some());
    if sequence.is_empty() {
        sequence.extend(single.into_iter().max_by_key(|r| r.events));
    }
    sequence.sort_by(|a, b| a.sequence.cmp(&b.sequence));
    let mut bodies = Vec::new();
    for row in &sequence {
        let path = root.join(&row.file);
        let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let body: Value = serde_json::from_slice(&bytes).with_context(|| format!("parsing {}", path.display()))?;
        bodies.push(body);
    }
    let recorded: Vec<_> =
        sequence.iter().zip(&bodies).map(|(r, b)| r.recorded_at.or_else(|| earliest(b)).unwrap_or(now)).collect();
    let timeline = Timeline::new(&recorded, speed);
    let shown = bodies.into_iter().zip(&timeline.plays);
    Ok(shown.map(|(body, at)| timeline.frame(body, *at, now)).collect())
}

/// From recorded time to played time.
struct Timeline {
    recorded: Vec<DateTime<Utc>>,
    plays: Vec<Duration>,
    speed: f64,
}

impl Timeline {
    fn new(recorded: &[DateTime<Utc>], speed: f64) -> Self {
        let mut plays = vec![Duration::ZERO];
        for pair in recorded.windows(2) {
            let gap = (pair[1] - pair[0]).to_std().unwrap_or_default().div_f64(speed).min(LONGEST_GAP);
            plays.push(plays[plays.len() - 1] + gap);
        }
        Self { recorded: recorded.to_vec(), plays, speed }
    }

    /// When a recorded moment plays, in seconds after the begin: between two bodies in proportion, outside by the speed.
    fn play(&self, at: DateTime<Utc>) -> f64 {
        let seconds = |d: TimeDelta| d.as_seconds_f64();
        let after = self.recorded.partition_point(|r| *r <= at);
        if after == 0 {
            return seconds(at - self.recorded[0]) / self.speed;
        }
        let (from, begin) = (self.recorded[after - 1], self.plays[after - 1].as_secs_f64());
        match (self.recorded.get(after), self.plays.get(after)) {
            (Some(to), Some(end)) => {
                let share = seconds(at - from) / seconds(*to - from);
                begin + share * (end.as_secs_f64() - begin)
            }
            _ => begin + seconds(at - from) / self.speed,
        }
    }

    fn frame(&self, mut body: Value, at: Duration, now: DateTime<Utc>) -> Frame {
        let mut events = BTreeMap::new();
        for event in events_of(&mut body).into_iter().flatten() {
            for pointer in ["/date", "/endDate", "/competitions/0/date", "/competitions/0/startDate"] {
                if let Some(date) = event.pointer_mut(pointer)
                    && let Some(recorded) = date.as_str().and_then(parse_date)
                {
                    let millis = self.play(recorded) * 1_000.0;
                    #[allow(clippy::cast_possible_truncation)]
                    let shifted = now + TimeDelta::milliseconds(millis as i64);
                    *date = json!(shifted.to_rfc3339_opts(SecondsFormat::Secs, true));
                }
            }
            let id = event["id"].as_str().unwrap_or_default().to_owned();
            events.insert(id, event.clone());
        }
        Frame { at, body: body.to_string().into(), events }
    }
}

/// The events in either envelope.
fn events_of(body: &mut Value) -> Option<&mut Vec<Value>> {
    let pointer = if body.get("events").is_some() { "/events" } else { "/content/sbData/events" };
    body.pointer_mut(pointer)?.as_array_mut()
}

fn earliest(body: &Value) -> Option<DateTime<Utc>> {
    let events = body.get("events").or_else(|| body.pointer("/content/sbData/events"))?.as_array()?;
    events.iter().filter_map(|e| parse_date(e["date"].as_str()?)).min()
}

fn parse_date(text: &str) -> Option<DateTime<Utc>> {
    let with_seconds = text.strip_suffix('Z').filter(|t| t.len() == 16).map(|t| format!("{t}:00Z"));
    DateTime::parse_from_rfc3339(with_seconds.as_deref().unwrap_or(text)).ok().map(|t| t.to_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        parse_date(text).unwrap()
    }

    #[test]
    fn gaps_shrink_by_the_speed_and_never_play_longer_than_five_seconds() {
        let recorded = [at("2025-06-01T00:00Z"), at("2025-06-01T00:01Z"), at("2025-06-03T00:01Z")];
        let timeline = Timeline::new(&recorded, 60.0);
        assert_eq!(timeline.plays, [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(6)]);
        assert!((timeline.play(at("2025-06-02T00:01Z")) - 3.5).abs() < 1e-9, "half of the long gap");
        assert!((timeline.play(at("2025-05-31T23:59Z")) + 1.0).abs() < 1e-9, "before the first, by the speed");
        assert!((timeline.play(at("2025-06-03T00:03Z")) - 8.0).abs() < 1e-9, "after the last, by the speed");
    }
}
