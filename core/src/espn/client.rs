//! Asking ESPN: one deadline and one size bound for every answer, and nothing asked for again before it can have changed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arbees_proto::{GameId, League};
use chrono::{DateTime, Days, Utc};
use reqwest::StatusCode;
use reqwest::header::{CACHE_CONTROL, ETAG, HeaderMap, IF_NONE_MATCH};

use super::parse::{ParseError, Slate, parse_scoreboard, parse_summary};
use crate::breaker::{Breaker, Limits};
use crate::config::Env;
use crate::retry::Policy;

/// An answer later than this is worth nothing: the next poll is due.
const DEADLINE: Duration = Duration::from_secs(5);
/// Bodies reach 1 MB in the recordings; a summary with every play is the largest.
const MAX_BODY: usize = 16 << 20;
/// Longest `max-age` that is honoured: a scoreboard may not be believed for longer, whatever a cache says.
const MAX_AGE: Duration = Duration::from_secs(30);

/// How soon it is asked again when a connection broke.
const AGAIN: Policy =
    Policy { first: Duration::from_millis(200), most: Duration::from_millis(200), jitter: 0.5, tries: Some(2) };

/// Why there is no scoreboard.
#[derive(Debug, thiserror::Error)]
pub enum EspnError {
    #[error("{league}: {why}")]
    Away { league: League, why: String, is_late: bool },
    #[error("{league}: answered {status}")]
    Status { league: League, status: u16 },
    #[error("{league}: body is larger than {} MiB", MAX_BODY >> 20)]
    TooLarge { league: League },
    #[error("{league}: {source}")]
    Body { league: League, source: ParseError },
    #[error("{league}: not asked, after {failures} failures in a row")]
    Resting { league: League, failures: u32 },
}

impl EspnError {
    /// What it was, in a word.
    const fn outcome(&self) -> &'static str {
        match self {
            Self::Away { .. } => "away",
            Self::Status { .. } => "status",
            Self::TooLarge { .. } => "too large",
            Self::Body { .. } => "unreadable",
            Self::Resting { .. } => "not asked",
        }
    }

    /// Whether the server, and not the question, is to blame.
    const fn is_servers_fault(&self) -> bool {
        match self {
            Self::Status { status, .. } => *status >= 500 || *status == 429 || *status == 408,
            Self::Away { .. } | Self::TooLarge { .. } | Self::Body { .. } => true,
            Self::Resting { .. } => false,
        }
    }
}

/// Where ESPN is, and when it is left alone.
#[derive(Clone, Debug)]
pub struct EspnConfig {
    /// `ESPN_BASE_URL`.
    pub url: String,
    /// `ESPN_CB_FAILURE_THRESHOLD` and `ESPN_CB_RECOVERY_TIMEOUT_SECS`: of each endpoint of each league.
    pub breaker: Limits,
}

impl EspnConfig {
    /// The server at `url`, with the limits of the contract.
    #[must_use]
    pub fn at(url: &str) -> Self {
        Self { url: url.to_owned(), breaker: Limits { failures: 5, rest: Duration::from_secs(60) } }
    }

    /// Reads it.
    pub fn read<F: Fn(&str) -> Option<String>>(env: &mut Env<F>) -> Self {
        Self {
            url: env.url("ESPN_BASE_URL", super::BASE_URL, &["http://", "https://"]),
            breaker: Limits {
                failures: env.number("ESPN_CB_FAILURE_THRESHOLD", 5, 1..=1_000),
                rest: env.seconds("ESPN_CB_RECOVERY_TIMEOUT_SECS", 60.0, 0.1..=3_600.0),
            },
        }
    }
}

/// A client for all leagues. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Espn {
    http: reqwest::Client,
    base: Arc<str>,
    last: Arc<Mutex<BTreeMap<League, Last>>>,
    limits: Limits,
    breakers: Arc<Mutex<BTreeMap<(League, Endpoint), Breaker>>>,
}

