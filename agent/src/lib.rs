//! Kagemusha's agent.

pub mod guard;
pub mod host;
pub mod vm;
