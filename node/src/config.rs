//! Room `config`: see docs/architecture.md.
