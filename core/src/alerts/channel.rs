//! The ways to people: Slack, a webhook of one's own, PagerDuty, short messages, Redis, and a file.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use reqwest::{RequestBuilder, StatusCode};
use ring::hmac;
use serde_json::json;

use super::config::{AlertConfig, Sms};
use super::desk::{Notice, What};
use super::{Severity, file, message};
use crate::bus::{Bus, contract};
use crate::time::now_us;

/// A receiver that does not answer within this is slow, and is tried again.
const DEADLINE: Duration = Duration::from_secs(10);
/// The longest `Retry-After` that is honoured.
const MOST_PATIENCE: Duration = Duration::from_secs(300);
/// What Twilio takes in one message.
const SMS_LENGTH: usize = 320;

/// Why a message did not get through.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Worth another try, after this long if the receiver said so.
    #[error("{why}")]
    Again { why: String, after: Option<Duration> },
    /// It will never be taken.
    #[error("{0}")]
    Refused(String),
}

/// One way to people. Its secrets are in no text of it.
#[derive(Clone)]
pub struct Channel {
    name: String,
    way: Way,
}

#[derive(Clone)]
enum Way {
    Slack {
        http: reqwest::Client,
        url: String,
    },
    Webhook {
        http: reqwest::Client,
        url: String,
        secret: Option<String>,
    },
    PagerDuty {
        http: reqwest::Client,
        url: String,
        key: String,
    },
    /// To one number: a refused one must not keep the others from being told, nor have them told again.
    Sms {
        http: reqwest::Client,
        sms: Sms,
        to: String,
    },
    Redis(Bus),
    File(PathBuf),
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Channel {
    /// All channels that are configured. The file and Redis always are.
    ///
    /// # Errors
    /// When no TLS can be set up.
    pub fn all(config: &AlertConfig, bus: Option<&Bus>) -> Result<Vec<Self>, reqwest::Error> {
        crate::install_tls();
        // A redirect could carry a secret elsewhere.
        let http = reqwest::Client::builder().timeout(DEADLINE).redirect(reqwest::redirect::Policy::none()).build()?;
        let mut all = Vec::new();
        let mut add = |name: &str, way| all.push(Self { name: name.to_owned(), way });
        add("file", Way::File(config.file.clone()));
        if let Some(bus) = bus {
            add("redis", Way::Redis(bus.clone()));
        }
        if let Some(url) = config.slack.clone() {
            add("slack", Way::Slack { http: http.clone(), url });
        }
        if let Some((url, secret)) = config.webhook.clone() {
            add("webhook", Way::Webhook { http: http.clone(), url, secret });
        }
        if let Some((key, url)) = config.pagerduty.clone() {
            add("pagerduty", Way::PagerDuty { http: http.clone(), url, key });
        }
        if let Some(sms) = &config.sms {
            for (n, to) in sms.to.iter().enumerate() {
                // Numbers are nobody's business but the provider's.
                let name = if n == 0 { "sms".to_owned() } else { format!("sms-{}", n + 1) };
                add(&name, Way::Sms { http: http.clone(), sms: sms.clone(), to: to.clone() });
            }
        }
        Ok(all)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What kind of channel it is; several numbers are of one kind.
    pub(super) const fn kind(&self) -> &'static str {
        match self.way {
            Way::Slack { .. } => "slack",
            Way::Webhook { .. } => "webhook",
            Way::PagerDuty { .. } => "pagerduty",
            Way::Sms { .. } => "sms",
            Way::Redis(_) => "redis",
            Way::File(_) => "file",
        }
    }

    /// Whether this channel takes such a message at all: nobody is sent a short message for a warning or for an end.
    #[must_use]
    pub fn takes(&self, notice: &Notice) -> bool {
        match self.way {
            Way::Sms { .. } => notice.severity == Severity::Critical && notice.what != What::Resolved,
            _ => true,
        }
    }

    /// Sends `notice`; what the receiver answered, in a few words.
    ///
    /// # Errors
    /// [`SendError`], without any secret in it.
    pub async fn send(&self, notice: &Notice) -> Result<String, SendError> {
        match &self.way {
            Way::File(path) => {
                let (path, line) = (path.clone(), notice.json().to_string());
                let written = tokio::task::spawn_blocking(move || file::append(&path, &line)).await;
                match written {
                    Ok(Ok(())) => Ok("written".to_owned()),
                    Ok(Err(error)) => Err(SendError::Again { why: error.to_string(), after: None }),
                    Err(error) => Err(SendError::Refused(error.to_string())),
                }
            }
            Way::Redis(bus) => {
                let sent = bus.publish(contract::CRITICAL_ALERTS, &notice.json().to_string()).await;
                sent.map(|()| "published".to_owned()).map_err(|e| SendError::Again { why: e.to_string(), after: None })
            }
            Way::Slack { http, url } => post(http.post(url).json(&json!({ "text": notice.text() }))).await,
            Way::Webhook { http, url, secret } => {
                let body = notice.json().to_string();
                let mut request = http.post(url).header("content-type", "application/json");
                if let Some(secret) = secret {
                    let at = (now_us() / 1_000_000).to_string();
                    request = request
                        .header("x-arbees-timestamp", &at)
                        .header("x-arbees-signature", signature(secret, &at, &body));
                }
                post(request.body(body)).await
            }
            Way::PagerDuty { http, url, key } => {
                // Each incident is one of theirs, so that its end closes it.
                let mut last = String::new();
                for line in &notice.incidents {
                    let action = if notice.what == What::Resolved { "resolve" } else { "trigger" };
                    let severity = notice.severity.as_str();
                    let event = json!({
                        "routing_key": key, "event_action": action, "dedup_key": line.incident,
                        "payload": { "summary": line.summary, "source": "arbees", "severity": severity, "class": notice.kind },
                        "links": [{ "href": message::runbook(&notice.kind), "text": "what to do" }],
                    });
                    last = post(http.post(url).json(&event)).await?;
                }
                Ok(last)
            }
            Way::Sms { http, sms, to } => {
                let url = format!("{}/2010-04-01/Accounts/{}/Messages.json", sms.url, sms.account);
                let body: String = notice.text().chars().take(SMS_LENGTH).collect();
                let form = [("From", sms.from.as_str()), ("To", to.as_str()), ("Body", body.as_str())];
                post(http.post(&url).basic_auth(&sms.account, Some(&sms.token)).form(&form)).await
            }
        }
    }
}

/// `sha256=` and the HMAC-SHA256 (RFC 2104) of the time, a dot and the body, in hex.
fn signature(secret: &str, at: &str, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, format!("{at}.{body}").as_bytes());
    format!("sha256={}", arbees_proto::envelope::hex(tag.as_ref()))
}

async fn post(request: RequestBuilder) -> Result<String, SendError> {
    let answer = request.send().await;
    // The URL of a webhook is a secret.
    let again = |e: reqwest::Error| SendError::Again { why: crate::exit::whole(&e.without_url()), after: None };
    let answer = answer.map_err(again)?;
    let status = answer.status();
    if status.is_success() {
        return Ok(format!("answered {}", status.as_u16()));
    }
    let after = answer.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse().ok());
    let after = after.map(|seconds| Duration::from_secs(seconds).min(MOST_PATIENCE));
    let why = format!("answered {}", status.as_u16());
    let is_passing =
        status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
    Err(if is_passing { SendError::Again { why, after } } else { SendError::Refused(why) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_signature_covers_time_and_body() {
        // Computed by: printf '%s' '1700000000.{"a":1}' | openssl dgst -sha256 -hmac secret
        let expected = "sha256=49f24e537407743fa4a0242bb63b94b9a47ee99cbbe071ccd8a22550ae411686";
        assert_eq!(super::signature("secret", "1700000000", "{\"a\":1}"), expected);
    }
}
