//! Decisions of the coordinator, without I/O: who is granted a lease, when a target has failed, how its virtual IPs
//! move to the backup server and back. Rules: docs/safety.md; modes: thesis ch. 2 and docs/modes.md.
//!
//! Architecture invariant: no clock, no I/O, no async, no randomness; ordered collections only. Production, simulator
//! and replay feed the same events.

mod agents;
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
pub mod replay;
pub mod why;
mod writers;

pub use core::{Coordinator, OrderView, TargetView, VipView};
pub use event::{
    Action, AgentCommand, AgentReport, Cause, CheckOutcome, Event, Holding, JobId, JobResult, Note, SessionId,
    Severity, VipRow,
};

/// A rule broken on purpose, so that the simulator can prove that it would notice.
#[cfg(feature = "sabotage")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// A new term does not outwait the grants of the one before (rule 7).
    NoWaitAfterNewTerm,
    /// The new owner is told to hold before its epoch is durable (rule 5).
    OpenBeforeDurable,
    /// Patience counts without bars from a majority (rule 6).
    PatienceWithoutBars,
}
