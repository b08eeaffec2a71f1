//! Commands that change users, vhosts, permissions, policies, limits, queues and connections. Passwords are hashed here: they do
//! not travel.

use super::commands::{CtlCommand, PolicyArgs};
use super::{CtlArgs, CtlError, DATA, SOFTWARE, UNAVAILABLE, USAGE, print};
use crate::machine::catalog::{decode_base64, hash_password, password_digest};
use crate::management::client::{AdminClient, ClientError};
use crate::model::NodeId;
use crate::model::admin::{AdminCommand, ApplyTo, Permission, Policy, PolicyKind, TopicPermission, VhostFacts, VhostPatch};
use crate::model::catalog::{Refusal, Table, Value};
use crate::model::rocketmq::AccessKey;
use crate::model::roster::RosterChange;
use crate::peer::auth::Secret;
use serde_json::Value as Json;
use warren_proto::admin::{CloseRequest, QueueRequest};

/// A change, with the line before it and what is said when it is done.
pub(super) struct Change {
    pub(super) banner: String,
    pub(super) command: AdminCommand,
    pub(super) done: Option<String>,
}

const QUEUE_TYPES: [&str; 3] = ["classic", "quorum", "stream"];
/// Bytes of a hash: salt and SHA-256.
const HASH_BYTES: usize = 4 + 32;
const ADDED: &str =
    "Done. Don't forget to grant the user permissions to some virtual hosts! See 'rabbitmqctl help set_permissions' to learn more.";

fn roster(change: RosterChange) -> AdminCommand {
    AdminCommand::Roster { change, founders: Vec::new() }
}

/// As `cluster_status` lists nodes: `4@host:port`, or the number alone.
fn node_id(text: &str) -> Result<NodeId, CtlError> {
    let number = text.split_once('@').map_or(text, |(number, _)| number);
    let why = || format!("Error: {text} is not a node; name it by its number, as `warren ctl cluster_status` lists it");
    number.parse().map(NodeId).map_err(|_| CtlError::failed(USAGE, why()))
}

fn change(banner: String, command: AdminCommand) -> Result<Option<Change>, CtlError> {
    Ok(Some(Change { banner, command, done: None }))
}

