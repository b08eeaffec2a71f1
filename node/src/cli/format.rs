//! How `warren ctl` prints rows: rabbitmqctl's tab-separated table, JSON, CSV or a table with lines. Used by `ctl` alone.

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
    /// Comma-separated columns.
    Csv,
    /// With lines around.
    #[value(name = "pretty_table")]
    PrettyTable,
}

impl Formatter {
    /// The listing, with its last line end.
    pub(super) fn render(self, reply: &ListReply, header: bool) -> String {
        match self {
            Formatter::Table => table(reply, header),
            Formatter::Json => json(reply),
            Formatter::Csv => csv(reply),
            Formatter::PrettyTable => pretty(reply),
        }
    }

    /// Nothing may stand around the rows.
    pub(super) fn is_for_machines(self) -> bool {
        match self {
            Formatter::Json | Formatter::Csv => true,
            Formatter::Table | Formatter::PrettyTable => false,
        }
    }
}

/// RFC 4180, with the header always.
fn csv(reply: &ListReply) -> String {
    let quoted = |text: &str| match text.contains(['"', ',', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    };
    let line = |cells: Vec<&str>| cells.into_iter().map(quoted).collect::<Vec<_>>().join(",") + "\n";
    let header = line(reply.columns.iter().map(String::as_str).collect());
    let rows = reply.rows.iter().map(|row| line(row.cells.iter().map(|cell| cell.text.as_str()).collect()));
    if reply.rows.is_empty() { String::new() } else { header + &rows.collect::<String>() }
}

/// A box around every cell; nothing when there are no rows.
fn pretty(reply: &ListReply) -> String {
    let texts = |row: &Row| row.cells.iter().map(|cell| cell.text.clone()).collect::<Vec<_>>();
    let rows: Vec<Vec<String>> = std::iter::once(reply.columns.clone()).chain(reply.rows.iter().map(texts)).collect();
    if reply.rows.is_empty() {
        return String::new();
    }
    let widths: Vec<usize> =
        (0..reply.columns.len()).map(|at| rows.iter().filter_map(|r| r.get(at)).map(|c| c.chars().count()).max().unwrap_or(0)).collect();
    let rule = |left: &str, middle: &str, right: &str| {
        let lines: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
        format!("{left}{}{right}\n", lines.join(middle))
    };
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!(" {cell}{} ", " ".repeat(width - cell.chars().count())));
        format!("│{}│\n", cells.collect::<Vec<_>>().join("│"))
    };
    let between = rule("├", "┼", "┤");
    let body: Vec<String> = rows.iter().map(line).collect();
    format!("{}{}{}", rule("┌", "┬", "┐"), body.join(&between), rule("└", "┴", "┘"))
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
    fn csv_quotes_what_needs_it() {
        let mut reply = reply();
        reply.rows[0].cells[0].text = "a,\"b\"".into();
        assert_eq!(Formatter::Csv.render(&reply, false), "name,messages\n\"a,\"\"b\"\"\",1\na b,0\n");
    }

    #[test]
    fn a_pretty_table_has_a_box_around_every_cell() {
        let expected = "\
┌───────┬──────────┐
│ name  │ messages │
├───────┼──────────┤
│ hello │ 1        │
├───────┼──────────┤
│ a b   │ 0        │
└───────┴──────────┘
";
        assert_eq!(Formatter::PrettyTable.render(&reply(), true), expected);
    }

    #[test]
    fn json_is_an_array_of_objects() {
        let parsed: serde_json::Value = serde_json::from_str(&Formatter::Json.render(&reply(), true)).unwrap();
        assert_eq!(parsed, serde_json::json!([{"name": "hello", "messages": 1}, {"name": "a b", "messages": 0}]));
    }
}
