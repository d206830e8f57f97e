//! Requests to the JetStream API and publishes that await their acknowledgement, with errors told by code, never by text.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::Log;

/// How long the server may take to answer. A healthy one needs milliseconds; a client that waits longer than a lease for a
/// lost answer would be late for everything else.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a request did not succeed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// The server answered no.
    #[error("{description} (code {code})")]
    Refused { code: u64, description: String },
    /// No answer: the outcome is unknown.
    #[error("no answer from NATS: {0}")]
    Unknown(String),
}

impl ApiError {
    /// Whether the server's answer has this JetStream error code.
    #[must_use]
    pub fn has_code(&self, wanted: u64) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == wanted)
    }
}

/// JetStream's code for "no message found".
pub(super) const NO_MESSAGE: u64 = 10_037;
/// JetStream's code for "stream not found".
pub(super) const NO_STREAM: u64 = 10_059;

#[derive(Deserialize)]
struct WireError {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

fn parse(payload: &[u8]) -> Result<Value, ApiError> {
    let answer: Value = serde_json::from_slice(payload).map_err(|e| ApiError::Unknown(e.to_string()))?;
    match answer.get("error").cloned().map(serde_json::from_value::<WireError>) {
        None => Ok(answer),
        Some(Ok(e)) => {
            let code = if e.err_code == 0 { e.code } else { e.err_code };
            Err(ApiError::Refused { code, description: e.description })
        }
        Some(Err(e)) => Err(ApiError::Unknown(e.to_string())),
    }
}

impl Log {
    /// A request to the JetStream API.
    pub(super) async fn api(&self, verb: &str, body: &Value) -> Result<Value, ApiError> {
        let payload = Bytes::from(body.to_string());
        let request = self.client.request(format!("$JS.API.{verb}"), payload);
        parse(&self.answered(request).await?)
    }

    /// What `request` is answered; unknown as soon as the connection breaks, for the answer to it is lost then.
    async fn answered(
        &self,
        request: impl Future<Output = Result<async_nats::Message, async_nats::RequestError>>,
    ) -> Result<Bytes, ApiError> {
        let mut breaks = self.breaks.clone();
        breaks.mark_unchanged();
        tokio::select! {
            biased;
            answer = request => answer.map(|m| m.payload).map_err(|e| ApiError::Unknown(e.to_string())),
            Ok(()) = breaks.changed() => Err(ApiError::Unknown("the connection broke".to_owned())),
        }
    }

    /// Publishes into a stream and awaits the acknowledgement: the sequence it got.
    pub(super) async fn publish_acked(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<u64, ApiError> {
        let request = self.client.request_with_headers(subject, headers, payload);
        let ack = parse(&self.answered(request).await?)?;
        ack["seq"].as_u64().ok_or_else(|| ApiError::Unknown("an acknowledgement without sequence".to_owned()))
    }
}
