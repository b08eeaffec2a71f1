//! `check_certificate_expiration`: which certificates of a node expire before long.

use super::{CtlArgs, CtlError, UNAVAILABLE, USAGE};
use crate::cli::format::Formatter;
use crate::tls::certificate::moment_of;
use serde_json::{Value as Json, json};
use std::time::{SystemTime, UNIX_EPOCH};
use warren_proto::admin::{ListReply, Row};

const DAY_S: u64 = 24 * 3600;

/// A unit of time, as RabbitMQ counts them.
pub(super) struct Unit {
    name: String,
    seconds: u64,
}

impl Unit {
    pub(super) fn parse(name: &str) -> Result<Unit, CtlError> {
        let seconds = match name.to_lowercase().as_str() {
            "days" => DAY_S,
            "weeks" => 7 * DAY_S,
            "months" => 365 * DAY_S / 12,
            "years" => 365 * DAY_S,
            _ => {
                let why = format!("unit '{name}' is not supported. Please use one of: days, weeks, months, years");
                return Err(CtlError::failed(USAGE, format!("Error (argument validation): {why}")));
            }
        };
        Ok(Unit { name: name.to_owned(), seconds })
    }

    /// Of one it is `week`.
    fn label(&self, number: u64) -> &str {
        if number == 1 { self.name.strip_suffix('s').unwrap_or(&self.name) } else { &self.name }
    }
}

/// Listeners with certificates that expire before `until_s` (seconds since 1970), or whose files are of no use; as RabbitMQ's JSON.
fn expiring(reply: &ListReply, until_s: i64) -> Vec<Json> {
    let soon = |row: &Row| {
        let mut cells = serde_json::Map::new();
        for (column, cell) in reply.columns.iter().zip(&row.cells) {
            cells.insert(column.clone(), serde_json::from_str(&cell.json).unwrap_or_default());
        }
        let mut found = false;
        for column in ["certfile_expires_on", "cacertfile_expires_on"] {
            let told = match cells.get(column) {
                Some(Json::Array(times)) => {
                    times.iter().filter_map(Json::as_i64).filter(|at| *at < until_s).map(|at| json!(moment(at))).collect()
                }
                Some(useless) => vec![useless.clone()],
                None => Vec::new(),
            };
            found |= !told.is_empty();
            cells.insert(column.to_owned(), Json::Array(told));
        }
        found.then_some(Json::Object(cells))
    };
    reply.rows.iter().filter_map(soon).collect()
}

/// `2026-11-22 04:11:06`.
fn moment(at_s: i64) -> String {
    moment_of(at_s).map_or_else(|| at_s.to_string(), |moment| moment.replace('T', " ").replace('Z', ""))
}

/// A line for people.
fn line(listener: &Json) -> String {
    let text = |column: &str| listener[column].as_str().map_or_else(|| listener[column].to_string(), str::to_owned);
    let file = |of: &str| {
        let expires = listener[format!("{of}_expires_on")].as_array().filter(|expires| !expires.is_empty())?;
        let all: Vec<String> = expires.iter().map(|at| at.as_str().map_or_else(|| at.to_string(), str::to_owned)).collect();
        Some(format!("{of} {} expires on {}", text(of), all.join(", ")))
    };
    let files: Vec<String> = ["certfile", "cacertfile"].into_iter().filter_map(file).collect();
    format!("Interface: {}, port: {}, protocol: {}: {}", text("interface"), text("port"), text("protocol"), files.join("; "))
}

impl CtlArgs {
    pub(super) fn check_certificates(&self, reply: &ListReply, within: u64, unit: &Unit) -> Result<(), CtlError> {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let until_s = now_s.saturating_add(within.saturating_mul(unit.seconds));
        let expiring = expiring(reply, i64::try_from(until_s).unwrap_or(i64::MAX));
        match self.formatter {
            _ if expiring.is_empty() && self.formatter == Formatter::Json => self.done(),
            _ if expiring.is_empty() => self.say(&format!("No certificates are expiring within {within} {}.", unit.label(within))),
            Formatter::Json => {
                return Err(CtlError::failed(UNAVAILABLE, json!({ "result": "error", "expired": expiring }).to_string()));
            }
            Formatter::Table | Formatter::Csv | Formatter::PrettyTable => {
                return Err(self.unhealthy(expiring.iter().map(line).collect::<Vec<_>>().join("\n")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_proto::admin::Cell;

    fn cell(json: Json) -> Cell {
        Cell { text: String::new(), json: json.to_string() }
    }

    fn reply(own: Json, authorities: Json) -> ListReply {
        let columns =
            ["protocol", "interface", "port", "certfile", "cacertfile", "certfile_expires_on", "cacertfile_expires_on"].map(str::to_owned);
        let cells = [json!("amqp/ssl"), json!("::"), json!(5671), json!("/c.pem"), json!("/ca.pem"), own, authorities].map(cell);
        ListReply { columns: columns.into(), rows: vec![Row { cells: cells.into() }] }
    }

    #[test]
    fn certificates_count_that_expire_before_the_time_and_files_that_cannot_be_read() {
        assert!(expiring(&reply(json!([100, 200]), json!([])), 100).is_empty());
        let found = expiring(&reply(json!([100, 200]), json!([86_399])), 101);
        assert_eq!((&found[0]["certfile_expires_on"], &found[0]["cacertfile_expires_on"]), (&json!(["1970-01-01 00:01:40"]), &json!([])));
        assert_eq!(line(&found[0]), "Interface: ::, port: 5671, protocol: amqp/ssl: certfile /c.pem expires on 1970-01-01 00:01:40");
        let broken = expiring(&reply(json!([100]), json!({ "error": "no certificate in it" })), 0);
        assert_eq!(broken[0]["cacertfile_expires_on"], json!([{ "error": "no certificate in it" }]));
    }

    #[test]
    fn periods_have_rabbitmqs_units() {
        let weeks = Unit::parse("Weeks").unwrap();
        assert_eq!((weeks.seconds, weeks.label(1), weeks.label(4)), (604_800, "Week", "Weeks"));
        assert_eq!(Unit::parse("months").unwrap().seconds, 2_628_000);
        let refused = Unit::parse("hours").err().unwrap();
        assert_eq!(refused.code(), USAGE);
    }
}
