//! Room `listener`: see docs/architecture.md.
