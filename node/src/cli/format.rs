//! How `warren ctl` prints rows: rabbitmqctl's tab-separated table, or JSON. Used by `ctl` alone.

use clap::ValueEnum;
use warren_proto::admin::{ListReply, Row};

/// The form of a listing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Formatter {
    /// Tab-separated columns.
    #[default]
    Table,
    /// An array of objects.
    Json,
}

impl Formatter {
    /// The listing, with its last line end.
    pub(super) fn render(self, reply: &ListReply, header: bool) -> String {
        match self {
            Formatter::Table => table(reply, header),
            Formatter::Json => json(reply),
        }
    }
}

/// Like rabbitmqctl, no header when there are no rows.
fn table(reply: &ListReply, header: bool) -> String {
    let mut lines = Vec::new();
    if header && !reply.rows.is_empty() {
        lines.push(reply.columns.join("\t"));
    }
    lines.extend(reply.rows.iter().map(|row| row.cells.iter().map(|cell| cell.text.as_str()).collect::<Vec<_>>().join("\t")));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn json(reply: &ListReply) -> String {
    let object = |row: &Row| {
        let pairs: Vec<String> =
            reply.columns.iter().zip(&row.cells).map(|(column, cell)| format!("{}:{}", serde_json::json!(column), cell.json)).collect();
        format!("{{{}}}", pairs.join(","))
    };
    let rows: Vec<String> = reply.rows.iter().map(object).collect();
    format!("[{}]\n", rows.join("\n,"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_proto::admin::Cell;

    fn reply() -> ListReply {
        let cell = |text: &str, json: &str| Cell { text: text.into(), json: json.into() };
        let row = |name: &str, n: &str| Row { cells: vec![cell(name, &format!("\"{name}\"")), cell(n, n)] };
        ListReply { columns: vec!["name".into(), "messages".into()], rows: vec![row("hello", "1"), row("a b", "0")] }
    }

    #[test]
    fn a_table_has_a_header_and_tabs() {
        assert_eq!(Formatter::Table.render(&reply(), true), "name\tmessages\nhello\t1\na b\t0\n");
        assert_eq!(Formatter::Table.render(&reply(), false), "hello\t1\na b\t0\n");
    }

    #[test]
    fn an_empty_table_is_nothing_at_all() {
        let empty = ListReply { rows: Vec::new(), ..reply() };
        assert_eq!(Formatter::Table.render(&empty, true), "");
        assert_eq!(Formatter::Json.render(&empty, true), "[]\n");
    }

    #[test]
    fn json_is_an_array_of_objects() {
        let parsed: serde_json::Value = serde_json::from_str(&Formatter::Json.render(&reply(), true)).unwrap();
        assert_eq!(parsed, serde_json::json!([{"name": "hello", "messages": 1}, {"name": "a b", "messages": 0}]));
    }
}
