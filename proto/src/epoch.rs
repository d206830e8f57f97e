//! The fencing token of an assignment.

use serde::{Deserialize, Serialize};

/// Bits that hold the stream sequence: 2^40 events are enough for one generation (a thousand a second for 34 years), and
/// 13 bits of generation above them still fit the 53 bits of a JSON number.
const SEQUENCE_BITS: u32 = 40;

/// Generation × 2^40 + the sequence of the event that made the assignment. Orders all assignments there ever were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of an assignment made by the event at `sequence` of `generation`.
    #[must_use]
    pub const fn new(generation: u64, sequence: u64) -> Self {
        Self((generation << SEQUENCE_BITS) | sequence)
    }

    /// The CONTROL sequence of the event that made the assignment.
    #[must_use]
    pub const fn sequence(self) -> u64 {
        self.0 & ((1 << SEQUENCE_BITS) - 1)
    }

    /// The generation of the log it was made in.
    #[must_use]
    pub const fn generation(self) -> u64 {
        self.0 >> SEQUENCE_BITS
    }
}

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_generation_outranks_any_sequence() {
        assert!(Epoch::new(2, 1) > Epoch::new(1, 1 << 39));
        assert_eq!(Epoch::new(3, 77).sequence(), 77);
        assert_eq!(Epoch::new(3, 77).generation(), 3);
        assert!(Epoch::new(8191, (1 << 40) - 1).0 < 1 << 53, "fits a JSON number");
    }
}
