//! Room `telemetry`: see docs/architecture.md.
