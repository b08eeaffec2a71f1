//! Values as rabbitmqctl prints them: Erlang terms in a table, JSON otherwise. Used by `rows` alone.

use crate::model::catalog::{Table, Value};
use serde_json::{Map, Value as Json, json};

/// A name in a table cell: control characters and backslashes as rabbitmqctl escapes them, so a cell never breaks its row.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            c if c.is_ascii_control() => out.push_str(&format!("\\{:03o}", c as u32)),
            c => out.push(c),
        }
    }
    out
}

/// Arguments: `[]`, `[{"x-max-length",10}]`.
pub(super) fn table(table: &Table) -> String {
    let pairs: Vec<String> = table.iter().map(|(key, value)| format!("{{{},{}}}", quoted(key.as_bytes()), term(value))).collect();
    format!("[{}]", pairs.join(","))
}

fn term(value: &Value) -> String {
    match value {
        Value::Void => "undefined".into(),
        Value::Bool(flag) => flag.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => format!("{number:?}"),
        Value::Double(number) => format!("{number:?}"),
        Value::Decimal(scale, digits) => format!("{{{scale},{digits}}}"),
        Value::Text(bytes) | Value::Bytes(bytes) => quoted(bytes),
        Value::Timestamp(seconds) => seconds.to_string(),
        Value::List(values) => format!("[{}]", values.iter().map(term).collect::<Vec<_>>().join(",")),
        Value::Table(inner) => table(inner),
    }
}

fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", escaped(&String::from_utf8_lossy(bytes)).replace('"', "\\\""))
}

/// Arguments as a JSON object.
pub(super) fn table_json(table: &Table) -> Json {
    Json::Object(table.iter().map(|(key, value)| (key.clone(), term_json(value))).collect::<Map<_, _>>())
}

fn term_json(value: &Value) -> Json {
    match value {
        Value::Void => Json::Null,
        Value::Bool(flag) => json!(flag),
        Value::Int(number) => json!(number),
        Value::Float(number) => json!(number),
        Value::Double(number) => json!(number),
        Value::Decimal(scale, digits) => json!(f64::from(*digits) / 10f64.powi(i32::from(*scale))),
        Value::Text(bytes) | Value::Bytes(bytes) => json!(String::from_utf8_lossy(bytes)),
        Value::Timestamp(seconds) => json!(seconds),
        Value::List(values) => Json::Array(values.iter().map(term_json).collect()),
        Value::Table(inner) => table_json(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        Table::from([
            ("x-max-length".to_owned(), Value::Int(10)),
            ("x-queue-type".to_owned(), Value::Text(b"quorum".to_vec())),
            ("z".to_owned(), Value::List(vec![Value::Bool(true), Value::Double(1.0), Value::Table(Table::new())])),
        ])
    }

    #[test]
    fn arguments_read_as_erlang_terms() {
        assert_eq!(table(&Table::new()), "[]");
        assert_eq!(table(&sample()), r#"[{"x-max-length",10},{"x-queue-type","quorum"},{"z",[true,1.0,[]]}]"#);
    }

    #[test]
    fn arguments_read_as_json() {
        assert_eq!(table_json(&sample()).to_string(), r#"{"x-max-length":10,"x-queue-type":"quorum","z":[true,1.0,{}]}"#);
    }

    #[test]
    fn a_name_with_a_tab_or_a_line_break_stays_in_its_cell() {
        assert_eq!(escaped("a\tb\nc\\ü"), "a\\011b\\012c\\\\ü");
    }
}
