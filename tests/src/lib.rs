//! Support for tests that start real Warren processes.
