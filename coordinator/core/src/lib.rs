//! Decisions of the coordinator, without I/O.
pub mod config;
