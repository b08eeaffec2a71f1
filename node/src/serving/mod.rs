//! Room `serving`: see docs/architecture.md.
