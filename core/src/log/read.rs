//! Bounded reads: a stretch of a stream, the last message of each subject, one message.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::json;

use super::Log;
use super::api::{ApiError, NO_MESSAGE};
use super::push::{Push, Spec, Start};
use super::stored::Stored;

/// Why a read ended early.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("reading {stream} was interrupted at sequence {at}: {why}")]
    Interrupted { stream: String, at: u64, why: String },
    #[error("an answer that cannot be read: {0}")]
    Malformed(&'static str),
}

impl ReadError {
    pub(super) fn has_code(&self, code: u64) -> bool {
        matches!(self, Self::Api(error) if error.has_code(code))
    }
}

/// Reads a stretch of a stream, message by message.
#[derive(Debug)]
pub struct Reader {
    push: Option<Push>,
    stream: String,
    last: u64,
    at: u64,
}

impl Reader {
    /// The next message; none after the last.
    ///
    /// # Errors
    /// When the connection is lost on the way: read again from where it stopped.
    pub async fn next(&mut self) -> Result<Option<Stored>, ReadError> {
        let Some(push) = &mut self.push else { return Ok(None) };
        match push.next().await {
            Ok(stored) => {
                self.at = stored.sequence;
                let is_beyond = stored.sequence > self.last;
                if is_beyond || stored.pending == 0 || stored.sequence == self.last {
                    self.close();
                }
                Ok((!is_beyond).then_some(stored))
            }
            Err(why) => {
                let why = why.to_string();
                Err(ReadError::Interrupted { stream: self.stream.clone(), at: self.at, why })
            }
        }
    }

    /// Nobody waits for it: the answer comes after all that the server has sent beyond the last.
    fn close(&mut self) {
        if let Some(push) = self.push.take() {
            tokio::spawn(push.close());
        }
    }
}

impl Log {
    /// Reads `base` from sequence `from` to `last`, both included.
    ///
    /// # Errors
    /// When the reading cannot begin.
    pub async fn read(&self, base: &str, filters: Vec<String>, from: u64, last: u64) -> Result<Reader, ReadError> {
        let stream = self.names.stream(base);
        let spec = Spec { stream: stream.clone(), filters, start: Start::Sequence(from) };
        if from > last {
            return Ok(Reader { push: None, stream, last, at: from });
        }
        let push = Push::open(self, &spec).await?;
        let push = if push.pending == 0 { None } else { Some(push) };
        Ok(Reader { push, stream, last, at: from })
    }

    /// The last message of each subject that `filter` matches, in the stream's order. One filter: a list of them would make
    /// the server scan the stream twenty times slower.
    ///
    /// # Errors
    /// When it cannot be read whole.
    pub async fn last_per_subject(&self, base: &str, filter: String) -> Result<Vec<Stored>, ReadError> {
        let stream = self.names.stream(base);
        let spec = Spec { stream: stream.clone(), filters: vec![filter], start: Start::LastPerSubject };
        let push = Push::open(self, &spec).await?;
        let expected = push.pending;
        let mut reader = Reader { push: (expected > 0).then_some(push), stream, last: u64::MAX, at: 0 };
        let mut found = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
        while let Some(stored) = reader.next().await? {
            found.push(stored);
        }
        Ok(found)
    }

    /// The message at `sequence`, from the stream's leader.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub async fn get(&self, base: &str, sequence: u64) -> Result<Stored, ReadError> {
        self.get_by(base, &json!({ "seq": sequence })).await
    }

    /// The first message at `sequence` or after it, from the stream's leader; none when there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn first_from(&self, base: &str, sequence: u64) -> Result<Option<Stored>, ReadError> {
        match self.get_by(base, &json!({ "seq": sequence, "next_by_subj": ">" })).await {
            Ok(stored) => Ok(Some(stored)),
            Err(error) if error.has_code(NO_MESSAGE) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The last message on `subject`; none when there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn last_on(&self, base: &str, subject: &str) -> Result<Option<Stored>, ReadError> {
        match self.get_by(base, &json!({ "last_by_subj": subject })).await {
            Ok(stored) => Ok(Some(stored)),
            Err(error) if error.has_code(NO_MESSAGE) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn get_by(&self, base: &str, what: &serde_json::Value) -> Result<Stored, ReadError> {
        let answer = self.api(&format!("STREAM.MSG.GET.{}", self.names.stream(base)), what).await?;
        let message = &answer["message"];
        let text = |name: &str| message[name].as_str().unwrap_or_default();
        let decode = |name: &str| BASE64_STANDARD.decode(text(name)).ok();
        let headers = decode("hdrs").ok_or(ReadError::Malformed("headers"))?;
        Ok(Stored {
            sequence: message["seq"].as_u64().ok_or(ReadError::Malformed("sequence"))?,
            stored_at_ns: crate::time::parse_us(text("time")).unwrap_or(0) * 1_000,
            pending: 0,
            subject: text("subject").to_owned(),
            headers: header_map(&headers),
            payload: Bytes::from(decode("data").ok_or(ReadError::Malformed("payload"))?),
        })
    }
}

/// Headers as the server stores them: a version line, then `Name: value` lines.
fn header_map(raw: &[u8]) -> Option<async_nats::HeaderMap> {
    let mut headers = async_nats::HeaderMap::new();
    for line in std::str::from_utf8(raw).ok()?.split("\r\n").skip(1) {
        if let Some((name, value)) = line.split_once(':') {
            headers.append(name, value.trim());
        }
    }
    Some(headers)
}
