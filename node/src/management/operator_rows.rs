//! Columns of users, vhosts, permissions, policies and limits, as rabbitmqctl shows them. Used by `admin`.

use super::rows::{Listed, plain, text, unknown};
use super::source::{CertificateFile, CertificateRow, Granted, PolicyRow, SettingRow, UserRow, VhostRow};
use super::term;
use crate::model::admin::{Limits, Permission, TopicPermission, VhostFacts};
use serde_json::json;
use warren_proto::admin::Cell;

/// A list of words as Erlang's atoms look.
fn words(words: &[String]) -> Cell {
    Cell { text: format!("[{}]", words.join(", ")), json: json!(words).to_string() }
}

impl Listed for UserRow {
    const COLUMNS: &'static [&'static str] = &["user", "tags"];
    const DEFAULT: &'static [&'static str] = &["user", "tags"];

    fn cell(&self, column: &str) -> Cell {
        match column {
            "user" => text(&self.user),
            "tags" => words(&self.tags),
            _ => unknown(),
        }
    }
}

impl Listed for VhostRow {
    const COLUMNS: &'static [&'static str] =
        &["name", "description", "tags", "default_queue_type", "protected_from_deletion", "tracing", "cluster_state", "metadata"];
    const DEFAULT: &'static [&'static str] = &["name"];

    fn cell(&self, column: &str) -> Cell {
        match column {
            "name" => text(&self.name),
            "description" => text(&self.facts.description),
            "tags" => words(&self.facts.tags),
            "default_queue_type" => text(self.facts.default_queue_type.as_deref().unwrap_or("undefined")),
            "protected_from_deletion" => plain(self.facts.protected_from_deletion),
            // There is no firehose to switch on.
            "tracing" => plain(false),
            "cluster_state" => self.cluster_state(),
            "metadata" => self.metadata(),
            _ => unknown(),
        }
    }
}

impl VhostRow {
    /// Erlang's pairs of nodes and what the vhost is there.
    fn cluster_state(&self) -> Cell {
        let shown: Vec<String> = self.nodes.iter().map(|node| format!("{{{node}, running}}")).collect();
        let json: Vec<String> = self.nodes.iter().map(|node| format!("\"{node}\":\"running\"")).collect();
        Cell { text: format!("[{}]", shown.join(", ")), json: format!("{{{}}}", json.join(",")) }
    }

    /// What was said of it, as an Erlang map: nothing of what was not.
    fn metadata(&self) -> Cell {
        let VhostFacts { description, tags, default_queue_type, protected_from_deletion } = &self.facts;
        let pairs = [
            ("default_queue_type", default_queue_type.as_deref().map(text)),
            ("description", Some(text(description))),
            ("protected_from_deletion", protected_from_deletion.then(|| plain(true))),
            ("tags", Some(words(tags))),
        ];
        let pairs: Vec<(&str, Cell)> = pairs.into_iter().filter_map(|(name, cell)| Some((name, cell?))).collect();
        let shown: Vec<String> = pairs.iter().map(|(name, cell)| format!("{name} => {}", cell.text)).collect();
        let json: Vec<String> = pairs.iter().map(|(name, cell)| format!("\"{name}\":{}", cell.json)).collect();
        Cell { text: format!("#{{{}}}", shown.join(", ")), json: format!("{{{}}}", json.join(",")) }
    }
}

impl Listed for Granted<Permission> {
    const COLUMNS: &'static [&'static str] = &["user", "vhost", "configure", "write", "read"];
    const DEFAULT: &'static [&'static str] = Self::COLUMNS;

    fn cell(&self, column: &str) -> Cell {
        match column {
            "user" => text(&self.user),
            "vhost" => text(&self.vhost),
            "configure" => text(&self.permission.configure),
            "write" => text(&self.permission.write),
            "read" => text(&self.permission.read),
            _ => unknown(),
        }
    }
}

impl Listed for Granted<TopicPermission> {
    const COLUMNS: &'static [&'static str] = &["user", "vhost", "exchange", "write", "read"];
    const DEFAULT: &'static [&'static str] = Self::COLUMNS;

    fn cell(&self, column: &str) -> Cell {
        match column {
            "user" => text(&self.user),
            "vhost" => text(&self.vhost),
            "exchange" => text(&self.exchange),
            "write" => text(&self.permission.write),
            "read" => text(&self.permission.read),
            _ => unknown(),
        }
    }
}

impl Listed for PolicyRow {
    const COLUMNS: &'static [&'static str] = &["vhost", "name", "pattern", "apply-to", "definition", "priority"];
    const DEFAULT: &'static [&'static str] = Self::COLUMNS;

    fn cell(&self, column: &str) -> Cell {
        match column {
            "vhost" => text(&self.vhost),
            "name" => text(&self.policy.name),
            "pattern" => text(&self.policy.pattern),
            "apply-to" => text(self.policy.apply_to.text()),
            "definition" => text(&term::table_json(&self.policy.definition).to_string()),
            "priority" => plain(self.policy.priority),
            _ => unknown(),
        }
    }
}

/// Limits of vhosts (`vhost`, `limits`) or of users (`user`, `limits`).
pub(super) struct LimitsRow {
    pub(super) of: String,
    pub(super) limits: Limits,
}

