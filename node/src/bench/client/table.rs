//! Field tables as this client writes and reads them (AMQP 0-9-1 section 4.2.5.5, with RabbitMQ's type letters).

use super::encode::{long_string, short_string};

/// A value; the letters are RabbitMQ's.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    /// `t`
    Bool(bool),
    /// `I` when written; any integer when read.
    Int(i64),
    /// `S`
    Text(String),
    /// `F`
    Table(Table),
    /// Any other type, as its letter; its value is skipped.
    Other(char),
}

/// A table in the order of the wire.
pub type Table = Vec<(String, Field)>;

/// Append a table with its length.
pub fn put_table(out: &mut Vec<u8>, table: &[(String, Field)]) {
    let mut inner = Vec::new();
    for (name, field) in table {
        short_string(&mut inner, name);
        put_field(&mut inner, field);
    }
    long_string(out, &inner);
}

fn put_field(out: &mut Vec<u8>, field: &Field) {
    match field {
        Field::Bool(value) => out.extend_from_slice(&[b't', u8::from(*value)]),
        Field::Int(value) if i32::try_from(*value).is_ok() => {
            out.push(b'I');
            out.extend_from_slice(&(*value as i32).to_be_bytes());
        }
        Field::Int(value) => {
            out.push(b'l');
            out.extend_from_slice(&value.to_be_bytes());
        }
        Field::Text(value) => {
            out.push(b'S');
            long_string(out, value.as_bytes());
        }
        Field::Table(table) => {
            out.push(b'F');
            put_table(out, table);
        }
        Field::Other(_) => out.push(b'V'),
    }
}

/// Reads values from the front of a slice; `None` when it is too short or not UTF-8 where text is due.
#[derive(Clone, Debug)]
pub struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    /// Big-endian unsigned integer of `n` bytes (at most 8).
    pub fn uint(&mut self, n: usize) -> Option<u64> {
        Some(self.take(n)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    /// One byte.
    pub fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        Some(self.uint(2)? as u16)
    }

    /// A short string.
    pub fn short(&mut self) -> Option<&'a str> {
        let n = self.u8()?;
        std::str::from_utf8(self.take(usize::from(n))?).ok()
    }

    /// A long string.
    pub fn long(&mut self) -> Option<&'a [u8]> {
        let n = self.uint(4)?;
        self.take(n as usize)
    }

    /// A field table.
    pub fn table(&mut self) -> Option<Table> {
        let mut inner = Cursor(self.long()?);
        let mut table = Table::new();
        while !inner.0.is_empty() {
            let name = inner.short()?.to_owned();
            table.push((name, inner.field()?));
        }
        Some(table)
    }

    fn field(&mut self) -> Option<Field> {
        let letter = self.u8()?;
        Some(match letter {
            b't' => Field::Bool(self.u8()? != 0),
            b'b' => Field::Int(i64::from(self.u8()? as i8)),
            b'B' => Field::Int(i64::from(self.u8()?)),
            b's' => Field::Int(i64::from(self.u16()? as i16)),
            b'u' => Field::Int(i64::from(self.u16()?)),
            b'I' => Field::Int(i64::from(self.uint(4)? as u32 as i32)),
            b'i' => Field::Int(self.uint(4)? as i64),
            b'l' | b'L' => Field::Int(self.uint(8)? as i64),
            b'S' => Field::Text(String::from_utf8_lossy(self.long()?).into_owned()),
            b'F' => Field::Table(self.table()?),
            b'x' | b'A' => self.skip(letter, None)?,
            b'f' => self.skip(letter, Some(4))?,
            b'd' | b'T' => self.skip(letter, Some(8))?,
            b'D' => self.skip(letter, Some(5))?,
            b'V' => Field::Other('V'),
            _ => return None,
        })
    }

    fn skip(&mut self, letter: u8, bytes: Option<usize>) -> Option<Field> {
        match bytes {
            Some(n) => self.take(n)?,
            None => self.long()?,
        };
        Some(Field::Other(char::from(letter)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_back_as_written() {
        let inner = vec![("deep".to_owned(), Field::Bool(false))];
        let table: Table = vec![
            ("b".into(), Field::Bool(true)),
            ("small".into(), Field::Int(-7)),
            ("big".into(), Field::Int(1 << 40)),
            ("t".into(), Field::Text("x".into())),
            ("f".into(), Field::Table(inner)),
        ];
        let mut bytes = Vec::new();
        put_table(&mut bytes, &table);
        let mut cursor = Cursor(&bytes);
        assert_eq!(cursor.table(), Some(table));
        assert!(cursor.0.is_empty());
    }

    #[test]
    fn a_cut_table_is_not_read() {
        let mut bytes = Vec::new();
        put_table(&mut bytes, &[("a".into(), Field::Text("long enough".into()))]);
        for cut in 0..bytes.len() {
            assert_eq!(Cursor(&bytes[..cut]).table(), None, "cut at {cut}");
        }
    }
}
