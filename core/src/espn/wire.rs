//! ESPN's JSON, as much of it as is used. Everything that has ever been seen to be absent is optional.

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// A scoreboard in either envelope, or an error in the place of one.
#[derive(Deserialize)]
pub(super) struct Body<'a> {
    #[serde(borrow)]
    pub events: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    pub content: Option<Content<'a>>,
    #[serde(borrow)]
    pub header: Option<&'a RawValue>,
    pub error: Option<ErrorBody>,
}

/// The other host's envelope.
#[derive(Deserialize)]
pub(super) struct Content<'a> {
    #[serde(borrow, rename = "sbData")]
    pub scoreboard: Option<Inner<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Inner<'a> {
    #[serde(borrow)]
    pub events: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
pub(super) struct ErrorBody {
    #[serde(default)]
    pub code: i64,
    #[serde(default)]
    pub message: String,
}

/// An event of a scoreboard, or the header of a summary.
#[derive(Deserialize)]
pub(super) struct Event {
    #[serde(deserialize_with = "text")]
    pub id: String,
    pub date: Option<String>,
    pub status: Option<Status>,
    pub season: Option<serde_json::Value>,
    #[serde(default)]
    pub competitions: Vec<Competition>,
}

#[derive(Deserialize, Default)]
pub(super) struct Competition {
    pub date: Option<String>,
    pub status: Option<Status>,
    pub competitors: Option<Vec<Competitor>>,
    pub situation: Option<Situation>,
}

#[derive(Deserialize)]
pub(super) struct Competitor {
    #[serde(rename = "homeAway")]
    pub side: Option<String>,
    #[serde(default, deserialize_with = "score")]
    pub score: Option<u32>,
    pub team: Option<Team>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Team {
    #[serde(default, deserialize_with = "maybe_text")]
    pub id: Option<String>,
    pub display_name: Option<String>,
    pub name: Option<String>,
    pub abbreviation: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Status {
    pub period: Option<u32>,
    #[serde(rename = "displayClock")]
    pub clock: Option<String>,
    #[serde(rename = "type")]
    pub kind: StatusType,
}

#[derive(Deserialize)]
pub(super) struct StatusType {
    pub name: String,
    pub state: String,
    #[serde(default)]
    pub completed: bool,
}

#[derive(Deserialize)]
pub(super) struct Situation {
    #[serde(default, deserialize_with = "maybe_text")]
    pub possession: Option<String>,
    #[serde(rename = "lastPlay")]
    pub last_play: Option<LastPlay>,
}

#[derive(Deserialize)]
pub(super) struct LastPlay {
    pub probability: Option<Probability>,
}

#[derive(Deserialize)]
pub(super) struct Probability {
    #[serde(rename = "homeWinPercentage")]
    pub home: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Loose {
    Text(String),
    Number(f64),
    Object { value: Option<f64> },
    Other(serde::de::IgnoredAny),
}

fn text<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    maybe_text(d)?.ok_or_else(|| serde::de::Error::custom("expected an id"))
}

fn maybe_text<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    Ok(match Option::<Loose>::deserialize(d)? {
        Some(Loose::Text(text)) => Some(text),
        Some(Loose::Number(number)) => Some(number.to_string()),
        _ => None,
    })
}

/// A score is a string, in some bodies a number or an object, and before a start often absent.
fn score<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u32>, D::Error> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let whole = |n: f64| (0.0..=100_000.0).contains(&n).then_some(n as u32);
    Ok(match Option::<Loose>::deserialize(d)? {
        Some(Loose::Text(text)) => text.trim().parse().ok(),
        Some(Loose::Number(number)) => whole(number),
        Some(Loose::Object { value }) => value.and_then(whole),
        Some(Loose::Other(_)) | None => None,
    })
}
