//! A message as a stream holds it.

use arbees_fleet::Entry;
use arbees_proto::envelope::{HEADER_HASH, HEADER_TYPE, unhex};
use arbees_proto::{EventId, v1};
use bytes::Bytes;
use prost::Message as _;

/// A stored message with its place in the stream.
#[derive(Clone, Debug)]
pub struct Stored {
    pub sequence: u64,
    /// When the server stored it, in nanoseconds since the Unix epoch.
    pub stored_at_ns: i64,
    /// Messages of the same reading that are still to come, when this one was sent.
    pub pending: u64,
    pub subject: String,
    pub headers: Option<async_nats::HeaderMap>,
    pub payload: Bytes,
}

impl Stored {
    /// A message as an archive kept it.
    #[must_use]
    pub fn archived(
        sequence: u64,
        stored_at_ns: i64,
        subject: String,
        headers: &std::collections::BTreeMap<String, String>,
        payload: Vec<u8>,
    ) -> Self {
        let mut map = async_nats::HeaderMap::new();
        for (name, value) in headers {
            map.insert(name.as_str(), value.as_str());
        }
        Self { sequence, stored_at_ns, pending: 0, subject, headers: Some(map), payload: payload.into() }
    }

    /// The value of a header; empty when it is absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.as_ref().and_then(|h| h.get(name)).map_or("", |v| v.as_str())
    }

    /// All headers, in the order of their names.
    #[must_use]
    pub fn all_headers(&self) -> std::collections::BTreeMap<String, String> {
        let pairs = self.headers.iter().flat_map(|h| h.iter());
        pairs
            .map(|(name, values)| (name.to_string(), values.iter().map(|v| v.as_str()).collect::<Vec<_>>().join(",")))
            .collect()
    }

    /// Its message id.
    #[must_use]
    pub fn id(&self) -> Option<EventId> {
        self.header("Nats-Msg-Id").parse().ok()
    }

    /// Its event.
    ///
    /// # Errors
    /// When the payload is not one.
    pub fn event(&self) -> Result<v1::Event, prost::DecodeError> {
        v1::Event::decode(self.payload.clone())
    }

    /// As the fold of CONTROL takes it.
    #[must_use]
    pub fn entry(&self) -> Entry {
        Entry {
            sequence: self.sequence,
            subject: self.subject.clone(),
            event_type: self.header(HEADER_TYPE).to_owned(),
            hash: unhex(self.header(HEADER_HASH)),
            payload: self.payload.clone(),
        }
    }
}

/// Where a delivered message stands, from its reply subject:
/// `$JS.ACK.{stream}.{consumer}.{deliveries}.{sequence}.{consumer sequence}.{time}.{pending}`, in newer servers with domain
/// and account in front of the stream and a random token behind.
pub(super) struct Place {
    pub sequence: u64,
    pub consumer_sequence: u64,
    pub stored_at_ns: i64,
    pub pending: u64,
}

pub(super) fn place(reply: &str) -> Option<Place> {
    let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
    let at = if tokens.len() >= 9 { 5 } else { 3 };
    let number = |i: usize| tokens.get(i)?.parse().ok();
    Some(Place {
        sequence: number(at)?,
        consumer_sequence: number(at + 1)?,
        stored_at_ns: i64::try_from(number(at + 2)?).ok()?,
        pending: number(at + 3)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_reply_are_read() {
        for reply in ["$JS.ACK.S.C.1.42.7.1700.3", "$JS.ACK.dom.acc.S.C.1.42.7.1700.3.rnd"] {
            let p = place(reply).unwrap();
            assert_eq!((p.sequence, p.consumer_sequence, p.stored_at_ns, p.pending), (42, 7, 1700, 3), "{reply}");
        }
        assert!(place("$JS.ACK.S.C").is_none());
        assert!(place("inbox").is_none());
    }
}
