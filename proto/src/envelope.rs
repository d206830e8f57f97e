//! The envelope: event ids, the headers that travel with an event, and the hash chain of CONTROL.

use bytes::Bytes;
use prost::Message as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::v1::Event;

/// Header that names the event's type, so that readers can filter without decoding.
pub const HEADER_TYPE: &str = "Arbees-Type";
/// Header with the chain hash in lower-case hex, on CONTROL only.
pub const HEADER_HASH: &str = "Arbees-Hash";
/// The version of the envelope that this build writes.
pub const SCHEMA_VERSION: u32 = 1;

/// A blake3 hash: of an event in the chain, of a folded state.
pub type Hash = [u8; 32];
/// What the first event of a log chains to.
pub const GENESIS: Hash = [0; 32];

/// blake3(previous hash ‖ subject ‖ type ‖ payload). Lengths go in between, so that no two splits of the same bytes agree.
#[must_use]
pub fn chain_hash(previous: &Hash, subject: &str, event_type: &str, payload: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous);
    for part in [subject.as_bytes(), event_type.as_bytes(), payload] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// A hash in lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        out.push(char::from(b"0123456789abcdef"[usize::from(b >> 4)]));
        out.push(char::from(b"0123456789abcdef"[usize::from(b & 15)]));
        out
    })
}

/// The hash that `text` spells, if it is 64 hex digits.
#[must_use]
pub fn unhex(text: &str) -> Option<Hash> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut out = GENESIS;
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[i * 2..i * 2 + 2], 16).ok()?;
    }
    Some(out)
}

/// An event's id: UUIDv7 layout (RFC 9562), so that ids sort by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(pub [u8; 16]);

impl EventId {
    /// The id of what `seed` names, made at `at_us` (microseconds since the Unix epoch): the same twice for the same input.
    #[must_use]
    pub fn derive(at_us: i64, seed: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in seed {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        let millis = u64::try_from(at_us / 1_000).unwrap_or(0).to_be_bytes();
        id[..6].copy_from_slice(&millis[2..]);
        id[6] = 0x70 | (id[6] & 0x0f);
        id[8] = 0x80 | (id[8] & 0x3f);
        Self(id)
    }

    /// When it was made, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn millis(&self) -> i64 {
        self.0[..6].iter().fold(0, |millis, byte| (millis << 8) | i64::from(*byte))
    }

    /// The id in `bytes`, if there are 16.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl std::str::FromStr for EventId {
    type Err = crate::ids::BadId;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || crate::ids::BadId::Character(s.chars().take(64).collect());
        let mut bytes = [0; 16];
        let mut count = 0;
        for digit in s.bytes().filter(|b| *b != b'-') {
            let value = char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok()).ok_or_else(bad)?;
            let byte: &mut u8 = bytes.get_mut(count / 2).ok_or_else(bad)?;
            *byte = *byte << 4 | value;
            count += 1;
        }
        if count == 32 { Ok(Self(bytes)) } else { Err(bad()) }
    }
}

/// Text where people may read it, 16 bytes elsewhere: snapshots are full of ids.
impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 16]>::deserialize(deserializer).map(Self)
        }
    }
}

impl std::fmt::Display for EventId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let h = hex(&self.0);
        write!(f, "{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
    }
}

/// An event ready for its stream: its bytes are final.
#[derive(Clone, Debug, PartialEq)]
pub struct Sealed {
    /// Where it goes.
    pub subject: String,
    /// For the header `Arbees-Type`.
    pub event_type: &'static str,
    /// For `Nats-Msg-Id`.
    pub id: EventId,
    /// For `Arbees-Hash`; on CONTROL only.
    pub hash: Option<Hash>,
    /// The encoded event.
    pub payload: Bytes,
    /// The event itself.
    pub event: Event,
}

impl Sealed {
    /// Encodes `event`, chaining it to `previous` when it belongs to CONTROL. None when it has no payload.
    #[must_use]
    pub fn new(subject: String, event: Event, previous: Option<&Hash>) -> Option<Self> {
        let event_type = crate::subject::type_name(event.payload.as_ref()?);
        let id = EventId::from_bytes(&event.id)?;
        let payload = Bytes::from(event.encode_to_vec());
        let hash = previous.map(|p| chain_hash(p, &subject, event_type, &payload));
        Some(Self { subject, event_type, id, hash, payload, event })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_layout_of_uuid_version_7() {
        let id = EventId::derive(1_700_000_000_000_000, &[b"a", b"b"]);
        let text = id.to_string();
        assert_eq!(&text[..13], "018bcfe5-6800", "the first 48 bits are milliseconds");
        assert_eq!(&text[14..15], "7");
        assert!("89ab".contains(&text[19..20]));
        assert_ne!(id, EventId::derive(1_700_000_000_000_000, &[b"ab"]));
    }

    #[test]
    fn an_id_is_read_back_from_its_text_and_nothing_else_is() {
        let id = EventId::derive(1_700_000_000_000_000, &[b"a"]);
        let text = id.to_string();
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(text.replace('-', "").parse(), Ok(id));
        for wrong in ["", &text[1..], &format!("{text}0"), &text.replace('7', "g"), &text.replace('7', "\u{661}")] {
            assert!(wrong.parse::<EventId>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn any_changed_part_changes_the_chain() {
        let base = chain_hash(&GENESIS, "s", "t", b"p");
        assert_ne!(base, chain_hash(&base, "s", "t", b"p"));
        assert_ne!(base, chain_hash(&GENESIS, "st", "", b"p"));
        assert_ne!(base, chain_hash(&GENESIS, "s", "t", b"q"));
        assert_eq!(unhex(&hex(&base)), Some(base));
        assert_eq!(unhex("zz"), None);
    }
}
