//! Values of AMQP 1.0's type system (part 1, section 1.6), read where they lie. Nothing is built or copied: lists, maps and arrays are walked.

/// Bytes that are not AMQP 1.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not AMQP 1.0: {0}")]
pub struct Malformed(pub &'static str);

/// Descriptors of descriptors that are looked through.
const DEPTH_MAX: u8 = 8;

/// A value, borrowed.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Ubyte(u8),
    Ushort(u16),
    Uint(u32),
    Ulong(u64),
    Byte(i8),
    Short(i16),
    Int(i32),
    Long(i64),
    Float(f32),
    Double(f64),
    Char(u32),
    /// Milliseconds since the epoch.
    Timestamp(i64),
    Uuid(&'a [u8; 16]),
    Binary(&'a [u8]),
    /// A string, as it came: UTF-8 is not checked.
    Text(&'a [u8]),
    Symbol(&'a [u8]),
    List(Items<'a>),
    /// Keys and values alternate.
    Map(Items<'a>),
    Array(Items<'a>),
    /// Decimals, described values and arrays of them: passed over.
    Other,
}

/// The values within a list, a map or an array.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Items<'a> {
    count: u32,
    /// What all items of an array begin with.
    code: Option<u8>,
    bytes: &'a [u8],
}

impl<'a> Items<'a> {
    /// Those of a map, as pairs. A key without a value ends it.
    pub fn pairs(self) -> impl Iterator<Item = Result<(Value<'a>, Value<'a>), Malformed>> {
        let mut items = self;
        std::iter::from_fn(move || {
            let key = items.next()?;
            let value = items.next().unwrap_or(Err(Malformed("a map with an odd number of items")));
            Some(key.and_then(|key| Ok((key, value?))))
        })
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<Value<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        self.count = self.count.checked_sub(1)?;
        let read = match self.code {
            Some(code) => read_coded(code, &mut self.bytes),
            None => read(&mut self.bytes),
        };
        if read.is_err() {
            self.count = 0;
        }
        Some(read)
    }
}

/// Takes a value off the front of `bytes`.
pub(super) fn read<'a>(bytes: &mut &'a [u8]) -> Result<Value<'a>, Malformed> {
    match cut::<1>(bytes)? {
        [0] => {
            skip(bytes, DEPTH_MAX)?;
            skip(bytes, DEPTH_MAX)?;
            Ok(Value::Other)
        }
        [code] => read_coded(*code, bytes),
    }
}

fn read_coded<'a>(code: u8, bytes: &mut &'a [u8]) -> Result<Value<'a>, Malformed> {
    Ok(match code {
        0x40 => Value::Null,
        0x41 => Value::Bool(true),
        0x42 => Value::Bool(false),
        0x43 => Value::Uint(0),
        0x44 => Value::Ulong(0),
        0x45 => Value::List(Items::default()),
        0x50 => Value::Ubyte(cut::<1>(bytes)?[0]),
        0x51 => Value::Byte(i8::from_be_bytes(*cut(bytes)?)),
        0x52 => Value::Uint(cut::<1>(bytes)?[0].into()),
        0x53 => Value::Ulong(cut::<1>(bytes)?[0].into()),
        0x54 => Value::Int(i8::from_be_bytes(*cut(bytes)?).into()),
        0x55 => Value::Long(i8::from_be_bytes(*cut(bytes)?).into()),
        0x56 => Value::Bool(cut::<1>(bytes)?[0] != 0),
        0x60 => Value::Ushort(u16::from_be_bytes(*cut(bytes)?)),
        0x61 => Value::Short(i16::from_be_bytes(*cut(bytes)?)),
        0x70 => Value::Uint(u32::from_be_bytes(*cut(bytes)?)),
        0x71 => Value::Int(i32::from_be_bytes(*cut(bytes)?)),
        0x72 => Value::Float(f32::from_be_bytes(*cut(bytes)?)),
        0x73 => Value::Char(u32::from_be_bytes(*cut(bytes)?)),
        0x80 => Value::Ulong(u64::from_be_bytes(*cut(bytes)?)),
        0x81 => Value::Long(i64::from_be_bytes(*cut(bytes)?)),
        0x82 => Value::Double(f64::from_be_bytes(*cut(bytes)?)),
        0x83 => Value::Timestamp(i64::from_be_bytes(*cut(bytes)?)),
        0x98 => Value::Uuid(cut(bytes)?),
        0xa0 | 0xb0 => Value::Binary(cut_sized(code, bytes)?),
        0xa1 | 0xb1 => Value::Text(cut_sized(code, bytes)?),
        0xa3 | 0xb3 => Value::Symbol(cut_sized(code, bytes)?),
        0xc0 | 0xd0 => Value::List(items(code, bytes)?),
        0xc1 | 0xd1 => Value::Map(items(code, bytes)?),
        0xe0 | 0xf0 => array(code, bytes)?,
        0x74 | 0x84 | 0x94 => {
            cut_len(bytes, fixed_len(code))?;
            Value::Other
        }
        _ => return Err(Malformed("an unknown type")),
    })
}

/// The items of a list or map; each takes a byte at least.
fn items<'a>(code: u8, bytes: &mut &'a [u8]) -> Result<Items<'a>, Malformed> {
    let mut bytes = cut_sized(code, bytes)?;
    let count = read_size(code, &mut bytes)?;
    if count as usize > bytes.len() {
        return Err(Malformed("more items than bytes"));
    }
    Ok(Items { count, code: None, bytes })
}