/// What can be asked of a league.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Endpoint {
    Scoreboard,
    Summary,
}

impl Endpoint {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Scoreboard => "scoreboard",
            Self::Summary => "summary",
        }
    }
}

/// The last answer of a league: repeated while it is fresh, or when the server says that it still holds.
#[derive(Clone, Debug)]
struct Last {
    url: String,
    etag: Option<String>,
    fresh_until: Instant,
    slate: Arc<Slate>,
}

impl Espn {
    /// A client.
    ///
    /// # Errors
    /// When no TLS can be set up.
    pub fn new(config: &EspnConfig) -> Result<Self, reqwest::Error> {
        crate::install_tls();
        let http = reqwest::Client::builder()
            .timeout(DEADLINE)
            .pool_max_idle_per_host(League::ALL.len())
            .user_agent(concat!("arbees/", env!("CARGO_PKG_VERSION")))
            .build()?;
        let base = config.url.trim_end_matches('/').into();
        Ok(Self { http, base, last: Arc::default(), limits: config.breaker, breakers: Arc::default() })
    }

    fn with_breaker<T>(&self, league: League, endpoint: Endpoint, what: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut breakers = self.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        let breaker = breakers.entry((league, endpoint)).or_insert_with(|| Breaker::new(self.limits));
        let result = what(breaker);
        let (league, endpoint, is_open) = (league.as_str(), endpoint.as_str(), f64::from(u8::from(breaker.is_open())));
        ::metrics::gauge!("arbees_espn_breaker_open", "league" => league, "endpoint" => endpoint).set(is_open);
        result
    }

    /// Asks, unless the endpoint rests, and notes what came of it.
    async fn guarded<T, Fut>(
        &self,
        league: League,
        endpoint: Endpoint,
        mut asking: impl FnMut() -> Fut,
    ) -> Result<T, EspnError>
    where
        Fut: Future<Output = Result<T, EspnError>>,
    {
        if !self.with_breaker(league, endpoint, |b| b.may_try(Instant::now())) {
            return Err(EspnError::Resting { league, failures: self.limits.failures });
        }
        let began = Instant::now();
        let mut answer = asking().await;
        if matches!(answer, Err(EspnError::Away { is_late: false, .. })) {
            // A connection that broke is a hiccup once. Both tries count as one.
            tokio::time::sleep(AGAIN.delays().next_delay()).await;
            answer = asking().await;
        }
        ::metrics::histogram!("arbees_espn_request_seconds", "league" => league.as_str()).record(began.elapsed());
        let outcome = match &answer {
            Ok(_) => "answered",
            Err(error) => error.outcome(),
        };
        ::metrics::counter!("arbees_espn_requests_total", "league" => league.as_str(), "outcome" => outcome)
            .increment(1);
        match &answer {
            Err(error) if error.is_servers_fault() => {
                if self.with_breaker(league, endpoint, |b| b.failed(Instant::now())) {
                    let rest_s = self.limits.rest.as_secs_f64();
                    tracing::warn!(%league, ?endpoint, rest_s, %error, "breaker opened");
                }
            }
            _ => {
                if self.with_breaker(league, endpoint, Breaker::ok) {
                    tracing::info!(%league, ?endpoint, "breaker closed");
                }
            }
        }
        answer
    }

    /// The scoreboard of `league` from yesterday to tomorrow. The same `Arc` again means that nothing changed.
    ///
    /// # Errors
    /// When there is no readable answer.
    pub async fn scoreboard(&self, league: League, now: DateTime<Utc>) -> Result<Arc<Slate>, EspnError> {
        self.guarded(league, Endpoint::Scoreboard, || self.ask_scoreboard(league, now)).await
    }

