//! Room `management`: see docs/architecture.md.
