//! What operators' commands do to the catalog: users, vhosts, permissions, policies, limits. Called by `apply`. What is refused here all
//! versions refuse; whether a command makes sense was checked before it was proposed (`check`). Every command may be repeated.

use super::apply::{DONE, FIRST_USER, Outcome};
use super::bindings::not_found;
use super::policy::{Applied, Compiled};
use super::{Catalog, PREDECLARED, User, Vhost};
use crate::model::QueueId;
use crate::model::admin::{AdminCommand, Permission, Policy, PolicyKind, TopicPermission, VhostFacts, VhostPatch};
use crate::model::catalog::{ExchangeSpec, Name, Refusal, Table, Value};
use crate::model::rocketmq::AccessKey;
use std::sync::Arc;

/// Policies of one kind in one vhost: every declare is compared with all of them.
const POLICIES_MAX: usize = 10_000;

/// RabbitMQ's words.
const PROTECTED: &str = "Cannot delete this virtual host: it is protected from deletion. To lift the protection, inspect and update its \
                         metadata";

impl VhostFacts {
    fn update(&mut self, patch: &VhostPatch) {
        let VhostPatch { description, tags, default_queue_type, protected_from_deletion } = patch.clone();
        self.description = description.unwrap_or(std::mem::take(&mut self.description));
        self.tags = tags.unwrap_or(std::mem::take(&mut self.tags));
        self.default_queue_type = default_queue_type.or(self.default_queue_type.take());
        self.protected_from_deletion = protected_from_deletion.unwrap_or(self.protected_from_deletion);
    }
}

impl Catalog {
    pub(super) fn administer(&mut self, index: u64, command: &AdminCommand) -> Outcome {
        self.access_version = index;
        match command {
            AdminCommand::AddUser { user, password_hash } => return self.add_user(index, user, password_hash),
            AdminCommand::DeleteUser { user } => {
                self.users.remove(user);
                self.access_keys.retain(|_, key| key.user != *user);
            }
            AdminCommand::AddAccessKey { id, key } => {
                self.user_mut(&key.user)?;
                self.access_keys.insert(id.clone(), key.clone());
            }
            AdminCommand::DeleteAccessKey { id } => drop(self.access_keys.remove(id)),
            AdminCommand::SetPassword { user, password_hash } => {
                self.user_mut(user)?.password_hash.clone_from(password_hash);
                self.drop_first_key(user);
            }
            AdminCommand::SetUserTags { user, tags } => self.user_mut(user)?.tags.clone_from(tags),
            AdminCommand::SetUserLimits { user, limits } => {
                self.user_mut(user)?.limits.extend(numbers(limits));
            }
            AdminCommand::ClearUserLimits { user, limit } => self.user_mut(user)?.limits.retain(|name, _| limit != "all" && name != limit),
            AdminCommand::AddVhost { vhost, facts } => self.add_vhost(index, vhost, facts),
            AdminCommand::UpdateVhost { vhost, patch } => self.vhost_mut(vhost)?.facts.update(patch),
            AdminCommand::DeleteVhost { vhost } => return self.delete_vhost(index, vhost),
            AdminCommand::SetVhostLimits { vhost, limits } => {
                self.vhost_mut(vhost)?.limits = numbers(limits).collect();
            }
            AdminCommand::ClearVhostLimits { vhost } => self.vhost_mut(vhost)?.limits.clear(),
            AdminCommand::SetPermissions { user, vhost, permission } => return self.set_permissions(user, vhost, permission),
            AdminCommand::ClearPermissions { user, vhost } => drop(self.in_vhost(user, vhost)?.permissions.remove(vhost)),
            AdminCommand::SetTopicPermissions { user, vhost, exchange, permission } => {
                return self.set_topic_permissions(user, vhost, exchange, permission);
            }
            AdminCommand::ClearTopicPermissions { user, vhost, exchange } => {
                let rows = &mut self.in_vhost(user, vhost)?.topic_permissions;
                rows.retain(|(v, x), _| v != vhost || exchange.as_ref().is_some_and(|one| one != x));
            }
            AdminCommand::SetPolicy { kind, vhost, policy } => return self.set_policy(index, *kind, vhost, policy),
            AdminCommand::ClearPolicy { kind, vhost, name } => return self.clear_policy(index, *kind, vhost, name),
            AdminCommand::Roster { change, founders } => return self.change_roster(index, change, founders),
        }
        DONE
    }

    /// The key that the first user was given goes with its first password, unless somebody gave it another secret.
    fn drop_first_key(&mut self, user: &str) {
        let is_first = |key: &AccessKey| key.user == user && key.secret == FIRST_USER;
        if user == FIRST_USER && self.access_keys.get(FIRST_USER).is_some_and(is_first) {
            self.access_keys.remove(FIRST_USER);
        }
    }

    fn user_mut(&mut self, user: &str) -> Result<&mut User, Refusal> {
        self.users.get_mut(user).ok_or_else(|| not_found("user", "", user))
    }

    fn vhost_mut(&mut self, vhost: &str) -> Result<&mut Vhost, Refusal> {
        self.vhosts.get_mut(vhost).ok_or_else(|| not_found("vhost", vhost, vhost))
    }

