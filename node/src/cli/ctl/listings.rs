//! Commands that print rows: what they ask for, and the lines that rabbitmqctl prints before.

use super::commands::CtlCommand;
use super::{CtlArgs, CtlError, print};
use crate::cli::format::Formatter;
use crate::management::client::AdminClient;
use warren_proto::admin::{ListReply, ListRequest};

/// A question that is answered with rows.
pub(super) struct Listing {
    pub(super) banner: Vec<String>,
    request: ListRequest,
    /// One value without a header.
    is_bare: bool,
    formatter: Option<Formatter>,
}

impl CtlArgs {
    pub(super) fn listing(&self) -> Option<Listing> {
        let vhost = &self.vhost;
        let listing = match &self.command {
            CtlCommand::ListQueues { online, offline, local, columns } => {
                let timeout = format!("Timeout: {}.0 seconds ...", self.timeout_seconds());
                let mut listing = self.columns("queues", columns, format!("Listing queues for vhost {vhost} ..."));
                listing.banner.insert(0, timeout);
                listing.request.local = *local;
                listing.request.state = match (online, offline) {
                    _ if *local => String::new(),
                    (true, false) => "running".to_owned(),
                    (false, true) => "down".to_owned(),
                    (true, true) | (false, false) => String::new(),
                };
                listing
            }
            CtlCommand::ListUnresponsiveQueues { local, columns } => {
                let mut listing = self.columns("queues", columns, format!("Listing unresponsive queues for vhost {vhost} ..."));
                if listing.request.columns.is_empty() {
                    listing.request.columns.push("name".to_owned());
                }
                (listing.request.local, listing.request.state) = (*local, "unresponsive".to_owned());
                listing
            }
            CtlCommand::ListExchanges { columns } => self.columns("exchanges", columns, format!("Listing exchanges for vhost {vhost} ...")),
            CtlCommand::ListBindings { columns } => self.columns("bindings", columns, format!("Listing bindings for vhost {vhost}...")),
            CtlCommand::ListConnections { columns } => self.columns("connections", columns, "Listing connections ..."),
            CtlCommand::ListChannels { columns } => self.columns("channels", columns, "Listing channels ..."),
            CtlCommand::ListConsumers { columns } => self.columns("consumers", columns, format!("Listing consumers in vhost {vhost} ...")),
            CtlCommand::ListVhosts { columns } => self.columns("vhosts", columns, "Listing vhosts ..."),
            CtlCommand::ListTopics { columns } => self.columns("topics", columns, format!("Listing topics for vhost {vhost} ...")),
            CtlCommand::ListGroups { columns } => self.columns("groups", columns, format!("Listing groups for vhost {vhost} ...")),
            CtlCommand::ListAccessKeys => self.columns("access_keys", &[], "Listing access keys ..."),
            CtlCommand::ListUsers => self.columns("users", &[], "Listing users ..."),
            CtlCommand::ListPermissions => self.columns("permissions", &[], format!("Listing permissions for vhost \"{vhost}\" ...")),
            CtlCommand::ListUserPermissions { username } => {
                self.of("user_permissions", username, format!("Listing permissions for user \"{username}\" ..."))
            }
            CtlCommand::ListTopicPermissions => {
                self.columns("topic_permissions", &[], format!("Listing topic permissions for vhost \"{vhost}\" ..."))
            }
            CtlCommand::ListUserTopicPermissions { username } => {
                self.of("user_topic_permissions", username, format!("Listing topic permissions for user \"{username}\" ..."))
            }
            CtlCommand::ListPolicies => self.columns("policies", &[], format!("Listing policies for vhost \"{vhost}\" ...")),
            CtlCommand::ListOperatorPolicies => {
                self.columns("operator_policies", &[], format!("Listing operator policy overrides for vhost \"{vhost}\" ..."))
            }
            CtlCommand::ListVhostLimits { global: true } => {
                let mut listing = self.columns("vhost_limits", &[], "Listing limits for all vhosts ...");
                listing.request.vhost.clear();
                listing
            }
            CtlCommand::ListVhostLimits { global: false } => {
                self.bare("vhost_limits", "", format!("Listing limits for vhost \"{vhost}\" ..."))
            }
            CtlCommand::ListUserLimits { global: true, .. } => self.columns("user_limits", &[], "Listing limits for all users ..."),
            CtlCommand::ListUserLimits { user, .. } => self.bare("user_limits", user, format!("Listing limits for user \"{user}\" ...")),
            CtlCommand::Environment => self.columns("environment", &[], "Application environment of the node ..."),
            CtlCommand::QuorumStatus { queue } => {
                let listing = self.of("replicas", queue, format!("Status of quorum queue {queue} ..."));
                let is_plain = self.formatter == Formatter::Table;
                Listing { formatter: is_plain.then_some(Formatter::PrettyTable), ..listing }
            }
            _ => return self.stream_listing(),
        };
        Some(listing)
    }

