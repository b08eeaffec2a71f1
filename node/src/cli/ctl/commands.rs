//! The commands of `warren ctl`, and who carries each out: a listing, a change, a check.

use super::{CtlArgs, CtlError, print};
use crate::management::client::AdminClient;
use crate::model::admin::Permission;
use clap::Subcommand;
use warren_proto::admin::CloseRequest;

#[derive(Clone, Debug, Subcommand)]
#[command(rename_all = "snake_case")]
pub(super) enum CtlCommand {
    /// Queues of a vhost; columns as rabbitmqctl names them [default: name messages]
    ListQueues {
        /// Those that have a leader
        #[arg(long)]
        online: bool,
        /// Those that have none
        #[arg(long)]
        offline: bool,
        /// Those that the node leads which is asked
        #[arg(long)]
        local: bool,
        columns: Vec<String>,
    },
    /// Queues of a vhost whose leader does not answer within 2 s [default: name]
    ListUnresponsiveQueues {
        /// Those that the node leads which is asked
        #[arg(long)]
        local: bool,
        columns: Vec<String>,
    },
    /// Exchanges of a vhost [default: name type]
    ListExchanges { columns: Vec<String> },
    /// Bindings of a vhost
    ListBindings { columns: Vec<String> },
    /// Client connections of all nodes [default: user peer_host peer_port state]
    ListConnections { columns: Vec<String> },
    /// Channels of all nodes [default: pid user consumer_count messages_unacknowledged]
    ListChannels { columns: Vec<String> },
    /// Consumers of a vhost, on all nodes
    ListConsumers { columns: Vec<String> },
    /// Connections of the stream protocol, on all nodes [default: conn_name]
    ListStreamConnections { columns: Vec<String> },
    /// Publishers of the stream protocol in a vhost, on all nodes
    ListStreamPublishers { columns: Vec<String> },
    /// Consumers of the stream protocol in a vhost, on all nodes
    ListStreamConsumers { columns: Vec<String> },
    /// Groups of stream consumers of which one is active, in a vhost
    ListStreamConsumerGroups { columns: Vec<String> },
    /// Consumers of such a group
    ListStreamGroupConsumers {
        #[arg(long)]
        stream: String,
        /// Name of the group
        #[arg(long)]
        reference: String,
        columns: Vec<String>,
    },
    /// What a stream remembers of its readers (stored offsets) and publishers (publishing ids)
    ListStreamTracking {
        stream: String,
        /// Both [default]
        #[arg(long, conflicts_with_all = ["offset", "writer"])]
        all: bool,
        /// Of readers alone
        #[arg(long, conflicts_with = "writer")]
        offset: bool,
        /// Of publishers alone
        #[arg(long)]
        writer: bool,
    },
    /// Close the connection that list_connections shows with this pid
    CloseConnection { pid: String, explanation: String },
    /// Close all connections of a vhost
    CloseAllConnections {
        explanation: String,
        /// Of all vhosts
        #[arg(long)]
        global: bool,
    },
    /// Move all replicas of a node to others, so that it can be stopped and forgotten
    Drain {
        #[arg(value_name = "NODE")]
        member: String,
    },
    /// Remove a node that does not run from the cluster, for good
    ForgetClusterNode {
        #[arg(value_name = "NODE")]
        member: String,
    },
    /// Close all connections of a user
    CloseAllUserConnections { username: String, explanation: String },
    /// Remove the ready messages of a queue
    PurgeQueue { queue: String },
    /// Delete a queue
    DeleteQueue {
        queue: String,
        /// Only when it is empty
        #[arg(short = 'e', long = "if-empty")]
        if_empty: bool,
        /// Only when it has no consumers
        #[arg(short = 'u', long = "if-unused")]
        if_unused: bool,
    },
    /// Add a user; the password comes from standard input unless it is given
    AddUser {
        username: String,
        password: Option<String>,
        /// It is base64(salt, sha256(salt, password)), as hash_password prints it
        #[arg(long = "pre-hashed-password")]
        pre_hashed_password: bool,
    },
    /// Delete a user; its connections are closed
    DeleteUser { username: String },
    /// Change a user's password
    ChangePassword { username: String, password: Option<String> },
    /// Nobody can log in as this user with a password
    ClearPassword { username: String },
    /// Whether a password is a user's: exit code 65 if not
    AuthenticateUser { username: String, password: Option<String> },
    /// The hash of a password, for --pre-hashed-password
    HashPassword { password: Option<String> },
    /// Replace a user's tags
    SetUserTags { username: String, tags: Vec<String> },
    /// Users and their tags
    ListUsers,
    /// Add a vhost
    AddVhost {
        vhost_name: String,
        /// For people
        #[arg(short, long, default_value = "")]
        description: String,
        /// Words, separated by commas
        #[arg(long, default_value = "")]
        tags: String,
        /// x-queue-type of durable queues that are declared without one: classic, quorum or stream
        #[arg(long = "default-queue-type")]
        default_queue_type: Option<String>,
    },
    /// Change what is said of a vhost
    UpdateVhostMetadata {
        vhost_name: String,
        /// For people
        #[arg(short, long)]
        description: Option<String>,
        /// Words, separated by commas
        #[arg(long)]
        tags: Option<String>,
        /// x-queue-type of durable queues that are declared without one from now on: classic, quorum or stream
        #[arg(long = "default-queue-type")]
        default_queue_type: Option<String>,
        /// Whether delete_vhost is refused
        #[arg(long = "protected-from-deletion", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        protected_from_deletion: Option<bool>,
    },
    /// Replace a vhost's tags
    SetVhostTags { vhost_name: String, tags: Vec<String> },
    /// Refuse to delete a vhost
    EnableVhostDeletionProtection { vhost_name: String },
    /// Allow to delete a vhost again
    DisableVhostDeletionProtection { vhost_name: String },
    /// Delete a vhost with all that is in it; its connections are closed
    DeleteVhost { vhost_name: String },
    /// Vhosts [default: name]
    ListVhosts { columns: Vec<String> },
    /// Grant a user rights in a vhost: regular expressions over names
    SetPermissions { username: String, configure: String, write: String, read: String },
    /// The same in every vhost that there is
    SetPermissionsGlobally { username: String, configure: String, write: String, read: String },
    /// Take a user's rights in a vhost
    ClearPermissions { username: String },
    /// Rights in a vhost
    ListPermissions,
    /// Rights of a user
    ListUserPermissions { username: String },
    /// Restrict a user on a topic exchange: regular expressions over routing keys
    SetTopicPermissions { username: String, exchange: String, write: String, read: String },
    /// Lift such restrictions on one exchange or on all of the vhost
    ClearTopicPermissions { username: String, exchange: Option<String> },
    /// Such restrictions in a vhost
    ListTopicPermissions,
    /// Such restrictions of a user
    ListUserTopicPermissions { username: String },
    /// Set a policy
    SetPolicy(PolicyArgs),
    /// Remove a policy
    ClearPolicy { name: String },
    /// Policies of a vhost
    ListPolicies,
    /// Set an operator policy
    SetOperatorPolicy(PolicyArgs),
    /// Remove an operator policy
    ClearOperatorPolicy { name: String },
    /// Operator policies of a vhost
    ListOperatorPolicies,
    /// Set the limits of a vhost: {"max-connections": N, "max-queues": N}
    SetVhostLimits { definition: String },
    /// Remove the limits of a vhost
    ClearVhostLimits,
    /// Limits of a vhost
    ListVhostLimits {
        /// Of all vhosts
        #[arg(long)]
        global: bool,
    },
    /// Set limits of a user: {"max-connections": N, "max-channels": N}
    SetUserLimits { username: String, definition: String },
    /// Remove a limit of a user, or `all`
    ClearUserLimits { username: String, limit_type: String },
    /// Limits of a user
    ListUserLimits {
        /// Whose
        #[arg(long, default_value = "guest")]
        user: String,
        /// Of all users
        #[arg(long)]
        global: bool,
    },
    /// Add a rocket topic
    AddTopic {
        topic: String,
        /// Messages of one sharding key are in order within one
        #[arg(long, default_value_t = crate::model::rocketmq::PARTITIONS_DEFAULT)]
        partitions: u32,
        /// How long a delivered message is invisible [default: as the server says]
        #[arg(long = "invisible-ms", value_name = "MS")]
        invisible_ms: Option<u64>,
        /// The same for messages consumed in order
        #[arg(long = "ordered-invisible-ms", value_name = "MS")]
        ordered_invisible_ms: Option<u64>,
        /// The same for half messages that are checked
        #[arg(long = "half-invisible-ms", value_name = "MS")]
        half_invisible_ms: Option<u64>,
        /// Deliveries after the first, before a message goes to the dead letters
        #[arg(long = "max-retries", value_name = "N")]
        max_retries: Option<u32>,
    },
    /// Delete a rocket topic with all that waits for its groups
    DeleteTopic { topic: String },
    /// Rocket topics of a vhost
    ListTopics { columns: Vec<String> },
    /// Add a consumer group to a rocket topic; without a topic, to all of the vhost
    AddGroup {
        group: String,
        topic: Option<String>,
        /// Deliveries after the first [default: as the topic or the server says]
        #[arg(long = "max-retries", value_name = "N")]
        max_retries: Option<u32>,
    },
    /// Delete a consumer group of a rocket topic with all that waits for it
    DeleteGroup { group: String, topic: String },
    /// Consumer groups on the rocket topics of a vhost
    ListGroups { columns: Vec<String> },
    /// Add what signs requests over RocketMQ's HTTP protocol in the name of a user; without a secret one is made and printed
    AddAccessKey {
        access_key: String,
        secret: Option<String>,
        /// Whose it is [default: the user of that name]
        #[arg(long)]
        user: Option<String>,
    },
    /// Delete an access key
    DeleteAccessKey { access_key: String },
    /// Access keys, without their secrets
    ListAccessKeys,
    /// Raft's figures of the replicas of a queue
    QuorumStatus { queue: String },
    /// The node, the cluster, who leads which shard
    Status,
    /// Nodes, versions, alarms, listeners
    ClusterStatus,
    /// Settings of the node
    Environment,
    /// Ports that the node serves
    Listeners,
    /// Alarms in force
    Alarms,
    /// Does the node answer?
    Ping,
    /// Wait until the node serves clients
    AwaitStartup,
    /// Wait until so many nodes of the cluster are up, as the node sees it
    AwaitOnlineNodes { count: String },
    /// Version of this tool
    Version,
    /// Version of the node
    ServerVersion,
    /// Does the node serve clients? Exit code 69 if not
    CheckRunning,
    /// Says whether the node serves clients
    IsRunning,
    /// Says whether the node is starting
    IsBooting,
    /// Exit code 69 when an alarm is in force anywhere in the cluster
    CheckAlarms,
    /// Exit code 69 when an alarm of this node is in force
    CheckLocalAlarms,
    /// Exit code 69 when a certificate of the node, or one of the authorities it trusts, expires soon
    CheckCertificateExpiration {
        /// How soon
        #[arg(long, default_value_t = 4)]
        within: u64,
        /// days, weeks, months or years
        #[arg(long, default_value = "weeks")]
        unit: String,
    },
    /// Exit code 69 when a port of the node cannot be connected to
    CheckPortConnectivity {
        /// Instead of the address that this tool talks to
        #[arg(short, long)]
        address: Option<String>,
    },
    /// Exit code 69 when the node does not serve this port
    CheckPortListener { port: u16 },
    /// Exit code 69 when the node does not serve this protocol: amqp, stream, http, clustering
    CheckProtocolListener { protocol: String },
    /// Exit code 69 when a shard has no leader
    CheckVirtualHosts,
    /// Exit code 69 when a shard would lose its majority without this node
    CheckIfNodeIsQuorumCritical,
    /// Exit code 69 when a replicated queue that matches has no leader, or one that does not answer
    CheckForQuorumQueuesWithoutAnElectedLeader {
        /// Regular expression over names
        pattern: String,
        /// Not of one vhost only
        #[arg(long = "across-all-vhosts")]
        across_all_vhosts: bool,
    },
    /// Exit code 69 when the node does not have the catalog yet
    CheckIfMetadataStoreIsInitialized,
    /// The same
    CheckIfMetadataStoreIsInitializedWithData,
    /// Does nothing, as with RabbitMQ since 4.0
    CheckIfNodeIsMirrorSyncCritical,
    /// Does nothing, as with RabbitMQ
    NodeHealthCheck,
    /// Nothing of Warren is deprecated
    CheckIfAnyDeprecatedFeaturesAreUsed,
    /// Wait until no shard would lose its majority without this node
    AwaitOnlineQuorumPlusOne,
}

