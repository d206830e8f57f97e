//! The leader's key: who may try to lead. It has a time to live, so that a hung or dead leader loses it. Safety does not rest
//! on it: the conditional append does that.
//!
//! A NATS key-value bucket of one key, in memory: after a restart of the server nobody leads until somebody takes it.

use std::time::Duration;

use async_nats::HeaderMap;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::json;
use tokio::sync::watch;

use super::api::{ApiError, NO_MESSAGE, NO_STREAM};
use super::{Log, ReadError};
use crate::time::steady_us;

/// How long the key lives without renewal, in microseconds. The server takes whole seconds.
pub const KEY_TTL_US: i64 = 1_000_000;
const TTL_HEADER: &str = "Nats-TTL";
const EXPECTED_LAST_ON_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence";
/// The key may be free when nothing was heard of it for this long.
const SILENCE: Duration = Duration::from_millis(1_050);
/// A renewal that is not answered within this is late: the next one is due.
const RENEW_WITHIN: Duration = Duration::from_millis(600);

/// The key as its holder knows it.
#[derive(Clone, Debug)]
pub struct Key {
    log: Log,
    holder: String,
    revision: u64,
    /// Until when it is surely held, by the steady clock.
    pub until_us: i64,
}

impl Log {
    fn bucket(&self) -> String {
        format!("KV_{}", self.names.stream("arbees_leader"))
    }

    fn key_subject(&self) -> String {
        format!("$KV.{}.leader", self.names.stream("arbees_leader"))
    }

    /// Creates the bucket when it is absent.
    ///
    /// # Errors
    /// When it cannot be created or read.
    pub async fn ensure_key(&self) -> Result<(), ApiError> {
        let bucket = self.bucket();
        match self.api(&format!("STREAM.INFO.{bucket}"), &json!({})).await {
            Err(error) if error.has_code(NO_STREAM) => {}
            other => return other.map(drop),
        }
        let subjects = format!("$KV.{}.>", self.names.stream("arbees_leader"));
        let config = json!({
            "name": bucket, "subjects": [subjects], "storage": "memory", "retention": "limits", "discard": "new",
            "max_msgs_per_subject": 1, "max_age": 0, "allow_msg_ttl": true, "allow_rollup_hdrs": true,
            "deny_delete": true, "allow_direct": true, "num_replicas": self.replicas,
        });
        self.api(&format!("STREAM.CREATE.{bucket}"), &config).await.map(drop)
    }

    /// Takes the key for `holder` if nobody has it.
    ///
    /// # Errors
    /// When the log does not answer.
    pub async fn take_key(&self, holder: &str) -> Result<Option<Key>, ReadError> {
        let (expected, found) = self.look_at_key().await?;
        // Given back: there, and empty.
        if !found.is_empty() {
            return Ok(None);
        }
        let sent_us = steady_us();
        match self.put_key(holder, expected).await {
            Ok(revision) => {
                let (log, holder) = (self.clone(), holder.to_owned());
                Ok(Some(Key { log, holder, revision, until_us: sent_us + KEY_TTL_US }))
            }
            Err(ApiError::Refused { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The key's revision and holder; 0 and empty when there is none.
    async fn look_at_key(&self) -> Result<(u64, String), ReadError> {
        let request = json!({ "last_by_subj": self.key_subject() });
        match self.api(&format!("STREAM.MSG.GET.{}", self.bucket()), &request).await {
            Err(error) if error.has_code(NO_MESSAGE) => Ok((0, String::new())),
            Err(error) if error.has_code(NO_STREAM) => {
                self.ensure_key().await?;
                Ok((0, String::new()))
            }
            Err(error) => Err(error.into()),
            Ok(found) => {
                let message = &found["message"];
                let holder = BASE64_STANDARD.decode(message["data"].as_str().unwrap_or_default()).unwrap_or_default();
                Ok((message["seq"].as_u64().unwrap_or(0), String::from_utf8_lossy(&holder).into_owned()))
            }
        }
    }

    async fn put_key(&self, value: &str, expected: u64) -> Result<u64, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(TTL_HEADER, "1s");
        headers.insert(EXPECTED_LAST_ON_SUBJECT, expected.to_string());
        self.publish_acked(self.key_subject(), headers, Bytes::from(value.to_owned())).await
    }

    /// Says by `may_be_free` whenever the key may be free: it was given back, or not renewed in time. For as long as it is
    /// polled.
    pub async fn watch_key(&self, may_be_free: watch::Sender<u64>) {
        loop {
            let Ok(mut puts) = self.client.subscribe(self.key_subject()).await else {
                tokio::time::sleep(SILENCE).await;
                continue;
            };
            loop {
                match tokio::time::timeout(SILENCE, puts.next()).await {
                    Ok(Some(put)) if !put.payload.is_empty() => {}
                    Ok(None) => break,
                    Ok(Some(_)) | Err(_) => may_be_free.send_modify(|n| *n += 1),
                }
            }
        }
    }
}

impl Key {
    /// Renews it. The key held on is the returned one; none when it is lost.
    pub async fn renewed(mut self) -> Option<Self> {
        let sent_us = steady_us();
        let put = self.log.put_key(&self.holder, self.revision);
        match tokio::time::timeout(RENEW_WITHIN, put).await {
            Ok(Ok(revision)) => {
                self.revision = revision;
                self.until_us = sent_us + KEY_TTL_US;
                Some(self)
            }
            // Another's, or our own of which we never heard.
            Ok(Err(ApiError::Refused { .. })) => match self.log.look_at_key().await {
                Ok((revision, holder)) if holder == self.holder => {
                    self.revision = revision;
                    Some(self)
                }
                Ok(_) => None,
                Err(_) => Some(self),
            },
            // Nobody knows whether it was renewed: what is known is that it is held until then.
            Ok(Err(ApiError::Unknown(_))) | Err(_) => Some(self),
        }
    }

    /// Whether it is surely held now.
    #[must_use]
    pub fn is_held(&self) -> bool {
        steady_us() < self.until_us
    }

    /// Gives it back, so that another takes it at once.
    pub async fn give_back(self) {
        // If it does not arrive, the key lapses by itself.
        let _ = tokio::time::timeout(RENEW_WITHIN, self.log.put_key("", self.revision)).await;
    }
}
