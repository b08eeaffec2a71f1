//! The headers field of a message's raw property list, for headers exchanges only. The session has checked the form; a list that does
//! not parse here gives an empty table. Integer widths are not kept apart (as in the catalog).

use crate::model::catalog::{Table, Value};
use bytes::Buf;

const CONTENT_TYPE: u16 = 1 << 15;
const CONTENT_ENCODING: u16 = 1 << 14;
const HEADERS: u16 = 1 << 13;
const DEPTH_MAX: u8 = 16;

/// The headers table of `properties` (property flags and list, spec 4.2.6.1); empty when there is none.
pub fn headers(properties: &[u8]) -> Table {
    read_headers(properties).unwrap_or_default()
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
                bytes[1] = 0;
            }
            headers(&bytes);
        }
    }
}
