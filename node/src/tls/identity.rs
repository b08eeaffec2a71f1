//! Something made from files and made again when they change. Connections keep what they began with; a file that is no good changes
//! nothing but the log.

use super::certificate;
use super::files::{Files, Material, TlsError};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::sync::Arc;

type Make<T> = Box<dyn Fn(Material, &Files) -> Result<T, TlsError> + Send + Sync>;

/// What came of a look at the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Nothing has changed since the last look.
    Same,
    /// New connections use what the files hold now.
    Done,
}

/// Files that may be renewed while the process runs.
pub trait Renewed: Send + Sync {
    /// Looks at the files and takes over what has changed. Blocks the thread for a moment.
    ///
    /// # Errors
    /// They have changed and are no good: what was there stays, and the same content is not complained about twice.
    fn renew(&self) -> Result<Renewal, TlsError>;
}

/// A `T` and the files it was made from.
pub(super) struct Identity<T> {
    files: Files,
    make: Make<T>,
    current: ArcSwap<T>,
    seen: Mutex<[u8; 32]>,
}

impl<T: Send + Sync> Identity<T> {
    pub(super) fn load(files: Files, make: Make<T>) -> Result<Identity<T>, TlsError> {
        let contents = files.read();
        let seen = contents.digest();
        let current = made(&files, &make, files.parse(contents)?)?;
        Ok(Identity { files, make, current: ArcSwap::from_pointee(current), seen: Mutex::new(seen) })
    }

    pub(super) fn current(&self) -> Arc<T> {
        self.current.load_full()
    }
}

impl<T: Send + Sync> Renewed for Identity<T> {
    fn renew(&self) -> Result<Renewal, TlsError> {
        let contents = self.files.read();
        let digest = contents.digest();
        let mut seen = self.seen.lock();
        if std::mem::replace(&mut *seen, digest) == digest {
            return Ok(Renewal::Same);
        }
        let new = made(&self.files, &self.make, self.files.parse(contents)?)?;
        self.current.store(Arc::new(new));
        Ok(Renewal::Done)
    }
}

fn made<T>(files: &Files, make: &Make<T>, material: Material) -> Result<T, TlsError> {
    let own = material.chain.first().and_then(|own| certificate::describe(own));
    let made = make(material, files)?;
    if let Some(own) = own {
        let (file, subject, validity) = (files.certificate.display(), own.subject, own.validity);
        tracing::info!(%file, subject, validity, "certificate loaded");
    }
    Ok(made)
}
