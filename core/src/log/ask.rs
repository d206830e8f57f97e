//! Operators' requests: NATS request and reply, served by the leader.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;

use super::Log;

/// A person waits: the leader answers once its decision is stored.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A request and where its answer goes.
#[derive(Clone, Debug)]
pub struct Asked {
    pub payload: Bytes,
    reply: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("no orchestrator is there")]
    Nobody,
    #[error("no leader answered within {} s: nobody leads just now, or the log is away", ANSWER_WITHIN.as_secs())]
    Late,
    #[error("the request did not get through: {0}")]
    Failed(String),
}

impl Log {
    /// Asks the leader.
    ///
    /// # Errors
    /// [`AskError`]; what was asked for may be done all the same when the answer is late.
    pub async fn ask_leader(&self, payload: Vec<u8>) -> Result<Bytes, AskError> {
        let request = async_nats::Request::new().payload(payload.into()).timeout(Some(ANSWER_WITHIN));
        match self.client.send_request(self.names.operator(), request).await {
            Ok(message) => Ok(message.payload),
            Err(error) => Err(match error.kind() {
                async_nats::client::RequestErrorKind::NoResponders => AskError::Nobody,
                async_nats::client::RequestErrorKind::TimedOut => AskError::Late,
                _ => AskError::Failed(error.to_string()),
            }),
        }
    }

    /// Hands every request to `put`, for as long as it is polled.
    pub async fn hear_asked(&self, put: impl Fn(Asked)) {
        loop {
            if let Ok(mut requests) = self.client.subscribe(self.names.operator()).await {
                while let Some(message) = requests.next().await {
                    if let Some(reply) = message.reply {
                        put(Asked { payload: message.payload, reply: reply.to_string() });
                    }
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Answers `asked`.
    pub async fn answer(&self, asked: &Asked, payload: Vec<u8>) {
        // Who asked is told by silence that something is wrong.
        let _ = self.client.publish(asked.reply.clone(), payload.into()).await;
    }
}