    /// Those of rabbitmq-streams.
    fn stream_listing(&self) -> Option<Listing> {
        let listing = match &self.command {
            CtlCommand::ListStreamConnections { columns } => self.columns("stream_connections", columns, "Listing stream connections ..."),
            CtlCommand::ListStreamPublishers { columns } => self.columns("stream_publishers", columns, "Listing stream publishers ..."),
            CtlCommand::ListStreamConsumers { columns } => self.columns("stream_consumers", columns, "Listing stream consumers ..."),
            CtlCommand::ListStreamConsumerGroups { columns } => {
                self.columns("stream_consumer_groups", columns, "Listing stream consumer groups ...")
            }
            CtlCommand::ListStreamGroupConsumers { stream, reference, columns } => {
                let mut listing = self.columns("stream_group_consumers", columns, "Listing group consumers ...");
                (listing.request.of, listing.request.reference) = (stream.clone(), reference.clone());
                listing
            }
            CtlCommand::ListStreamTracking { stream, offset, writer, .. } => {
                let (what, column) = match (*offset, *writer) {
                    (true, _) => ("stream_tracking_offset", "offset"),
                    (false, true) => ("stream_tracking_writer", "offset (sequence)"),
                    (false, false) => ("stream_tracking", "offset (sequence)"),
                };
                let mut listing = self.of(what, stream, format!("Listing tracking information for stream {stream} ..."));
                listing.request.columns = ["type", "name", column].map(str::to_owned).into();
                listing
            }
            _ => return None,
        };
        Some(listing)
    }

    /// rabbitmqctl takes columns separated by commas, too.
    fn columns(&self, what: &str, columns: &[String], banner: impl Into<String>) -> Listing {
        let columns = columns.iter().flat_map(|word| word.split(',')).filter(|word| !word.is_empty()).map(str::to_owned).collect();
        let request = ListRequest { what: what.into(), vhost: self.vhost.clone(), columns, ..ListRequest::default() };
        Listing { banner: vec![banner.into()], request, is_bare: false, formatter: None }
    }

    fn of(&self, what: &str, of: &str, banner: String) -> Listing {
        let mut listing = self.columns(what, &[], banner);
        listing.request.of = of.to_owned();
        listing
    }

    /// Limits of one: the JSON alone.
    fn bare(&self, what: &str, of: &str, banner: String) -> Listing {
        let mut listing = self.of(what, of, banner);
        listing.request.columns = vec!["limits".to_owned()];
        listing.is_bare = true;
        listing
    }

    pub(super) async fn list(&self, client: &mut AdminClient, listing: Listing) -> Result<(), CtlError> {
        let reply = client.list(listing.request).await?;
        let formatter = listing.formatter.unwrap_or(self.formatter);
        if listing.is_bare && !formatter.is_for_machines() {
            let values = reply.rows.iter().flat_map(|row| &row.cells).map(|cell| cell.text.as_str());
            values.filter(|limits| *limits != "{}").for_each(|limits| print(&format!("{limits}\n")));
            return Ok(());
        }
        print(&formatter.render(&reply, !self.silent && !self.no_table_headers));
        Ok(())
    }

    /// Ports of the node that is asked.
    pub(super) async fn listeners(&self, client: &mut AdminClient) -> Result<ListReply, CtlError> {
        Ok(client.list(ListRequest { what: "listeners".into(), ..ListRequest::default() }).await?)
    }
}
