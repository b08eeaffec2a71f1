//! What routing needs of a message's raw property list: the headers field, for headers exchanges only, and who the publisher says it is.
//! The session has checked the form; what does not parse here counts as absent. Integer widths are not kept apart (as in the catalog).

use crate::model::catalog::{Table, Value};
use bytes::Buf;

const CONTENT_TYPE: u16 = 1 << 15;
const CONTENT_ENCODING: u16 = 1 << 14;
const HEADERS: u16 = 1 << 13;
const DELIVERY_MODE: u16 = 1 << 12;
const PRIORITY: u16 = 1 << 11;
const TIMESTAMP: u16 = 1 << 6;
const USER_ID: u16 = 1 << 4;
const DEPTH_MAX: u8 = 16;

/// The headers table of `properties` (property flags and list, spec 4.2.6.1); empty when there is none.
pub fn headers(properties: &[u8]) -> Table {
    read_headers(properties).unwrap_or_default()
}

/// The user-id of `properties`; two bytes are looked at when there is none.
pub fn user_id(properties: &[u8]) -> Option<&[u8]> {
    let (flags, mut list) = properties.split_first_chunk::<2>()?;
    let flags = u16::from_be_bytes(*flags);
    if flags & USER_ID == 0 {
        return None;
    }
    // The list is in the order of the flags, from the highest bit.
    for field in (0..16).rev().map(|bit| 1u16 << bit).filter(|field| flags & field != 0) {
        let len = match field {
            HEADERS => list.try_get_u32().ok()? as usize,
            DELIVERY_MODE | PRIORITY => 1,
            TIMESTAMP => 8,
            _ => list.try_get_u8().ok()? as usize,
        };
        let value = cut(&mut list, len)?;
        if field == USER_ID {
            return Some(value);
        }
    }
    None
}

fn read_headers(mut bytes: &[u8]) -> Option<Table> {
    let flags = bytes.try_get_u16().ok()?;
    let mut more = flags;
    while more & 1 != 0 {
        more = bytes.try_get_u16().ok()?;
    }
    if flags & HEADERS == 0 {
        return None;
    }
    for flag in [CONTENT_TYPE, CONTENT_ENCODING] {
        if flags & flag != 0 {
            let len = bytes.try_get_u8().ok()? as usize;
            cut(&mut bytes, len)?;
        }
    }
    table(&mut bytes, 0)
}

fn cut<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(head)
}

fn table(bytes: &mut &[u8], depth: u8) -> Option<Table> {
    let len = bytes.try_get_u32().ok()? as usize;
    let mut body = cut(bytes, len)?;
    let mut out = Table::new();
    while !body.is_empty() {
        let len = body.try_get_u8().ok()? as usize;
        let key = String::from_utf8_lossy(cut(&mut body, len)?).into_owned();
        out.insert(key, value(&mut body, depth + 1)?);
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
        b'F' => Value::Table(table(bytes, depth)?),
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

    #[test]
    fn finds_the_table_behind_the_content_type() {
        let mut list = vec![];
        list.put_u16(CONTENT_TYPE | HEADERS);
        list.put_slice(b"\x04text");
        let body = b"\x01kS\x00\x00\x00\x01v\x01nI\x00\x00\x00\x07\x01vV";
        list.put_u32(body.len() as u32);
        list.put_slice(body);
        let table = headers(&list);
        assert_eq!(table["k"], Value::Text(b"v".to_vec()));
        assert_eq!(table["n"], Value::Int(7));
        assert_eq!(table["v"], Value::Void);
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
        assert!(headers(&CONTENT_TYPE.to_be_bytes()).is_empty());
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
        }
    }
}