    /// A user, when the vhost is there, too.
    fn in_vhost(&mut self, user: &str, vhost: &str) -> Result<&mut User, Refusal> {
        if !self.has_vhost(vhost) {
            return Err(not_found("vhost", vhost, vhost));
        }
        self.user_mut(user)
    }

    /// The same command again finds the hash with its salt.
    fn add_user(&mut self, index: u64, user: &str, password_hash: &str) -> Outcome {
        match self.users.get(user) {
            Some(known) if known.password_hash != password_hash => {
                return Err(Refusal::Precondition(format!("User \"{user}\" already exists")));
            }
            Some(_) => return DONE,
            None => {}
        }
        let row = User { password_hash: password_hash.to_owned(), created: index, ..User::default() };
        self.users.insert(user.to_owned(), row);
        DONE
    }

    pub(super) fn add_vhost(&mut self, index: u64, vhost: &str, facts: &VhostFacts) {
        if self.has_vhost(vhost) {
            return;
        }
        let vhost: Arc<str> = Arc::from(vhost);
        self.vhosts.insert(vhost.clone(), Vhost { created: index, facts: facts.clone(), ..Vhost::default() });
        for (name, kind, internal) in PREDECLARED {
            let name = Name { vhost: vhost.clone(), name: Arc::from(name) };
            self.put_exchange(ExchangeSpec { name, kind, durable: true, auto_delete: false, internal, arguments: Table::new() });
        }
    }

    fn delete_vhost(&mut self, index: u64, name: &str) -> Outcome {
        let Some(vhost) = self.vhosts.get(name) else { return DONE };
        if vhost.facts.protected_from_deletion {
            return Err(Refusal::Precondition(PROTECTED.to_owned()));
        }
        let mut queues: Vec<QueueId> = vhost.queues.values().map(|q| q.record.id).collect();
        queues.sort_unstable();
        queues.into_iter().for_each(|id| self.drop_queue(index, id));
        for exchange in self.exchanges(name) {
            self.drop_exchange(&exchange.name);
        }
        self.vhosts.remove(name);
        for user in self.users.values_mut() {
            user.permissions.remove(name);
            user.topic_permissions.retain(|(vhost, _), _| vhost != name);
        }
        DONE
    }

    fn set_permissions(&mut self, user: &str, vhost: &str, permission: &Permission) -> Outcome {
        self.in_vhost(user, vhost)?.permissions.insert(vhost.to_owned(), permission.clone());
        DONE
    }

    fn set_topic_permissions(&mut self, user: &str, vhost: &str, exchange: &str, permission: &TopicPermission) -> Outcome {
        let key = (vhost.to_owned(), exchange.to_owned());
        self.in_vhost(user, vhost)?.topic_permissions.insert(key, permission.clone());
        DONE
    }

    fn set_policy(&mut self, index: u64, kind: PolicyKind, vhost: &str, policy: &Policy) -> Outcome {
        let row = self.vhost_mut(vhost)?;
        if row.policies(kind).len() >= POLICIES_MAX && !row.policies(kind).contains_key(&policy.name) {
            return Err(Refusal::Precondition(format!("a vhost has at most {POLICIES_MAX} policies")));
        }
        row.policies_mut(kind).insert(policy.name.clone(), Compiled::new(Arc::new(policy.clone())));
        self.apply_policies(index, vhost);
        DONE
    }

    fn clear_policy(&mut self, index: u64, kind: PolicyKind, vhost: &str, name: &str) -> Outcome {
        if self.vhost_mut(vhost)?.policies_mut(kind).remove(name).is_some() {
            self.apply_policies(index, vhost);
        }
        DONE
    }

    /// Policies changed: every queue and exchange of the vhost is looked at again. Shards are told of queues that are set differently now.
    fn apply_policies(&mut self, index: u64, vhost: &str) {
        let Some(row) = self.vhosts.get_mut(vhost) else { return };
        let queues: Vec<(Arc<str>, Applied)> =
            row.queues.iter().map(|(name, q)| (name.clone(), row.applied_to_queue(&q.record.spec))).collect();
        let exchanges: Vec<(Arc<str>, Applied)> =
            row.exchanges.iter().map(|(name, x)| (name.clone(), row.applied_to_exchange(&x.spec))).collect();
        let mut changed = Vec::new();
        for (name, applied) in queues {
            if let Some(queue) = row.queues.get_mut(&name) {
                if queue.policies.definition() != applied.definition() {
                    changed.push(queue.record.id);
                }
                queue.policies = applied;
            }
        }
        for (name, applied) in exchanges {
            if let Some(exchange) = row.exchanges.get_mut(&name) {
                exchange.set_policies(applied);
            }
        }
        changed.sort_unstable();
        changed.into_iter().for_each(|id| self.configured(index, id));
    }
}

fn numbers(limits: &Table) -> impl Iterator<Item = (String, i64)> {
    limits.iter().filter_map(|(name, value)| if let Value::Int(limit) = value { Some((name.clone(), *limit)) } else { None })
}
