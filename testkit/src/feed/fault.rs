//! What can go wrong with an answer.

use serde::{Deserialize, Serialize};

/// A fault of one league's answers, until it is taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Fault {
    /// Answers as it should.
    #[default]
    None,
    /// Answers this status with an error body.
    Status { status: u16 },
    /// Answers rightly, so many milliseconds late.
    Delay { ms: u64 },
    /// The body stops in the middle.
    Half,
    /// The body is 60 MB of nothing.
    Huge,
    /// 200 with HTML.
    Wrong,
}

/// Size of a huge body.
const HUGE: usize = 60 << 20;

impl Fault {
    /// What becomes of `body`.
    #[must_use]
    pub fn spoil(self, body: bytes::Bytes) -> bytes::Bytes {
        match self {
            Self::Half => body.slice(..body.len() / 2),
            Self::Huge => bytes::Bytes::from(vec![b' '; HUGE]),
            Self::Wrong => bytes::Bytes::from_static(b"<html><body>Please try again later</body></html>"),
            Self::None | Self::Status { .. } | Self::Delay { .. } => body,
        }
    }
}
