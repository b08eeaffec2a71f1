//! A message's raw property list (property flags and list, spec 4.2.6.1) as routing reads it: headers, single properties, and the
//! header entries `CC` and `BCC`, and who the publisher says it is. The session has checked the form; what does not parse here counts as absent. Integer widths are not
//! kept apart (as in the catalog).

use crate::model::catalog::{Table, Value};
use crate::routing::{HashProperty, Subject};
use bytes::Buf;
use std::cell::OnceCell;

const DEPTH_MAX: u8 = 16;

/// Positions of properties, counted from the highest flag.
const HEADERS: u32 = 2;
const DELIVERY_MODE: u32 = 3;
const PRIORITY: u32 = 4;
const CORRELATION_ID: u32 = 5;
const MESSAGE_ID: u32 = 8;
const TIMESTAMP: u32 = 9;
const USER_ID: u32 = 11;

/// A message as exchanges look at it; reads only what it is asked for.
pub(super) struct MessageSubject<'a> {
    properties: &'a [u8],
    headers: OnceCell<Table>,
}

impl<'a> MessageSubject<'a> {
    pub fn new(properties: &'a [u8]) -> MessageSubject<'a> {
        MessageSubject { properties, headers: OnceCell::new() }
    }
}

impl Subject for MessageSubject<'_> {
    fn headers(&self) -> &Table {
        self.headers.get_or_init(|| headers(self.properties))
    }

    fn property(&self, property: HashProperty) -> Option<&[u8]> {
        let at = match property {
            HashProperty::CorrelationId => CORRELATION_ID,
            HashProperty::MessageId => MESSAGE_ID,
            HashProperty::Timestamp => TIMESTAMP,
        };
        find(self.properties, at)
    }

    fn properties(&self) -> &[u8] {
        self.properties
    }

    fn random(&self) -> u64 {
        rand::random()
    }
}

/// The headers table of `properties`; empty when there is none.
pub(super) fn headers(properties: &[u8]) -> Table {
    find(properties, HEADERS).and_then(|entries| table(entries, 0)).unwrap_or_default()
}

/// The user-id of `properties`; two bytes are looked at when there is none.
pub(super) fn user_id(properties: &[u8]) -> Option<&[u8]> {
    find(properties, USER_ID)
}

/// Whether there is a headers table at all.
pub(super) fn has_headers(properties: &[u8]) -> bool {
    properties.first().is_some_and(|flags| flags & 0x80 >> HEADERS != 0)
}

/// The entries of the headers table with their names.
pub(super) fn raw_headers(properties: &[u8]) -> RawEntries<'_> {
    RawEntries(find(properties, HEADERS).unwrap_or_default())
}

/// Walks the entries of a table without building it.
pub(super) struct RawEntries<'a>(&'a [u8]);

/// An entry of a table.
pub(super) struct RawEntry<'a> {
    pub name: &'a [u8],
    /// Type letter and value.
    pub value: &'a [u8],
}

impl RawEntry<'_> {
    /// The value.
    pub fn read(&self) -> Option<Value> {
        value(&mut { self.value }, 0)
    }
}

impl<'a> Iterator for RawEntries<'a> {
    type Item = RawEntry<'a>;

    fn next(&mut self) -> Option<RawEntry<'a>> {
        let len = self.0.try_get_u8().ok()? as usize;
        let name = cut(&mut self.0, len)?;
        let before = self.0;
        let fixed = match self.0.try_get_u8().ok()? {
            b't' | b'b' | b'B' => 1,
            b's' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'l' | b'L' | b'd' | b'T' => 8,
            b'V' => 0,
            b'S' | b'x' | b'F' | b'A' => self.0.try_get_u32().ok()? as usize,
            _ => return None,
        };
        cut(&mut self.0, fixed)?;
        let value = &before[..before.len() - self.0.len()];
        Some(RawEntry { name, value })
    }
}

/// Where the property list begins: behind the flags.
fn list(properties: &[u8]) -> Option<(u16, &[u8])> {
    let mut rest = properties;
    let flags = rest.try_get_u16().ok()?;
    let mut more = flags;
    while more & 1 != 0 {
        more = rest.try_get_u16().ok()?;
    }
    Some((flags, rest))
}

/// The bytes of one property without its length.
fn find(properties: &[u8], wanted: u32) -> Option<&[u8]> {
    let (flags, mut rest) = list(properties)?;
    if flags & 0x8000 >> wanted == 0 {
        return None;
    }
    for at in 0..wanted {
        if flags & 0x8000 >> at != 0 {
            property(&mut rest, at)?;
        }
    }
    property(&mut rest, wanted)
}

fn property<'a>(bytes: &mut &'a [u8], at: u32) -> Option<&'a [u8]> {
    let len = match at {
        DELIVERY_MODE | PRIORITY => 1,
        TIMESTAMP => 8,
        HEADERS => bytes.try_get_u32().ok()? as usize,
        _ => bytes.try_get_u8().ok()? as usize,
    };
    cut(bytes, len)
}

