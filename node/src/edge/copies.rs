//! Sender-selected distribution: the headers `CC` and `BCC` hold further routing keys of a message. `BCC` does not reach a
//! consumer: it is stored by another name, that a dead letter goes by. So is a client's `x-death`, which must not pass for the broker's record.
//! Costs nothing for a message without headers.

use super::headers::{has_headers, raw_headers, renamed_headers};
use crate::model::catalog::{Refusal, Value};
use crate::model::properties::{BLIND_COPIES, CLIENT_DEATHS, DEATHS};
use bytes::Bytes;
use smallvec::SmallVec;

/// The routing keys of a message: its own, then those of its copies.
pub(super) type Keys<'a> = SmallVec<[&'a [u8]; 4]>;

const CC: &str = "CC";
const BCC: &str = "BCC";
/// Headers that are stored by other names.
const STORED: [(&str, &str); 2] = [(BCC, BLIND_COPIES), (DEATHS, CLIENT_DEATHS)];

/// Further routing keys.
#[derive(Debug, Default)]
pub(super) struct Copies {
    keys: Vec<Vec<u8>>,
    /// A header is to be stored by another name.
    renamed: bool,
}

impl Copies {
    /// Reads them; a header of another type than an array is refused in RabbitMQ's words, other values than texts in it count for
    /// nothing.
    pub fn read(properties: &[u8]) -> Result<Copies, Refusal> {
        let mut copies = Copies::default();
        if !has_headers(properties) {
            return Ok(copies);
        }
        let mut lists = [CC, BCC, BLIND_COPIES].map(|name| (name, None));
        for entry in raw_headers(properties) {
            copies.renamed |= STORED.iter().any(|(name, _)| entry.name == name.as_bytes());
            if let Some((_, list)) = lists.iter_mut().find(|(name, list)| list.is_none() && entry.name == name.as_bytes()) {
                *list = Some(entry);
            }
        }
        for (name, entry) in lists {
            match entry.and_then(|entry| entry.read()) {
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
        self.renamed.then(|| renamed_headers(properties, &STORED).into())
    }
}

fn unacceptable(name: &str, value: &Value) -> Refusal {
    Refusal::Precondition(format!("invalid message: {{unacceptable_type_in_header,\"{name}\",{}}}", value.type_text()))
}
