//! Decisions of the agent, without I/O: whether it owns a virtual IP ([`Owner`]), and whether it consents to
//! another's ownership ([`Voter`]), and which services must not run without it ([`Writers`]). Rules: docs/safety.md.
//!
//! Architecture invariant: no clock, no I/O, no async, no randomness; ordered collections only. The shell and the
//! simulator feed the same events and carry out the same actions.

mod kernel;
mod owner;
mod sleep;
mod voter;
mod writers;

pub use kage_types::{AskVip, Grant, GrantItem, Verdict};
pub use kernel::{KernelOp, KernelOutcome, OpId};
pub use owner::{
    Adopted, Assignment, CommandId, CommandResult, HoldRefused, LossReason, OnCoordinatorLoss, Owner, OwnerAction,
    OwnerEvent, OwnerMemory, Place, RenewedBy, VipView,
};
pub use sleep::{Idle, NotIdle, SleepPlan, SleepStep, SleepUndo};
pub use voter::{Voter, VoterAction, VoterEvent, VoterStore};
pub use writers::{Halt, HaltOutcome, WriterAction, WriterConfig, WriterEvent, WriterMemory, Writers};

/// A rule broken on purpose, so that the simulator can prove that it would notice.
#[cfg(feature = "sabotage")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// A grant is counted from when it was received, not from when it was asked for (rule 2).
    GrantFromReceipt,
    /// One consent is enough to go on without the coordinator (rule 6).
    KeepWithoutMajority,
    /// A release is acknowledged before the term it was told under is durable (rule 7).
    ReleaseBeforeDurable,
    /// Grants are asked for every five renewals: a short stall costs the lease.
    AsksTooSeldom,
}
