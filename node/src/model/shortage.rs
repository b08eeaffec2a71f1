//! What a node may run short of while it serves: without disk or memory publishes stop on all nodes, without the right time nothing ends by
//! time where it leads. Seen by `node`, told around by `consensus`.

use super::NodeId;
use std::collections::BTreeMap;

/// What one node is short of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shortage {
    /// Space on the data disk.
    pub disk: bool,
    /// Memory.
    pub memory: bool,
    /// The right time.
    pub clock: bool,
}

/// Nodes that are short of something.
pub type Shortages = BTreeMap<NodeId, Shortage>;

impl Shortage {
    const DISK: u8 = 1;
    const MEMORY: u8 = 2;
    const CLOCK: u8 = 4;

    /// Of nothing.
    pub fn is_none(self) -> bool {
        self == Shortage::default()
    }

    /// As one byte.
    pub fn bits(self) -> u8 {
        let bit = |short: bool, bit: u8| if short { bit } else { 0 };
        bit(self.disk, Self::DISK) | bit(self.memory, Self::MEMORY) | bit(self.clock, Self::CLOCK)
    }

    /// The inverse of `bits`; bits that mean nothing yet are passed over.
    pub fn from_bits(bits: u8) -> Shortage {
        Shortage { disk: bits & Self::DISK != 0, memory: bits & Self::MEMORY != 0, clock: bits & Self::CLOCK != 0 }
    }
}
