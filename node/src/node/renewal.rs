//! Looks for new certificates while the node runs: every few seconds, and at once on SIGHUP. Connections keep what they began with.

use crate::tls::{Renewal, Renewed};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Between two looks: three small files each, read and compared.
const LOOK: Duration = Duration::from_secs(2);

/// Never returns.
pub(super) async fn watch(certificates: Vec<Arc<dyn Renewed>>) {
    let mut hang_up = signal(SignalKind::hangup()).inspect_err(|error| tracing::warn!(%error, "SIGHUP cannot be heard")).ok();
    let certificates = Arc::new(certificates);
    loop {
        let asked = async {
            match &mut hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        let is_asked = tokio::select! {
            _ = asked => true,
            () = tokio::time::sleep(LOOK) => false,
        };
        let all = certificates.clone();
        // Files are read: not on a thread that serves clients.
        let looked = tokio::task::spawn_blocking(move || look(&all, is_asked)).await;
        if let Err(error) = looked {
            tracing::error!(%error, "the look for new certificates failed");
        }
    }
}

fn look(certificates: &[Arc<dyn Renewed>], is_asked: bool) {
    for certificate in certificates {
        match certificate.renew() {
            Ok(Renewal::Done) => {}
            Ok(Renewal::Same) if is_asked => tracing::info!("SIGHUP: certificate files have not changed"),
            Ok(Renewal::Same) => {}
            Err(error) => tracing::error!(%error, "a new certificate is no good, the old one stays in use"),
        }
    }
}
