//! Commands on rocket topics and consumer groups.

use super::commands::CtlCommand;
use super::{CtlArgs, CtlError};
use crate::management::client::AdminClient;
use crate::model::catalog::Name;
use crate::model::rocketmq::{Arrangement, TopicSettings};
use warren_proto::admin::ListRequest;

impl CtlArgs {
    fn topic(&self, topic: &str) -> Name {
        Name { vhost: self.vhost.as_str().into(), name: topic.into() }
    }

    pub(super) async fn arrange(&self, client: &mut AdminClient) -> Result<(), CtlError> {
        let vhost = &self.vhost;
        match &self.command {
            CtlCommand::AddTopic { topic, partitions, invisible_ms, ordered_invisible_ms, half_invisible_ms, max_retries } => {
                self.inform(&format!("Adding topic \"{topic}\" in vhost \"{vhost}\" ..."));
                let settings = TopicSettings {
                    partitions: *partitions,
                    invisible_ms: *invisible_ms,
                    ordered_invisible_ms: *ordered_invisible_ms,
                    half_invisible_ms: *half_invisible_ms,
                    max_retries: *max_retries,
                };
                client.arrange(&Arrangement::AddTopic { topic: self.topic(topic), settings }).await?;
            }
            CtlCommand::DeleteTopic { topic } => {
                self.inform(&format!("Deleting topic \"{topic}\" in vhost \"{vhost}\" ..."));
                client.arrange(&Arrangement::DeleteTopic { topic: self.topic(topic) }).await?;
            }
            CtlCommand::AddGroup { group, topic, max_retries } => {
                self.inform(&format!("Adding group \"{group}\" in vhost \"{vhost}\" ..."));
                for topic in self.topics_meant(client, topic.as_ref()).await? {
                    let (topic, group, max_retries) = (self.topic(&topic), group.clone(), *max_retries);
                    client.arrange(&Arrangement::AddGroup { topic, group, max_retries }).await?;
                }
            }
            CtlCommand::DeleteGroup { group, topic } => {
                self.inform(&format!("Deleting group \"{group}\" of topic \"{topic}\" in vhost \"{vhost}\" ..."));
                client.arrange(&Arrangement::DeleteGroup { topic: self.topic(topic), group: group.clone() }).await?;
            }
            _ => {}
        }
        self.done();
        Ok(())
    }

    /// The one that is named, or all but those of dead letters.
    async fn topics_meant(&self, client: &mut AdminClient, named: Option<&String>) -> Result<Vec<String>, CtlError> {
        if let Some(topic) = named {
            return Ok(vec![topic.clone()]);
        }
        let columns = vec!["name".to_owned()];
        let listed =
            client.list(ListRequest { what: "topics".into(), vhost: self.vhost.clone(), columns, ..ListRequest::default() }).await?;
        let names = listed.rows.into_iter().filter_map(|row| row.cells.into_iter().next()).map(|cell| cell.text);
        Ok(names.filter(|name| crate::model::rocketmq::dead_letters_of(name).is_none()).collect())
    }
}