fn because(reason: &str) -> CloseRequest {
    CloseRequest { reason: reason.to_owned(), ..CloseRequest::default() }
}

/// What a policy is made of.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct PolicyArgs {
    pub(super) name: String,
    /// Regular expression over names
    pub(super) pattern: String,
    /// JSON object
    pub(super) definition: String,
    /// The highest one that matches counts
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub(super) priority: i64,
    /// queues, classic_queues, quorum_queues, streams, exchanges or all
    #[arg(long, default_value = "all")]
    pub(super) apply_to: String,
}

impl CtlArgs {
    pub(super) async fn ask(&self) -> Result<(), CtlError> {
        match &self.command {
            CtlCommand::Version => {
                print(&format!("{}\n", env!("CARGO_PKG_VERSION")));
                return Ok(());
            }
            CtlCommand::HashPassword { password } => return self.hash_password(password.as_deref()),
            CtlCommand::AwaitStartup => return self.await_startup().await,
            CtlCommand::AwaitOnlineNodes { count } => return self.await_online_nodes(count).await,
            _ => {}
        }
        self.validate()?;
        if let Some(listing) = self.listing() {
            self.inform_all(&listing.banner);
            let mut client = self.connect().await?;
            return self.list(&mut client, listing).await;
        }
        if let Some(change) = self.change()? {
            self.inform(&change.banner);
            let mut client = self.connect().await?;
            client.change(&change.command).await?;
            match change.done {
                Some(text) => self.say(&text),
                None => self.done(),
            }
            return Ok(());
        }
        let mut client = self.connect().await?;
        if self.act(&mut client).await? { Ok(()) } else { self.check(&mut client).await }
    }