/// Items of no bytes would make an array of any length out of nothing: refused.
fn array<'a>(code: u8, bytes: &mut &'a [u8]) -> Result<Value<'a>, Malformed> {
    let mut bytes = cut_sized(code, bytes)?;
    let count = read_size(code, &mut bytes)?;
    let [code] = *cut::<1>(&mut bytes)?;
    if code == 0 {
        return Ok(Value::Other);
    }
    if count as usize > bytes.len() {
        return Err(Malformed("more items than bytes"));
    }
    Ok(Value::Array(Items { count, code: Some(code), bytes }))
}

fn skip(bytes: &mut &[u8], depth: u8) -> Result<(), Malformed> {
    let [code] = *cut::<1>(bytes)?;
    match code >> 4 {
        0 if code == 0 => {
            let depth = depth.checked_sub(1).ok_or(Malformed("descriptors too deep"))?;
            skip(bytes, depth)?;
            skip(bytes, depth)
        }
        4..=9 => cut_len(bytes, fixed_len(code)).map(drop),
        0xa..=0xf => cut_sized(code, bytes).map(drop),
        _ => Err(Malformed("an unknown type")),
    }
}

/// Bytes of a value of fixed width, by the upper half of its code (section 1.2).
fn fixed_len(code: u8) -> usize {
    match code >> 4 {
        4 => 0,
        width => 1 << (width - 5),
    }
}

fn cut<'a, const N: usize>(bytes: &mut &'a [u8]) -> Result<&'a [u8; N], Malformed> {
    let (head, rest) = bytes.split_first_chunk::<N>().ok_or(Malformed("cut short"))?;
    *bytes = rest;
    Ok(head)
}

fn cut_len<'a>(bytes: &mut &'a [u8], len: usize) -> Result<&'a [u8], Malformed> {
    let (head, rest) = bytes.split_at_checked(len).ok_or(Malformed("cut short"))?;
    *bytes = rest;
    Ok(head)
}

/// A value behind its size: one byte when bit 4 of its code is clear, else four.
fn cut_sized<'a>(code: u8, bytes: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let len = read_size(code, bytes)?;
    cut_len(bytes, len as usize)
}

fn read_size(code: u8, bytes: &mut &[u8]) -> Result<u32, Malformed> {
    match code & 0x10 {
        0 => Ok(cut::<1>(bytes)?[0].into()),
        _ => Ok(u32::from_be_bytes(*cut(bytes)?)),
    }
}
