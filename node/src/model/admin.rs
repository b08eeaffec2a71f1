//! Who may do what, and how much of it: users, vhosts, permissions, policies, limits, and the commands that change them. Part of the
//! catalog's commands and state (MessagePack maps, as there). Made by `warren ctl`, applied by `machine::catalog`.

use super::NodeId;
use super::catalog::Table;
use super::rocketmq::AccessKey;
use super::roster::RosterChange;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A user's rights in a vhost: regular expressions over names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permission {
    /// Declare and delete.
    pub configure: String,
    /// Publish, bind to.
    pub write: String,
    /// Consume, bind from.
    pub read: String,
}

/// A user's rights on one topic exchange: regular expressions over routing keys; `{username}` and `{vhost}` stand for themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicPermission {
    /// Publish.
    pub write: String,
    /// Bind from.
    pub read: String,
}

/// How much a vhost or a user may have, by RabbitMQ's names; a negative number is no limit.
pub type Limits = BTreeMap<String, i64>;

/// More about a vhost than its name: RabbitMQ's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhostFacts {
    /// For people.
    pub description: String,
    /// For people.
    pub tags: Vec<String>,
    /// `x-queue-type` of durable queues that are declared without one.
    pub default_queue_type: Option<String>,
    /// It cannot be deleted until this is taken back.
    #[serde(default)]
    pub protected_from_deletion: bool,
}

/// What is to be changed about a vhost; the rest stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhostPatch {
    /// As in [`VhostFacts`].
    pub description: Option<String>,
    /// As in [`VhostFacts`]; replaced as a whole.
    pub tags: Option<Vec<String>>,
    /// As in [`VhostFacts`]; queues that are there stay what they are.
    pub default_queue_type: Option<String>,
    /// As in [`VhostFacts`].
    pub protected_from_deletion: Option<bool>,
}

/// Which of the two kinds of policies: a queue or exchange has at most one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PolicyKind {
    /// Made by users.
    User,
    /// Made by operators: wins where both say something, mostly by the lower value.
    Operator,
}

/// What a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ApplyTo {
    /// Queues and exchanges.
    All,
    /// Queues of any type.
    Queues,
    /// Queues declared as classic ones, or without a type.
    ClassicQueues,
    /// Queues declared as quorum queues.
    QuorumQueues,
    /// Streams.
    Streams,
    /// Exchanges.
    Exchanges,
}

impl ApplyTo {
    /// All of them.
    pub const ALL: [ApplyTo; 6] =
        [ApplyTo::All, ApplyTo::Queues, ApplyTo::ClassicQueues, ApplyTo::QuorumQueues, ApplyTo::Streams, ApplyTo::Exchanges];

    /// RabbitMQ's word.
    pub fn text(self) -> &'static str {
        match self {
            ApplyTo::All => "all",
            ApplyTo::Queues => "queues",
            ApplyTo::ClassicQueues => "classic_queues",
            ApplyTo::QuorumQueues => "quorum_queues",
            ApplyTo::Streams => "streams",
            ApplyTo::Exchanges => "exchanges",
        }
    }

    /// The way back.
    pub fn parse(text: &str) -> Option<ApplyTo> {
        ApplyTo::ALL.into_iter().find(|one| one.text() == text)
    }
}

/// Settings for all queues and exchanges of a vhost whose names match.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// Regular expression over names.
    pub pattern: String,
    /// What it applies to.
    pub apply_to: ApplyTo,
    /// Keys and values, e.g. `message-ttl`.
    pub definition: Table,
    /// The highest one that matches counts.
    pub priority: i64,
}

/// A change by an operator. Each may be repeated: the second time changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AdminCommand {
    /// Members of the cluster or the places of replicas change.
    Roster {
        /// How.
        change: RosterChange,
        /// Who formed the cluster, with their addresses, as configured: the first change writes it down.
        founders: Vec<(NodeId, String)>,
    },
    /// A new user; refused when there is another one of that name.
    AddUser {
        /// Name.
        user: String,
        /// base64(salt ++ sha256(salt ++ password)); "": nobody can log in with a password.
        password_hash: String,
    },
    /// A user goes, with all its permissions; its connections are closed.
    DeleteUser {
        /// Name.
        user: String,
    },
    /// Change the password.
    SetPassword {
        /// Whose.
        user: String,
        /// As in `AddUser`.
        password_hash: String,
    },
    /// Replace the tags.
    SetUserTags {
        /// Whose.
        user: String,
        /// E.g. `administrator`.
        tags: Vec<String>,
    },
    /// Set limits of a user; others stay.
    SetUserLimits {
        /// Whose.
        user: String,
        /// `max-connections`, `max-channels`; integers.
        limits: Table,
    },
    /// Remove limits of a user.
    ClearUserLimits {
        /// Whose.
        user: String,
        /// Which one; `all` for all.
        limit: String,
    },
    /// A new vhost with its `amq.*` exchanges; one of that name stays as it is.
    AddVhost {
        /// Name.
        vhost: String,
        /// More about it.
        facts: VhostFacts,
    },
    /// Changes some of what is said about a vhost.
    UpdateVhost {
        /// Which.
        vhost: String,
        /// What.
        patch: VhostPatch,
    },
    /// A vhost goes with all in it; its connections are closed. Refused while it is protected.
    DeleteVhost {
        /// Name.
        vhost: String,
    },
    /// Replace the limits of a vhost.
    SetVhostLimits {
        /// Which.
        vhost: String,
        /// `max-connections`, `max-queues`; integers.
        limits: Table,
    },
    /// Remove the limits of a vhost.
    ClearVhostLimits {
        /// Which.
        vhost: String,
    },
    /// Grant.
    SetPermissions {
        /// Whom.
        user: String,
        /// Where.
        vhost: String,
        /// What.
        permission: Permission,
    },
    /// Take all rights in a vhost.
    ClearPermissions {
        /// Whose.
        user: String,
        /// Where.
        vhost: String,
    },
    /// Restrict a user on a topic exchange.
    SetTopicPermissions {
        /// Whom.
        user: String,
        /// Where.
        vhost: String,
        /// On which exchange.
        exchange: String,
        /// To what.
        permission: TopicPermission,
    },
    /// Lift the restrictions on one topic exchange, or on all of a vhost.
    ClearTopicPermissions {
        /// Whose.
        user: String,
        /// Where.
        vhost: String,
        /// On which exchange; `None`: all.
        exchange: Option<String>,
    },
    /// Add or replace a policy.
    SetPolicy {
        /// Which kind.
        kind: PolicyKind,
        /// Where.
        vhost: String,
        /// What.
        policy: Policy,
    },
    /// Remove a policy.
    ClearPolicy {
        /// Which kind.
        kind: PolicyKind,
        /// Where.
        vhost: String,
        /// Its name.
        name: String,
    },
    /// Add or replace what signs requests of clients in a user's name.
    AddAccessKey {
        /// What requests name it by.
        id: String,
        /// Secret and user.
        key: AccessKey,
    },
    /// An access key is worth nothing any more.
    DeleteAccessKey {
        /// Which.
        id: String,
    },
}
