//! Decisions of the coordinator, without I/O: who is granted a lease, when a target has failed, how its virtual IPs
//! move to the backup server and back. Rules: docs/safety.md; modes: thesis ch. 2 and docs/modes.md.
//!
//! Architecture invariant: no clock, no I/O, no async, no randomness; ordered collections only. Production, simulator
//! and replay feed the same events.

mod agents;
pub mod arrangement;
pub mod characteristics;
pub mod config;
mod core;
mod dbss;
mod doubles;
mod event;
pub mod journal;
mod placement;
pub mod predict;
pub mod probe;
mod quarantine;
pub mod replay;
mod sabotage;
mod stand_in;
pub mod why;
mod writers;

#[cfg(feature = "sabotage")]
pub use sabotage::Sabotage;

pub use core::{Coordinator, OrderView, TargetView, VipView};
pub use event::{
    Action, AgentCommand, AgentReport, Cause, CheckOutcome, Event, Holding, JobId, JobResult, Note, SessionId,
    Severity, VipRow,
};
pub use quarantine::QuarantineView;
