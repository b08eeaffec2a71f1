//! Room `wire`: see docs/architecture.md.