/// The same properties with some header entries called by other names of the same length: (before, after).
pub(super) fn renamed_headers(properties: &[u8], names: &[(&str, &str)]) -> Vec<u8> {
    let mut out = properties.to_vec();
    for entry in raw_headers(properties) {
        let Some((_, to)) = names.iter().find(|(from, to)| entry.name == from.as_bytes() && from.len() == to.len()) else { continue };
        let at = entry.name.as_ptr() as usize - properties.as_ptr() as usize;
        out[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    out
}

fn cut<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(head)
}

/// The entries of a table; of a repeated name the first counts.
fn table(mut body: &[u8], depth: u8) -> Option<Table> {
    let mut out = Table::new();
    while !body.is_empty() {
        let len = body.try_get_u8().ok()? as usize;
        let key = String::from_utf8_lossy(cut(&mut body, len)?).into_owned();
        let value = value(&mut body, depth + 1)?;
        out.entry(key).or_insert(value);
    }
    Some(out)
}

fn value(bytes: &mut &[u8], depth: u8) -> Option<Value> {
    if depth > DEPTH_MAX {
        return None;
    }
    Some(match bytes.try_get_u8().ok()? {
        b't' => Value::Bool(bytes.try_get_u8().ok()? != 0),
        b'b' => Value::Int(bytes.try_get_i8().ok()?.into()),
        b'B' => Value::Int(bytes.try_get_u8().ok()?.into()),
        b's' => Value::Int(bytes.try_get_i16().ok()?.into()),
        b'u' => Value::Int(bytes.try_get_u16().ok()?.into()),
        b'I' => Value::Int(bytes.try_get_i32().ok()?.into()),
        b'i' => Value::Int(bytes.try_get_u32().ok()?.into()),
        b'l' | b'L' => Value::Int(bytes.try_get_i64().ok()?),
        b'f' => Value::Float(bytes.try_get_f32().ok()?),
        b'd' => Value::Double(bytes.try_get_f64().ok()?),
        b'D' => Value::Decimal(bytes.try_get_u8().ok()?, bytes.try_get_i32().ok()?),
        b'S' => Value::Text(long(bytes)?.to_vec()),
        b'x' => Value::Bytes(long(bytes)?.to_vec()),
        b'T' => Value::Timestamp(bytes.try_get_u64().ok()?),
        b'F' => Value::Table(table(long(bytes)?, depth)?),
        b'A' => {
            let mut body = long(bytes)?;
            let mut list = Vec::new();
            while !body.is_empty() {
                list.push(value(&mut body, depth + 1)?);
            }
            Value::List(list)
        }
        b'V' => Value::Void,
        _ => return None,
    })
}

fn long<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = bytes.try_get_u32().ok()? as usize;
    cut(bytes, len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BufMut;
    use proptest::prelude::*;

    fn with_headers(body: &[u8]) -> Vec<u8> {
        let mut list = vec![];
        list.put_u16(0x8000 | 0x2000 | 0x0400 | 0x0040);
        list.put_slice(b"\x04text");
        list.put_u32(body.len() as u32);
        list.put_slice(body);
        list.put_slice(b"\x03cor");
        list.put_u64(7);
        list
    }

    #[test]
    fn finds_the_table_behind_the_content_type() {
        let list = with_headers(b"\x01kS\x00\x00\x00\x01v\x01nI\x00\x00\x00\x07\x01vV\x01nI\x00\x00\x00\x08");
        let table = headers(&list);
        assert_eq!(table["k"], Value::Text(b"v".to_vec()));
        assert_eq!(table["n"], Value::Int(7), "the first of two counts");
        assert_eq!(table["v"], Value::Void);
    }

    #[test]
    fn finds_single_properties_behind_the_table() {
        let list = with_headers(b"\x01vV");
        let subject = MessageSubject::new(&list);
        assert_eq!(subject.property(HashProperty::CorrelationId), Some(&b"cor"[..]));
        assert_eq!(subject.property(HashProperty::Timestamp), Some(&7u64.to_be_bytes()[..]));
        assert_eq!(subject.property(HashProperty::MessageId), None);
    }

    #[test]
    fn renames_an_entry_and_leaves_the_rest_as_it_was() {
        let list = |name: &[u8; 3]| {
            let blind = [&b"\x01kS\0\0\0\x01v\x03"[..], name, b"A\0\0\0\x06S\0\0\0\x01q\x01vV"].concat();
            with_headers(&blind)
        };
        assert_eq!(renamed_headers(&list(b"BCC"), &[("BCC", "\0CC")]), list(b"\0CC"));
        assert_eq!(renamed_headers(&list(b"BCC"), &[("non", "\0CC"), ("BCC", "longer")]), list(b"BCC"));
        assert_eq!(renamed_headers(&[0, 0], &[("BCC", "\0CC")]), [0, 0]);
    }

    #[test]
    fn finds_the_user_behind_everything_that_may_come_before() {
        assert_eq!(user_id(b"\x00\x10\x03eve"), Some(&b"eve"[..]));
        let all =
            b"\xff\xfc\x01t\x01e\x00\x00\x00\x03\x01kV\x02\x05\x01c\x01r\x011\x01m\x00\x00\x00\x00\x00\x00\x00\x07\x01y\x05guest\x01a\x00";
        assert_eq!(user_id(all), Some(&b"guest"[..]));
        assert_eq!(user_id(b"\xff\xec\x01t"), None, "not among them");
        assert_eq!(user_id(b""), None);
    }

    #[test]
    fn no_headers_is_an_empty_table() {
        assert!(headers(&[]).is_empty());
        assert!(headers(&0x8000u16.to_be_bytes()).is_empty());
        assert!(!has_headers(&[]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            headers(&bytes);
            if bytes.len() > 1 {
                bytes[0] = 0x20;
                bytes[1] = 0x10;
            }
            headers(&bytes);
            user_id(&bytes);
            raw_headers(&bytes).for_each(|entry| drop(entry.read()));
            renamed_headers(&bytes, &[("BCC", "\0CC")]);
        }
    }
}
