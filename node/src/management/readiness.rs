//! Whether this node serves clients, and if not, why. Set by `node`, shown by `/ready` and `warren ctl check_running`.

use parking_lot::RwLock;

/// Shared by whoever knows and whoever asks. Starts as not serving.
#[derive(Debug)]
pub struct Readiness {
    waiting_for: RwLock<Option<String>>,
}

impl Default for Readiness {
    fn default() -> Readiness {
        Readiness { waiting_for: RwLock::new(Some("starting".into())) }
    }
}

impl Readiness {
    /// Clients are served from now on.
    pub fn serving(&self) {
        *self.waiting_for.write() = None;
    }

    /// Clients are not served; `why` is for the operator: `forming the cluster: no answer from node 3`.
    pub fn not_serving(&self, why: &str) {
        *self.waiting_for.write() = Some(why.to_owned());
    }

    /// `None` when clients are served, else the reason.
    pub fn waiting_for(&self) -> Option<String> {
        self.waiting_for.read().clone()
    }
}
