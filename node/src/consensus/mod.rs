//! Room `consensus`: see docs/architecture.md.