    /// What rabbitmqctl refuses before it asks a node.
    fn validate(&self) -> Result<(), CtlError> {
        let why = match &self.command {
            CtlCommand::AddUser { username, .. } if username.is_empty() => "user cannot be an empty string",
            CtlCommand::DeleteQueue { queue, .. } if queue.is_empty() => "queue name cannot be an empty string",
            _ => return Ok(()),
        };
        Err(CtlError::bad_argument(why))
    }

    fn inform_all(&self, lines: &[String]) {
        lines.iter().for_each(|line| self.inform(line));
    }

    /// Commands on queues and connections, and logins. False: it is none of those.
    async fn act(&self, client: &mut AdminClient) -> Result<bool, CtlError> {
        match &self.command {
            CtlCommand::PurgeQueue { queue } => self.purge_queue(client, queue).await?,
            CtlCommand::DeleteQueue { queue, if_empty, if_unused } => self.delete_queue(client, queue, *if_empty, *if_unused).await?,
            CtlCommand::CloseConnection { pid, explanation } => {
                self.inform(&format!("Closing connection {pid}, reason: {explanation}..."));
                self.close(client, CloseRequest { pid: pid.clone(), ..because(explanation) }).await?;
            }
            CtlCommand::CloseAllConnections { explanation, global } => {
                let vhost = if *global { "" } else { self.vhost.as_str() };
                self.inform(&match global {
                    true => format!("Closing all connections (across all vhosts), reason: {explanation}..."),
                    false => format!("Closing all connections in vhost {vhost}, reason: {explanation}..."),
                });
                self.close(client, CloseRequest { vhost: vhost.to_owned(), ..because(explanation) }).await?;
            }
            CtlCommand::CloseAllUserConnections { username, explanation } => {
                self.inform(&format!("Closing connections of user {username}, reason: {explanation}..."));
                self.close(client, CloseRequest { user: username.clone(), ..because(explanation) }).await?;
            }
            CtlCommand::SetPermissionsGlobally { username, configure, write, read } => {
                let permission = Permission { configure: configure.clone(), write: write.clone(), read: read.clone() };
                self.set_permissions_globally(client, username, &permission).await?;
            }
            CtlCommand::AddTopic { .. } | CtlCommand::DeleteTopic { .. } | CtlCommand::AddGroup { .. } | CtlCommand::DeleteGroup { .. } => {
                self.arrange(client).await?
            }
            CtlCommand::AuthenticateUser { username, password } => self.authenticate(client, username, password.as_deref()).await?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}