impl CtlArgs {
    /// `None`: the command is none of these.
    pub(super) fn change(&self) -> Result<Option<Change>, CtlError> {
        let vhost = self.vhost.clone();
        match self.command.clone() {
            CtlCommand::SetPermissions { username: user, configure, write, read } => {
                let permission = Permission { configure, write, read };
                let banner = format!("Setting permissions for user \"{user}\" in vhost \"{vhost}\" ...");
                change(banner, AdminCommand::SetPermissions { user, vhost, permission })
            }
            CtlCommand::ClearPermissions { username: user } => {
                let banner = format!("Clearing permissions for user \"{user}\" in vhost \"{vhost}\" ...");
                change(banner, AdminCommand::ClearPermissions { user, vhost })
            }
            CtlCommand::SetTopicPermissions { username: user, exchange, write, read } => {
                let banner = format!("Setting topic permissions on \"{exchange}\" for user \"{user}\" in vhost \"{vhost}\" ...");
                let permission = TopicPermission { write, read };
                change(banner, AdminCommand::SetTopicPermissions { user, vhost, exchange, permission })
            }
            CtlCommand::ClearTopicPermissions { username: user, exchange } => {
                let on = exchange.as_ref().map_or_else(String::new, |x| format!(" on \"{x}\""));
                let banner = format!("Clearing topic permissions{on} for user \"{user}\" in vhost \"{vhost}\" ...");
                change(banner, AdminCommand::ClearTopicPermissions { user, vhost, exchange })
            }
            CtlCommand::SetPolicy(policy) => self.set_policy(PolicyKind::User, &policy),
            CtlCommand::SetOperatorPolicy(policy) => self.set_policy(PolicyKind::Operator, &policy),
            CtlCommand::ClearPolicy { name } => {
                let banner = format!("Clearing policy \"{name}\" on vhost \"{vhost}\" ...");
                change(banner, AdminCommand::ClearPolicy { kind: PolicyKind::User, vhost, name })
            }
            CtlCommand::ClearOperatorPolicy { name } => {
                let banner = format!("Clearing operator policy \"{name}\" on vhost \"{vhost}\" ...");
                change(banner, AdminCommand::ClearPolicy { kind: PolicyKind::Operator, vhost, name })
            }
            CtlCommand::SetVhostLimits { definition } => {
                let banner = format!("Setting vhost limits to \"{definition}\" for vhost \"{vhost}\" ...");
                change(banner, AdminCommand::SetVhostLimits { vhost, limits: parse(&definition)? })
            }
            CtlCommand::ClearVhostLimits => {
                change(format!("Clearing vhost \"{vhost}\" limits ..."), AdminCommand::ClearVhostLimits { vhost })
            }
            CtlCommand::UpdateVhostMetadata { vhost_name: vhost, description, tags, default_queue_type, protected_from_deletion } => {
                let tags = tags.as_deref().map(words);
                update_vhost(vhost, VhostPatch { description, tags, default_queue_type, protected_from_deletion })
            }
            CtlCommand::SetVhostTags { vhost_name: vhost, tags } => {
                let banner = format!("Setting tags for virtual host \"{vhost}\" to [{}] ...", tags.join(", "));
                let patch = VhostPatch { tags: Some(tags), ..VhostPatch::default() };
                change(banner, AdminCommand::UpdateVhost { vhost, patch })
            }
            CtlCommand::EnableVhostDeletionProtection { vhost_name } => protect_vhost(vhost_name, true),
            CtlCommand::DisableVhostDeletionProtection { vhost_name } => protect_vhost(vhost_name, false),
            CtlCommand::AddVhost { vhost_name, description, tags, default_queue_type } => {
                add_vhost(vhost_name, description, &tags, default_queue_type)
            }
            CtlCommand::DeleteVhost { vhost_name: vhost } => {
                change(format!("Deleting vhost \"{vhost}\" ..."), AdminCommand::DeleteVhost { vhost })
            }
            CtlCommand::Drain { member } => {
                let (banner, node) = (format!("Draining node {member} ..."), node_id(&member)?);
                let done = "The replicas of the node go to others. `warren ctl cluster_status` shows how far that is.".to_owned();
                Ok(Some(Change { banner, command: roster(RosterChange::Drain { node }), done: self.is_chatty().then_some(done) }))
            }
            CtlCommand::ForgetClusterNode { member } => {
                let (banner, node) = (format!("Removing node {member} from the cluster ..."), node_id(&member)?);
                change(banner, roster(RosterChange::Remove { node }))
            }
            _ => self.change_user(),
        }
    }

