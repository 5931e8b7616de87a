//! Kagemusha's agent.

pub mod guard;
