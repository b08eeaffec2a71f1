//! Sender-selected distribution: the headers `CC` and `BCC` hold further routing keys of a message. `BCC` does not reach a
//! consumer: it is stored by another name, that a dead letter goes by.
//! Costs nothing for a message without headers.

use super::headers::{has_headers, raw_headers, renamed_header};
use crate::model::catalog::{Refusal, Value};
use crate::model::properties::BLIND_COPIES;
use bytes::Bytes;
use smallvec::SmallVec;

/// The routing keys of a message: its own, then those of its copies.
pub(super) type Keys<'a> = SmallVec<[&'a [u8]; 4]>;

const CC: &[u8] = b"CC";
const BCC: &[u8; 3] = b"BCC";
/// As it is stored.
const BLIND: &[u8; 3] = match BLIND_COPIES.as_bytes().first_chunk() {
    Some(name) if BLIND_COPIES.len() == 3 => name,
    _ => panic!("as long as the name it stands for"),
};

/// Further routing keys.
#[derive(Debug, Default)]
pub(super) struct Copies {
    keys: Vec<Vec<u8>>,
    blind: bool,
}

impl Copies {
    /// Reads them; a header of another type than an array is refused in RabbitMQ's words, other values than texts in it count for
    /// nothing.
    pub fn read(properties: &[u8]) -> Result<Copies, Refusal> {
        let mut copies = Copies::default();
        if !has_headers(properties) {
            return Ok(copies);
        }
        for name in [CC, BCC, BLIND] {
            let Some(entry) = raw_headers(properties).find(|entry| entry.name == name) else { continue };
            copies.blind |= name == BCC;
            match entry.read() {
                Some(Value::List(values)) => {
                    copies.keys.extend(values.into_iter().filter_map(|v| if let Value::Text(key) = v { Some(key) } else { None }));
                }
                Some(other) => return Err(unacceptable(name, &other)),
                None => {}
            }
        }
        Ok(copies)
    }

    /// All routing keys of a message.
    pub fn keys<'a>(&'a self, own: &'a [u8]) -> Keys<'a> {
        let mut keys = Keys::new();
        keys.push(own);
        keys.extend(self.keys.iter().map(Vec::as_slice));
        keys
    }

    /// The properties as they are stored, when that is not as they came.
    pub fn stored(&self, properties: &[u8]) -> Option<Bytes> {
        self.blind.then(|| renamed_header(properties, BCC, BLIND).into())
    }
}

fn unacceptable(name: &[u8], value: &Value) -> Refusal {
    let name = String::from_utf8_lossy(name);
    Refusal::Precondition(format!("invalid message: {{unacceptable_type_in_header,\"{name}\",{}}}", value.type_text()))
}
