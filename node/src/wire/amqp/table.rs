//! Field tables (spec 4.2.5.5) with RabbitMQ's type letters, to and from `model::catalog::Table`. `skip` checks the form of a table
//! without building it: content headers pass through with that.

use super::primitive::{Malformed, put_short};
use crate::model::catalog::{Table, Value};
use bytes::{Buf, BufMut, BytesMut};

/// Tables within tables: deeper ones are refused, so that a crafted frame cannot exhaust the stack.
const DEPTH: usize = 64;

/// Reads the entries of a table (what follows its length). Of a repeated key the first counts, as in RabbitMQ.
pub fn read_entries(bytes: &[u8]) -> Result<Table, Malformed> {
    read_table(bytes, DEPTH)
}

/// Reads a table with its length from the front of `bytes`.
pub fn read(bytes: &mut &[u8]) -> Result<Table, Malformed> {
    read_entries(cut_long(bytes)?)
}

/// Checks the form of a table with its length at the front of `bytes` and steps over it. Allocates nothing.
pub fn skip(bytes: &mut &[u8]) -> Result<(), Malformed> {
    skip_entries(cut_long(bytes)?, DEPTH)
}

/// Appends a table with its length.
pub fn write(out: &mut BytesMut, table: &Table) {
    let at = begin(out);
    for (key, value) in table {
        put_short(out, key.as_bytes());
        write_value(out, value);
    }
    end(out, at);
}

fn begin(out: &mut BytesMut) -> usize {
    out.put_u32(0);
    out.len()
}

fn end(out: &mut BytesMut, at: usize) {
    let len = (out.len() - at) as u32;
    out[at - 4..at].copy_from_slice(&len.to_be_bytes());
}

fn cut<'a>(bytes: &mut &'a [u8], len: usize) -> Result<&'a [u8], Malformed> {
    let (head, tail) = bytes.split_at_checked(len).ok_or(Malformed("table"))?;
    *bytes = tail;
    Ok(head)
}

fn cut_short<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let len = cut(bytes, 1)?[0] as usize;
    cut(bytes, len)
}

fn cut_long<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let len = cut(bytes, 4)?.get_u32() as usize;
    cut(bytes, len)
}

fn read_table(mut bytes: &[u8], depth: usize) -> Result<Table, Malformed> {
    let depth = depth.checked_sub(1).ok_or(Malformed("table: too deep"))?;
    let mut table = Table::new();
    while !bytes.is_empty() {
        let key = str::from_utf8(cut_short(&mut bytes)?).map_err(|_| Malformed("table key"))?;
        let value = read_value(&mut bytes, depth)?;
        table.entry(key.to_owned()).or_insert(value);
    }
    Ok(table)
}

fn read_value(bytes: &mut &[u8], depth: usize) -> Result<Value, Malformed> {
    let kind = cut(bytes, 1)?[0];
    Ok(match kind {
        b't' => Value::Bool(cut(bytes, 1)?[0] != 0),
        b'b' => Value::Int(cut(bytes, 1)?.get_i8().into()),
        b'B' => Value::Int(cut(bytes, 1)?.get_u8().into()),
        b's' => Value::Int(cut(bytes, 2)?.get_i16().into()),
        b'u' => Value::Int(cut(bytes, 2)?.get_u16().into()),
        b'I' => Value::Int(cut(bytes, 4)?.get_i32().into()),
        b'i' => Value::Int(cut(bytes, 4)?.get_u32().into()),
        // RabbitMQ reads and writes `L`, the specification's unsigned type, as `l`.
        b'l' | b'L' => Value::Int(cut(bytes, 8)?.get_i64()),
        b'f' => Value::Float(cut(bytes, 4)?.get_f32()),
        b'd' => Value::Double(cut(bytes, 8)?.get_f64()),
        b'D' => {
            let mut decimal = cut(bytes, 5)?;
            Value::Decimal(decimal.get_u8(), decimal.get_i32())
        }
        b'S' => Value::Text(cut_long(bytes)?.to_vec()),
        b'x' => Value::Bytes(cut_long(bytes)?.to_vec()),
        b'T' => Value::Timestamp(cut(bytes, 8)?.get_u64()),
        b'A' => Value::List(read_list(cut_long(bytes)?, depth)?),
        b'F' => Value::Table(read_table(cut_long(bytes)?, depth)?),
        b'V' => Value::Void,
        _ => return Err(Malformed("table: type of a value")),
    })
}

fn read_list(mut bytes: &[u8], depth: usize) -> Result<Vec<Value>, Malformed> {
    let depth = depth.checked_sub(1).ok_or(Malformed("table: too deep"))?;
    let mut list = Vec::new();
    while !bytes.is_empty() {
        list.push(read_value(&mut bytes, depth)?);
    }
    Ok(list)
}

fn skip_entries(mut bytes: &[u8], depth: usize) -> Result<(), Malformed> {
    let depth = depth.checked_sub(1).ok_or(Malformed("table: too deep"))?;
    while !bytes.is_empty() {
        cut_short(&mut bytes)?;
        skip_value(&mut bytes, depth)?;
    }
    Ok(())
}

fn skip_value(bytes: &mut &[u8], depth: usize) -> Result<(), Malformed> {
    let fixed = match cut(bytes, 1)?[0] {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'l' | b'L' | b'd' | b'T' => 8,
        b'S' | b'x' => return cut_long(bytes).map(drop),
        b'F' => return skip_entries(cut_long(bytes)?, depth),
        b'A' => {
            let depth = depth.checked_sub(1).ok_or(Malformed("table: too deep"))?;
            let mut list = cut_long(bytes)?;
            while !list.is_empty() {
                skip_value(&mut list, depth)?;
            }
            return Ok(());
        }
        _ => return Err(Malformed("table: type of a value")),
    };
    cut(bytes, fixed).map(drop)
}

fn write_value(out: &mut BytesMut, value: &Value) {
    match value {
        Value::Void => out.put_u8(b'V'),
        Value::Bool(set) => {
            out.put_u8(b't');
            out.put_u8(u8::from(*set));
        }
        Value::Int(int) => write_int(out, *int),
        Value::Float(float) => {
            out.put_u8(b'f');
            out.put_f32(*float);
        }
        Value::Double(double) => {
            out.put_u8(b'd');
            out.put_f64(*double);
        }
        Value::Decimal(scale, unscaled) => {
            out.put_u8(b'D');
            out.put_u8(*scale);
            out.put_i32(*unscaled);
        }
        Value::Text(text) => write_long(out, b'S', text),
        Value::Bytes(bytes) => write_long(out, b'x', bytes),
        Value::Timestamp(seconds) => {
            out.put_u8(b'T');
            out.put_u64(*seconds);
        }
        Value::List(list) => {
            out.put_u8(b'A');
            let at = begin(out);
            list.iter().for_each(|v| write_value(out, v));
            end(out, at);
        }
        Value::Table(table) => {
            out.put_u8(b'F');
            write(out, table);
        }
    }
}

/// 32 bits when they suffice: old clients do not know `l`.
fn write_int(out: &mut BytesMut, int: i64) {
    match i32::try_from(int) {
        Ok(int) => {
            out.put_u8(b'I');
            out.put_i32(int);
        }
        Err(_) => {
            out.put_u8(b'l');
            out.put_i64(int);
        }
    }
}

fn write_long(out: &mut BytesMut, kind: u8, bytes: &[u8]) {
    out.put_u8(kind);
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
}
