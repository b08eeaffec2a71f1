//! Warren, a clustered message broker. A folder is a room; `docs/architecture.md` says which room may import which.

pub mod model;
