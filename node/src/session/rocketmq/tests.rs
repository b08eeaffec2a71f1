//! Conversations with an agent.
