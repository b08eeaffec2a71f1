//! Room `edge`: see docs/architecture.md.
