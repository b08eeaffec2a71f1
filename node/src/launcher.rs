//! Room `launcher`: see docs/architecture.md.
