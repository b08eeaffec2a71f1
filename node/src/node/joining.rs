//! A new node asks a member to be admitted, as an operator's tool does with the cluster's secret, before it opens anything: only then is it
//! known how many shards there are, and whether a disk of this node's number may be lost.

use super::StartError;
use super::start::kept_roster;
use crate::config::ServerConfig;
use crate::consensus::FormationError;
use crate::management::client::{AdminClient, ClientError};
use crate::model::admin::AdminCommand;
use crate::model::catalog::Refusal;
use crate::model::roster::{Roster, RosterChange};
use crate::peer::auth::Secret;
use crate::peer::client::dial_operator;
use crate::tls::Mutual;
use std::time::Duration;

/// One call: longer than a command of the catalog takes.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two rounds.
const RETRY: Duration = Duration::from_millis(500);

/// What a member says.
enum Admitted {
    New { shards: u16 },
    Before { shards: u16 },
}

/// Until a member has admitted this node, if it is to join and knows no members yet.
pub(super) async fn admitted(mut config: ServerConfig, tls: Option<&Mutual>) -> Result<ServerConfig, StartError> {
    if !config.joins {
        return Ok(config);
    }
    if let Some(kept) = kept_roster(&config) {
        // Perhaps it died before its disk was the cluster's.
        (config.shards, config.joins) = (kept.shards(), false);
        return Ok(config);
    }
    let others: Vec<String> = config.founders().into_iter().filter(|(node, _)| *node != config.node).map(|(_, address)| address).collect();
    if others.is_empty() {
        let why = "--join needs the address of a member: list one in --cluster beside this node";
        return Err(FormationError::Stopped(why.into()).into());
    }
    let mut said = String::new();
    loop {
        for address in &others {
            match ask(&config, tls, address).await {
                Ok(Admitted::New { shards }) => {
                    config.shards = shards;
                    return Ok(config);
                }
                Ok(Admitted::Before { shards }) => {
                    (config.shards, config.joins) = (shards, false);
                    return Ok(config);
                }
                Err(Refused::ForGood(why)) => return Err(FormationError::Stopped(format!("this node cannot join: {why}")).into()),
                Err(Refused::Yet(why)) => {
                    if said != why {
                        tracing::info!(address, why, "not admitted to the cluster yet");
                        said = why;
                    }
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

enum Refused {
    Yet(String),
    ForGood(String),
}

async fn ask(config: &ServerConfig, tls: Option<&Mutual>, address: &str) -> Result<Admitted, Refused> {
    let yet = |error: &dyn std::fmt::Display| Refused::Yet(error.to_string());
    let secret = Secret::new(config.secret.bytes());
    let channel = dial_operator(address, &secret, tls).await.map_err(|error| yet(&error))?;
    let mut client = AdminClient::new(address, channel, PATIENCE);
    let own = config.founders().into_iter().find(|(node, _)| *node == config.node);
    let (node, own) = own.ok_or_else(|| Refused::ForGood("it is not in its own --cluster".into()))?;
    let change = RosterChange::Join { node, address: own };
    let asked = client.change(&AdminCommand::Roster { change, founders: Vec::new() }).await;
    let status = client.status().await.map_err(|error| yet(&error))?;
    let shards = status.shards.iter().map(|shard| shard.shard).max().and_then(|most| u16::try_from(most).ok()).unwrap_or(0);
    match asked {
        Ok(()) => Ok(Admitted::New { shards }),
        Err(ClientError::Refused { text, .. }) if text.contains(Roster::MEMBER_ALREADY) => Ok(Admitted::Before { shards }),
        Err(ClientError::Refused { text, refusal: Some(Refusal::Precondition(_)), .. }) => Err(Refused::ForGood(text)),
        Err(error) => Err(yet(&error)),
    }
}