    async fn ask_scoreboard(&self, league: League, now: DateTime<Utc>) -> Result<Arc<Slate>, EspnError> {
        let url = format!("{}/{}/scoreboard?{}", self.base, league.espn_path(), query(league, now));
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).get(&league).cloned();
        let last = last.filter(|l| l.url == url);
        if let Some(fresh) = last.as_ref().filter(|l| Instant::now() < l.fresh_until) {
            return Ok(fresh.slate.clone());
        }
        let mut request = self.http.get(&url);
        if let Some(etag) = last.as_ref().and_then(|l| l.etag.as_deref()) {
            request = request.header(IF_NONE_MATCH, etag);
        }
        let answer = request.send().await.map_err(|e| away(league, e))?;
        let headers = answer.headers().clone();
        let slate = match (answer.status(), last) {
            (StatusCode::NOT_MODIFIED, Some(last)) => last.slate,
            (StatusCode::OK, _) => {
                let body = read_body(league, answer).await?;
                Arc::new(parse_scoreboard(league, &body).map_err(|source| EspnError::Body { league, source })?)
            }
            (status, _) => return Err(EspnError::Status { league, status: status.as_u16() }),
        };
        let etag = headers.get(ETAG).and_then(|v| v.to_str().ok()).map(ToOwned::to_owned);
        let last = Last { url, etag, fresh_until: Instant::now() + max_age(&headers), slate: slate.clone() };
        self.last.lock().unwrap_or_else(PoisonError::into_inner).insert(league, last);
        Ok(slate)
    }

    /// One game, asked for by id.
    ///
    /// # Errors
    /// When there is no readable answer.
    pub async fn game(&self, id: &GameId) -> Result<Slate, EspnError> {
        self.guarded(id.league(), Endpoint::Summary, || self.ask_summary(id)).await
    }

    async fn ask_summary(&self, id: &GameId) -> Result<Slate, EspnError> {
        let league = id.league();
        let url = format!("{}/{}/summary?event={}", self.base, league.espn_path(), id.event());
        let answer = self.http.get(&url).send().await.map_err(|e| away(league, e))?;
        if answer.status() != StatusCode::OK {
            return Err(EspnError::Status { league, status: answer.status().as_u16() });
        }
        let body = read_body(league, answer).await?;
        parse_summary(league, &body).map_err(|source| EspnError::Body { league, source })
    }
}

/// Yesterday to tomorrow in US Eastern, by which ESPN dates its slates; for college the group that returns all games.
fn query(league: League, now: DateTime<Utc>) -> String {
    let today = now.with_timezone(&chrono_tz::America::New_York).date_naive();
    let from = today.checked_sub_days(Days::new(1)).unwrap_or(today).format("%Y%m%d");
    let to = today.checked_add_days(Days::new(1)).unwrap_or(today).format("%Y%m%d");
    let group = match league {
        League::Ncaaf => "&groups=80",
        League::Ncaab => "&groups=50",
        _ => "",
    };
    format!("dates={from}-{to}&limit=1000{group}")
}

async fn read_body(league: League, mut answer: reqwest::Response) -> Result<Vec<u8>, EspnError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|e| away(league, e))? {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(EspnError::TooLarge { league });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn max_age(headers: &HeaderMap) -> Duration {
    let directives = headers.get(CACHE_CONTROL).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let seconds = directives.split(',').find_map(|d| d.trim().strip_prefix("max-age=")?.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0)).min(MAX_AGE)
}

/// A reqwest error in full: its own text hides the cause.
fn away(league: League, error: reqwest::Error) -> EspnError {
    let is_late = error.is_timeout();
    let mut why = error.without_url().to_string();
    if why.is_empty() {
        "no answer".clone_into(&mut why);
    }
    EspnError::Away { league, why, is_late }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slate_is_yesterday_to_tomorrow_in_us_eastern() {
        let now = DateTime::parse_from_rfc3339("2026-03-01T03:30:00Z").unwrap().to_utc();
        assert_eq!(query(League::Nba, now), "dates=20260227-20260301&limit=1000");
        assert!(query(League::Ncaab, now).ends_with("&groups=50"));
    }
}
