//! TLS for the sockets of clients and of nodes: certificates and keys from files, renewed while connections live on, and what a
//! certificate says. `listener` and `peer` bring the sockets, `config` the files, `node` looks for new ones. Only this room decides
//! versions, ciphers and who is verified how.

pub mod certificate;
mod files;
mod identity;
mod roles;

pub use certificate::{LoginFrom, LoginName, SanType};
pub use files::{Files, TlsError};
pub use identity::{Renewal, Renewed};
pub use roles::{Front, Mutual, Verify, encryption};

/// Certificates of tests, the same that the tests of whole processes use.
#[cfg(test)]
#[path = "../../../tests/src/certificates.rs"]
pub(crate) mod authority;
#[cfg(test)]
mod tests;
