//! Kagemusha's agent: the shell around [`kage_agent_core`].

pub mod config;
pub mod daemon;
pub mod driver;
pub mod events;
pub mod guard;
pub mod hands;
pub mod host;
pub mod keeper;
pub mod service;
pub mod session;
pub mod state;
pub mod storage;
pub mod vm;
pub mod votes;
pub mod wire;

#[cfg(test)]
#[path = "../../tests/src/mangle.rs"]
mod mangle;
