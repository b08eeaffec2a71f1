//! Room `routing`: see docs/architecture.md.