impl Listed for LimitsRow {
    const COLUMNS: &'static [&'static str] = &["vhost", "user", "limits"];
    const DEFAULT: &'static [&'static str] = &["vhost", "limits"];

    fn cell(&self, column: &str) -> Cell {
        match column {
            "vhost" | "user" => text(&self.of),
            "limits" => text(&json!(self.limits).to_string()),
            _ => unknown(),
        }
    }
}

/// Times as a JSON array, or an object that says what is wrong with the file.
fn expirations(file: Option<&CertificateFile>) -> Cell {
    match file.map(|file| &file.expire_s) {
        None => plain(json!([])),
        Some(Ok(times)) => plain(json!(times)),
        Some(Err(why)) => plain(json!({ "error": why })),
    }
}

impl Listed for CertificateRow {
    const COLUMNS: &'static [&'static str] =
        &["node", "protocol", "interface", "port", "purpose", "certfile", "cacertfile", "certfile_expires_on", "cacertfile_expires_on"];
    const DEFAULT: &'static [&'static str] = Self::COLUMNS;

    fn cell(&self, column: &str) -> Cell {
        let authorities = self.authorities.as_ref();
        match column {
            "node" | "protocol" | "interface" | "port" | "purpose" => self.listener.cell(column),
            "certfile" => text(&self.own.path),
            "cacertfile" => text(authorities.map_or("", |file| &file.path)),
            "certfile_expires_on" => expirations(Some(&self.own)),
            "cacertfile_expires_on" => expirations(authorities),
            _ => unknown(),
        }
    }
}

impl Listed for SettingRow {
    const COLUMNS: &'static [&'static str] = &["name", "value"];
    const DEFAULT: &'static [&'static str] = Self::COLUMNS;

    fn cell(&self, column: &str) -> Cell {
        match column {
            "name" => text(self.name),
            "value" => text(&self.value),
            _ => unknown(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::list;
    use super::*;
    use crate::model::NodeId;
    use crate::model::admin::{ApplyTo, Policy};
    use crate::model::catalog::{Table, Value};

    fn texts<T: Listed>(item: T, columns: &[&str]) -> Vec<String> {
        let reply = list(&[item], columns.iter().map(|c| (*c).to_owned()).collect()).unwrap();
        reply.rows[0].cells.iter().map(|cell| cell.text.clone()).collect()
    }

    #[test]
    fn users_and_vhosts_read_as_in_rabbitmqctl() {
        let user = UserRow { user: "guest".into(), tags: vec!["administrator".into(), "monitoring".into()] };
        assert_eq!(texts(user, &[]), ["guest", "[administrator, monitoring]"]);
        assert_eq!(texts(UserRow { user: "x".into(), tags: vec![] }, &[]), ["x", "[]"]);
        assert_eq!(texts(VhostRow { name: "/".into(), facts: Default::default(), nodes: Vec::new() }, &["name", "tags"]), ["/", "[]"]);
    }

    #[test]
    fn what_is_said_of_a_vhost_is_shown_as_rabbitmqctl_shows_it() {
        let facts = VhostFacts {
            description: "of orders".into(),
            tags: vec!["a".into(), "b".into()],
            default_queue_type: Some("quorum".into()),
            protected_from_deletion: true,
        };
        let row = VhostRow { name: "v".into(), facts, nodes: vec![NodeId(1), NodeId(3)] };
        let shown = texts(row.clone(), &["description", "tags", "default_queue_type", "protected_from_deletion", "metadata"]);
        let metadata = "#{default_queue_type => quorum, description => of orders, protected_from_deletion => true, tags => [a, b]}";
        assert_eq!(shown, ["of orders", "[a, b]", "quorum", "true", metadata]);
        let json: serde_json::Value = serde_json::from_str(&row.cell("metadata").json).unwrap();
        assert_eq!(
            json,
            json!({ "default_queue_type": "quorum", "description": "of orders", "protected_from_deletion": true, "tags": ["a", "b"] })
        );
        assert_eq!(texts(row.clone(), &["tracing", "cluster_state"]), ["false", "[{1, running}, {3, running}]"]);
        assert_eq!(row.cell("cluster_state").json, r#"{"1":"running","3":"running"}"#);
        let plain = VhostRow { name: "v".into(), facts: VhostFacts::default(), nodes: Vec::new() };
        assert_eq!(texts(plain, &["protected_from_deletion", "metadata"]), ["false", "#{description => , tags => []}"]);
    }

    #[test]
    fn policies_show_their_definition_as_json() {
        let definition =
            Table::from([("max-length".to_owned(), Value::Int(5)), ("overflow".to_owned(), Value::Text(b"drop-head".to_vec()))]);
        let policy = Policy { name: "p".into(), pattern: "^a".into(), apply_to: ApplyTo::Queues, definition, priority: 3 };
        let row = PolicyRow { vhost: "/".into(), policy: policy.into() };
        assert_eq!(texts(row, &[]), ["/", "p", "^a", "queues", r#"{"max-length":5,"overflow":"drop-head"}"#, "3"]);
    }

    #[test]
    fn limits_are_json() {
        let row = LimitsRow { of: "/".into(), limits: Limits::from([("max-queues".to_owned(), 5)]) };
        assert_eq!(texts(row, &[]), ["/", r#"{"max-queues":5}"#]);
    }
}