    fn change_user(&self) -> Result<Option<Change>, CtlError> {
        match self.command.clone() {
            CtlCommand::AddUser { username: user, password, pre_hashed_password } => {
                let banner = format!("Adding user \"{user}\" ...");
                let prompt = if pre_hashed_password { "Hashed and salted password: " } else { "Password: " };
                let password = self.password(password.as_deref(), prompt, DATA)?;
                let password_hash = if pre_hashed_password { checked_hash(password)? } else { hash(&password) };
                let done = self.is_chatty().then(|| ADDED.to_owned());
                Ok(Some(Change { banner, command: AdminCommand::AddUser { user, password_hash }, done }))
            }
            CtlCommand::AddAccessKey { access_key, secret, user } => {
                let banner = format!("Adding access key \"{access_key}\" ...");
                let done = secret.is_none();
                let secret = secret.unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
                let key = AccessKey { secret: secret.clone(), user: user.unwrap_or_else(|| access_key.clone()) };
                Ok(Some(Change { banner, command: AdminCommand::AddAccessKey { id: access_key, key }, done: done.then_some(secret) }))
            }
            CtlCommand::DeleteAccessKey { access_key: id } => {
                change(format!("Deleting access key \"{id}\" ..."), AdminCommand::DeleteAccessKey { id })
            }
            CtlCommand::DeleteUser { username: user } => change(format!("Deleting user \"{user}\" ..."), AdminCommand::DeleteUser { user }),
            CtlCommand::ChangePassword { username: user, password } => {
                let banner = format!("Changing password for user \"{user}\" ...");
                let password_hash = hash(&self.password(password.as_deref(), "Password: ", SOFTWARE)?);
                change(banner, AdminCommand::SetPassword { user, password_hash })
            }
            CtlCommand::ClearPassword { username: user } => {
                let banner = format!("Clearing password for user \"{user}\" ...");
                change(banner, AdminCommand::SetPassword { user, password_hash: String::new() })
            }
            CtlCommand::SetUserTags { username: user, tags } => {
                let banner = format!("Setting tags for user \"{user}\" to [{}] ...", tags.join(", "));
                change(banner, AdminCommand::SetUserTags { user, tags })
            }
            CtlCommand::SetUserLimits { username: user, definition } => {
                let banner = format!("Setting user limits to \"{definition}\" for user \"{user}\" ...");
                change(banner, AdminCommand::SetUserLimits { user, limits: parse(&definition)? })
            }
            CtlCommand::ClearUserLimits { username: user, limit_type: limit } => {
                let banner = match limit.as_str() {
                    "all" => format!("Clearing all limits for user \"{user}\" ..."),
                    one => format!("Clearing \"{one}\" limit for user \"{user}\" ..."),
                };
                change(banner, AdminCommand::ClearUserLimits { user, limit })
            }
            _ => Ok(None),
        }
    }

    fn set_policy(&self, kind: PolicyKind, args: &PolicyArgs) -> Result<Option<Change>, CtlError> {
        let PolicyArgs { name, pattern, definition, priority, apply_to } = args;
        let what = match kind {
            PolicyKind::User => "policy",
            PolicyKind::Operator => "operator policy override",
        };
        let vhost = self.vhost.clone();
        let banner = format!(
            "Setting {what} \"{name}\" for pattern \"{pattern}\" to \"{definition}\" with priority \"{priority}\" for vhost \"{vhost}\" ..."
        );
        let unknown = || {
            let text = format!(
                "Error:\nValidation failed\n\napply-to '{apply_to}' unrecognised; should be one of: 'queues', 'classic_queues',  \
                 'quorum_queues', 'streams', 'exchanges', or 'all'\n"
            );
            CtlError::failed(UNAVAILABLE, text)
        };
        let apply_to = ApplyTo::parse(apply_to).ok_or_else(unknown)?;
        let definition = parse(definition)?;
        let policy = Policy { name: name.clone(), pattern: pattern.clone(), apply_to, definition, priority: *priority };
        change(banner, AdminCommand::SetPolicy { kind, vhost, policy })
    }

