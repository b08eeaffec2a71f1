//! Whether an operator's command makes sense: asked by whoever is about to propose it, never by `apply`. What counts as sense changes with
//! versions, and replicas of different versions must agree on what a command in the log does. Refusals are RabbitMQ's.

use super::bindings::not_found;
use super::pattern::Pattern;
use super::policy::{self, term};
use super::{Catalog, User};
use crate::model::admin::{AdminCommand, PolicyKind};
use crate::model::catalog::{Refusal, Table, Value};
use crate::model::limits::NAME_BYTES;

const VHOST_LIMITS: [&str; 2] = ["max-connections", "max-queues"];
const USER_LIMITS: [&str; 2] = ["max-connections", "max-channels"];

impl Catalog {
    /// What is refused before it gets into the log: names that cannot be, values without a meaning, and the end of what is not there (a
    /// command that was applied and is repeated for want of an answer must not find that).
    pub fn check(&self, command: &AdminCommand) -> Result<(), Refusal> {
        match command {
            AdminCommand::AddUser { user, .. } => is_name("user", user),
            AdminCommand::DeleteUser { user } => self.existing_user(user).map(drop),
            AdminCommand::AddAccessKey { id, key } => {
                is_name("access key", id)?;
                is_name("secret", &key.secret)?;
                if id.contains(':') || !id.bytes().all(|b| b.is_ascii_graphic()) {
                    let why = "an access key is of printable ASCII characters without blanks and colons";
                    return Err(Refusal::Precondition(why.to_owned()));
                }
                self.existing_user(&key.user).map(drop)
            }
            AdminCommand::DeleteAccessKey { id } => match self.access_key(id) {
                Some(_) => Ok(()),
                None => Err(not_found("access key", "", id)),
            },
            AdminCommand::SetUserLimits { limits, .. } => check_limits("user-limits", &USER_LIMITS, limits).map_err(Refusal::Precondition),
            AdminCommand::AddVhost { vhost, .. } => is_name("vhost", vhost),
            AdminCommand::UpdateVhost { vhost, .. } | AdminCommand::DeleteVhost { vhost } => self.existing_vhost(vhost),
            AdminCommand::SetVhostLimits { limits, .. } => check_limits("limits", &VHOST_LIMITS, limits).map_err(failed),
            AdminCommand::SetPermissions { permission, .. } => check_patterns([&permission.configure, &permission.write, &permission.read]),
            AdminCommand::SetTopicPermissions { permission, .. } => check_patterns([&permission.write, &permission.read]),
            AdminCommand::SetPolicy { kind, policy, .. } => {
                is_name("policy name", &policy.name)?;
                policy::check(*kind, policy)
            }
            AdminCommand::ClearPolicy { kind, vhost, name } => self.existing_policy(*kind, vhost, name),
            AdminCommand::SetPassword { .. }
            | AdminCommand::Roster { .. }
            | AdminCommand::SetUserTags { .. }
            | AdminCommand::ClearUserLimits { .. }
            | AdminCommand::ClearVhostLimits { .. }
            | AdminCommand::ClearPermissions { .. }
            | AdminCommand::ClearTopicPermissions { .. } => Ok(()),
        }
    }

    fn existing_user(&self, user: &str) -> Result<&User, Refusal> {
        self.user(user).ok_or_else(|| not_found("user", "", user))
    }

    fn existing_vhost(&self, vhost: &str) -> Result<(), Refusal> {
        if self.has_vhost(vhost) { Ok(()) } else { Err(not_found("vhost", vhost, vhost)) }
    }

    fn existing_policy(&self, kind: PolicyKind, vhost: &str, name: &str) -> Result<(), Refusal> {
        self.existing_vhost(vhost)?;
        match self.policies(kind, vhost).any(|policy| policy.name == name) {
            true => Ok(()),
            false => Err(Refusal::Precondition("Parameter does not exist".to_owned())),
        }
    }
}

fn failed(why: String) -> Refusal {
    Refusal::Precondition(format!("Validation failed\n\n{why}\n"))
}

fn is_name(what: &str, name: &str) -> Result<(), Refusal> {
    match name.len() {
        0 => Err(Refusal::Precondition(format!("{what} cannot be an empty string"))),
        n if n > NAME_BYTES => Err(Refusal::Precondition(format!("{what} cannot be longer than {NAME_BYTES} bytes"))),
        _ => Ok(()),
    }
}

fn check_patterns<const N: usize>(patterns: [&String; N]) -> Result<(), Refusal> {
    for pattern in patterns {
        Pattern::compile(pattern).map_err(|why| Refusal::Precondition(format!("invalid regular expression '{pattern}': {why}")))?;
    }
    Ok(())
}

/// Whole numbers under the names there are.
fn check_limits(what: &str, names: &[&str], limits: &Table) -> Result<(), String> {
    for (name, value) in limits {
        match value {
            _ if !names.contains(&name.as_str()) => {
                return Err(format!("Unrecognised terms [{{<<\"{name}\">>,{}}}] in {what}", term(value)));
            }
            Value::Int(_) => {}
            other => return Err(format!("{name} should be a number, actually was {}", term(other))),
        }
    }
    Ok(())
}
