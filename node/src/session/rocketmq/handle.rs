//! Receipt handles: who holds the message (node, process, agent), under which number, and a secret that makes the handle good for one
//! delivery. Opaque to clients; any node can tell from one which node to ask.

use crate::model::{Incarnation, NodeId};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

const BYTES: usize = 2 + 8 + 4 + 8 + 8;

/// A delivery that an agent holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Slot {
    /// Its number, never reused by the agent.
    pub number: u64,
    /// Known to whom it was delivered to alone.
    pub secret: u64,
}

/// A handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handle {
    /// The node.
    pub node: NodeId,
    /// Its process.
    pub incarnation: Incarnation,
    /// The agent there.
    pub agent: u32,
    /// The delivery.
    pub slot: Slot,
}

impl Handle {
    /// As clients get it.
    pub fn text(&self, message_id: &str) -> String {
        let mut bytes = [0; BYTES];
        bytes[..2].copy_from_slice(&self.node.0.to_be_bytes());
        bytes[2..10].copy_from_slice(&self.incarnation.0.to_be_bytes());
        bytes[10..14].copy_from_slice(&self.agent.to_be_bytes());
        bytes[14..22].copy_from_slice(&self.slot.number.to_be_bytes());
        bytes[22..].copy_from_slice(&self.slot.secret.to_be_bytes());
        format!("{message_id}-{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The way back; `None`: not one of ours.
    pub fn parse(text: &str) -> Option<Handle> {
        // The encoded part may have dashes: it has a length.
        let at = text.len().checked_sub(BYTES * 4 / 3)?;
        let encoded = text.get(at..).filter(|_| text.as_bytes().get(at.wrapping_sub(1)) == Some(&b'-'))?;
        let bytes: [u8; BYTES] = URL_SAFE_NO_PAD.decode(encoded).ok()?.try_into().ok()?;
        let eight = |at: usize| bytes[at..at + 8].iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
        Some(Handle {
            node: NodeId(u16::from_be_bytes([bytes[0], bytes[1]])),
            incarnation: Incarnation(eight(2)),
            agent: u32::from_be_bytes([bytes[10], bytes[11], bytes[12], bytes[13]]),
            slot: Slot { number: eight(14), secret: eight(22) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_handle_survives_its_text(node: u16, incarnation: u64, agent: u32, number: u64, secret: u64) {
            let handle = Handle { node: NodeId(node), incarnation: Incarnation(incarnation), agent, slot: Slot { number, secret } };
            prop_assert_eq!(Handle::parse(&handle.text("1E057D5E6EAD42A579937046FE17B6D8")), Some(handle));
        }

        #[test]
        fn any_text_is_survived(text in ".{0,90}", ascii in "[A-Za-z0-9_-]{30,80}") {
            let _ = (Handle::parse(&text), Handle::parse(&ascii));
        }
    }
}
