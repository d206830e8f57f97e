//! What deployments say about alerts.

use std::path::PathBuf;

use super::desk::Rules;
use crate::config::Env;
use crate::time::micros;

/// The settings of the contract, and where the two services are that are asked over HTTP.
#[derive(Clone)]
pub struct AlertConfig {
    /// `CRITICAL_ALERTS_ENABLED`: off, alerts are events and nothing else.
    pub enabled: bool,
    pub rules: Rules,
    /// `ALERT_LOG_PATH`.
    pub file: PathBuf,
    /// `SLACK_WEBHOOK_URL`.
    pub slack: Option<String>,
    /// `CUSTOM_WEBHOOK_URL`, and `CUSTOM_WEBHOOK_SECRET`, by which its messages are signed.
    pub webhook: Option<(String, Option<String>)>,
    /// `PAGERDUTY_ROUTING_KEY`, and where events go.
    pub pagerduty: Option<(String, String)>,
    pub sms: Option<Sms>,
}

/// A Twilio account that sends short messages.
#[derive(Clone)]
pub struct Sms {
    pub url: String,
    pub account: String,
    pub token: String,
    pub from: String,
    pub to: Vec<String>,
}

impl std::fmt::Debug for Sms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sms")
    }
}

/// What may be printed: which channels there are. Everything else is a secret.
impl std::fmt::Debug for AlertConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let set = |is_set: bool| if is_set { "set" } else { "not set" };
        f.debug_struct("AlertConfig")
            .field("enabled", &self.enabled)
            .field("file", &self.file)
            .field("slack", &set(self.slack.is_some()))
            .field("webhook", &set(self.webhook.is_some()))
            .field("pagerduty", &set(self.pagerduty.is_some()))
            .field("sms", &set(self.sms.is_some()))
            .finish()
    }
}

impl AlertConfig {
    /// Reads it.
    pub fn read<F: Fn(&str) -> Option<String>>(env: &mut Env<F>) -> Self {
        let enabled = env.flag("CRITICAL_ALERTS_ENABLED", true);
        let rules = Rules {
            rate_limit_us: micros(env.seconds("ALERT_RATE_LIMIT_SECS", 300.0, 0.0..=86_400.0)),
            escalate_us: micros(env.seconds("ALERT_ESCALATE_SECS", 900.0, 1.0..=86_400.0)),
            remind_us: micros(env.seconds("ALERT_REMIND_SECS", 3_600.0, 1.0..=604_800.0)),
        };
        let http = ["http://", "https://"];
        let slack = env.url_if_set("SLACK_WEBHOOK_URL", &http);
        let webhook = env.url_if_set("CUSTOM_WEBHOOK_URL", &http);
        let secret = env.text("CUSTOM_WEBHOOK_SECRET");
        let events = env.url("PAGERDUTY_EVENTS_URL", "https://events.pagerduty.com/v2/enqueue", &http);
        let twilio = env.url("TWILIO_API_URL", "https://api.twilio.com", &http);
        let parts = ["TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN", "TWILIO_FROM", "ALERT_SMS_TO"].map(|n| env.text(n));
        let some = parts.iter().filter(|p| p.is_some()).count();
        env.check(
            some == 0 || some == parts.len(),
            "TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN, TWILIO_FROM and ALERT_SMS_TO must be set together",
        );
        let sms = match parts {
            [Some(account), Some(token), Some(from), Some(to)] => {
                let to = to.split(',').map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()).collect();
                Some(Sms { url: twilio, account, token, from, to })
            }
            _ => None,
        };
        Self {
            enabled,
            rules,
            file: env.text_or("ALERT_LOG_PATH", "/var/log/arbees/critical_alerts.log").into(),
            slack,
            webhook: webhook.map(|url| (url, secret)),
            pagerduty: env.text("PAGERDUTY_ROUTING_KEY").map(|key| (key, events)),
            sms,
        }
    }
}
