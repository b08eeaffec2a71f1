//! Room `peer`: see docs/architecture.md.
