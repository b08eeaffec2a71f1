//! Room `machine`: see docs/architecture.md.