    /// As given, or a line of standard input.
    fn password(&self, given: Option<&str>, prompt: &str, code: u8) -> Result<String, CtlError> {
        if let Some(password) = given {
            return Ok(password.to_owned());
        }
        self.inform(prompt);
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line)? == 0 {
            return Err(CtlError::failed(code, "Error:\nPassword is not provided via argument or stdin"));
        }
        Ok(line.trim().to_owned())
    }

    pub(super) fn hash_password(&self, password: Option<&str>) -> Result<(), CtlError> {
        self.inform("Will hash password ...");
        let password = self.password(password, "Password: ", DATA)?;
        print(&format!("{}\n", hash(&password)));
        Ok(())
    }

    pub(super) async fn authenticate(&self, client: &mut AdminClient, user: &str, password: Option<&str>) -> Result<(), CtlError> {
        self.inform(&format!("Authenticating user \"{user}\" ..."));
        let password = self.password(password, "Password: ", SOFTWARE)?;
        let digest = password_digest(&client.salt(user).await?, password.as_bytes());
        let nonce: [u8; 32] = rand::random();
        let proof = Secret::new(self.secret(&self.dirs())?.bytes()).prove_password(user, &nonce, &digest);
        match client.authenticate(user, &nonce, &proof).await?.refused.as_str() {
            "" => self.say("Success"),
            why => return Err(CtlError::failed(DATA, format!("Error:\nError: failed to authenticate user \"{user}\"\n{why}"))),
        }
        Ok(())
    }

    pub(super) async fn purge_queue(&self, client: &mut AdminClient, queue: &str) -> Result<(), CtlError> {
        self.inform(&format!("Purging queue '{queue}' in vhost '{}' ...", self.vhost));
        client.purge_queue(self.queue(queue)).await?;
        self.done();
        Ok(())
    }

    pub(super) async fn delete_queue(
        &self,
        client: &mut AdminClient,
        queue: &str,
        if_empty: bool,
        if_unused: bool,
    ) -> Result<(), CtlError> {
        let conditions = [(if_empty, "if queue is empty "), (if_unused, "if queue is unused ")];
        let conditions: Vec<&str> = conditions.into_iter().filter_map(|(set, text)| set.then_some(text)).collect();
        self.inform(&format!("Deleting queue '{queue}' on vhost '{}' {}...", self.vhost, conditions.join("and ")));
        let deleted = client.delete_queue(QueueRequest { if_empty, if_unused, ..self.queue(queue) }).await;
        match deleted {
            Ok(reply) => self.say(&format!("Queue was successfully deleted with {} ready messages", reply.messages)),
            Err(ClientError::Refused { refusal: Some(refusal), .. }) => return Err(not_deleted(&refusal)),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn queue(&self, queue: &str) -> QueueRequest {
        QueueRequest { vhost: self.vhost.clone(), queue: queue.to_owned(), ..QueueRequest::default() }
    }

    /// One vhost after the other; one that is deleted meanwhile does not matter.
    pub(super) async fn set_permissions_globally(
        &self,
        client: &mut AdminClient,
        user: &str,
        permission: &Permission,
    ) -> Result<(), CtlError> {
        self.inform(&format!("Setting permissions for user \"{user}\" in all virtual hosts ..."));
        for vhost in self.vhosts_meant(client, true).await? {
            let command = AdminCommand::SetPermissions { user: user.to_owned(), vhost, permission: permission.clone() };
            match client.change(&command).await {
                Err(error) if error.is_no_vhost() => {}
                changed => changed?,
            }
        }
        self.done();
        Ok(())
    }

    pub(super) async fn close(&self, client: &mut AdminClient, request: CloseRequest) -> Result<(), CtlError> {
        let pid = request.pid.clone();
        let closed = client.close_connections(request).await?.connections;
        match pid.as_str() {
            "" => self.say(&format!("Closed {closed} connections")),
            _ if closed == 0 => return Err(CtlError::failed(DATA, format!("Error:\nthere is no connection {pid}"))),
            _ => self.done(),
        }
        Ok(())
    }
}

fn not_deleted(refusal: &Refusal) -> CtlError {
    let text = match refusal {
        Refusal::NotFound { kind, .. } if kind == "queue" => "No such queue was found",
        Refusal::Precondition(text) if text.ends_with("not empty") => "The queue is not empty",
        Refusal::Precondition(text) if text.ends_with("in use") => "The queue is in use",
        Refusal::Locked(text) => text.as_str(),
        other => return CtlError::refused(other),
    };
    CtlError::failed(USAGE, format!("Error:\n{text}"))
}

fn add_vhost(vhost: String, description: String, tags: &str, default_queue_type: Option<String>) -> Result<Option<Change>, CtlError> {
    if default_queue_type.as_deref().is_some_and(|kind| !QUEUE_TYPES.contains(&kind)) {
        return Err(CtlError::failed(USAGE, "Error:\nUnsupported default queue type"));
    }
    let banner = format!("Adding vhost \"{vhost}\" ...");
    let facts = VhostFacts { description, tags: words(tags), default_queue_type, protected_from_deletion: false };
    change(banner, AdminCommand::AddVhost { vhost, facts })
}

/// Separated by commas.
fn words(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn update_vhost(vhost: String, patch: VhostPatch) -> Result<Option<Change>, CtlError> {
    if patch == VhostPatch::default() {
        return Err(CtlError::failed(USAGE, "Error (argument validation): not enough arguments."));
    }
    if let Some(other) = patch.default_queue_type.as_deref().filter(|kind| !QUEUE_TYPES.contains(kind)) {
        let why = format!("Default queue type must be one of: quorum, stream, classic. Provided: {other}");
        return Err(CtlError::bad_argument(&why));
    }
    change(format!("Updating metadata of vhost \"{vhost}\" ..."), AdminCommand::UpdateVhost { vhost, patch })
}

fn protect_vhost(vhost: String, protect: bool) -> Result<Option<Change>, CtlError> {
    let banner = match protect {
        true => format!("Protecting virtual host \"{vhost}\" from removal by updating its metadata..."),
        false => format!("Removing deletion protection from virtual host \"{vhost}\" by updating its metadata..."),
    };
    let patch = VhostPatch { protected_from_deletion: Some(protect), ..VhostPatch::default() };
    change(banner, AdminCommand::UpdateVhost { vhost, patch })
}

fn hash(password: &str) -> String {
    hash_password(password.as_bytes(), rand::random())
}

fn checked_hash(hash: String) -> Result<String, CtlError> {
    match decode_base64(&hash) {
        Some(bytes) if bytes.len() == HASH_BYTES => Ok(hash),
        Some(_) | None => Err(CtlError::failed(DATA, "Error:\nCould not Base64 decode provided password hash value")),
    }
}

/// A JSON object as the broker keeps it.
fn parse(definition: &str) -> Result<Table, CtlError> {
    let failed = |why: &str| CtlError::failed(UNAVAILABLE, format!("Error:\nCould not parse JSON document: {why}"));
    match serde_json::from_str(definition) {
        Ok(Json::Object(pairs)) => Ok(pairs.into_iter().map(|(key, value)| (key, converted(value))).collect()),
        Ok(other) => Err(failed(&format!("{other} is no object"))),
        Err(error) => Err(failed(&error.to_string())),
    }
}

fn converted(value: Json) -> Value {
    match value {
        Json::Null => Value::Void,
        Json::Bool(flag) => Value::Bool(flag),
        Json::Number(number) => number.as_i64().map_or_else(|| Value::Double(number.as_f64().unwrap_or(f64::NAN)), Value::Int),
        Json::String(text) => Value::Text(text.into_bytes()),
        Json::Array(values) => Value::List(values.into_iter().map(converted).collect()),
        Json::Object(pairs) => Value::Table(pairs.into_iter().map(|(key, value)| (key, converted(value))).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_json_objects() {
        let table = parse(r#"{"max-length": 5, "overflow": "drop-head", "x": [true, null, 1.5]}"#).unwrap();
        assert_eq!((&table["max-length"], &table["overflow"]), (&Value::Int(5), &Value::Text(b"drop-head".to_vec())));
        assert_eq!(table["x"], Value::List(vec![Value::Bool(true), Value::Void, Value::Double(1.5)]));
        for wrong in ["", "{", "[1]", "5"] {
            let error = parse(wrong).unwrap_err();
            assert!(error.to_string().starts_with("Error:\nCould not parse JSON document: ") && error.code() == UNAVAILABLE, "{error}");
        }
    }

    #[test]
    fn a_pre_hashed_password_must_be_a_hash() {
        let good = hash("secret");
        assert_eq!(checked_hash(good.clone()).unwrap(), good);
        for wrong in ["", "abc", "not base64!", "Zm9v"] {
            assert_eq!(checked_hash(wrong.into()).unwrap_err().code(), DATA);
        }
    }
}
