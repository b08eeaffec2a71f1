//! Commands that wait for nodes.

use super::{CtlArgs, CtlError, SOFTWARE};
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

impl CtlArgs {
    /// Until the node that is asked sees so many nodes up, itself counted.
    pub(super) async fn await_online_nodes(&self, count: &str) -> Result<(), CtlError> {
        let wanted = count.parse::<usize>().ok().filter(|wanted| *wanted > 0);
        let wanted = wanted.ok_or_else(|| CtlError::bad_argument("Argument must be a positive integer"))?;
        let seconds = self.timeout_seconds();
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut client = self.connect().await?;
        let mut is_told = false;
        loop {
            let status = client.status().await?;
            let node = status.node;
            if !std::mem::replace(&mut is_told, true) {
                self.inform(&format!("Will wait for at least {wanted} nodes to join the cluster of {node}. Timeout: {seconds} seconds."));
            }
            if status.members.iter().filter(|member| member.up).count() >= wanted {
                self.done();
                return Ok(());
            }
            if Instant::now() >= until {
                let text = format!("Error:\nError: timed out while waiting. Not enough nodes joined {node}'s cluster.");
                return Err(CtlError::failed(SOFTWARE, text));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}
