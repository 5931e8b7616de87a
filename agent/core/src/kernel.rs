//! What the agent asks of the kernel's guard, and what comes back. The shell carries these out in the order given,
//! on one thread; the simulator models them.

use kage_types::{Time, Vip};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Ties a [`KernelOp`] to its [`KernelOutcome`]; rises by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OpId(pub u64);

/// One change to the guard's timed sets. Each is one netlink transaction: all of it happens, or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelOp {
    /// Delete `armed` if it is there, add it anew with this life.
    Arm {
        /// Which VIP.
        vip: Vip,
        /// K.
        life: Duration,
    },
    /// Delete `armed` (which must be there) and add `live`: else [`KernelOutcome::NotFound`].
    Open {
        /// Which VIP.
        vip: Vip,
        /// K.
        life: Duration,
        /// Not begun after this: [`KernelOutcome::TooLate`].
        not_after: Time,
    },
    /// Delete `live` (which must be there) and add it with this life: else [`KernelOutcome::NotFound`].
    /// (`add` alone would not refresh the timeout.)
    Renew {
        /// Which VIP.
        vip: Vip,
        /// K, or nearly the length of a long lease.
        life: Duration,
        /// Not begun after this: [`KernelOutcome::TooLate`].
        not_after: Time,
    },
    /// Delete `armed` and `live`, whichever is there. Done also when neither is.
    Close {
        /// Which VIP.
        vip: Vip,
    },
}

impl KernelOp {
    /// The VIP it is about.
    #[must_use]
    pub fn vip(&self) -> Vip {
        match self {
            KernelOp::Arm { vip, .. }
            | KernelOp::Open { vip, .. }
            | KernelOp::Renew { vip, .. }
            | KernelOp::Close { vip } => *vip,
        }
    }
}

/// How a [`KernelOp`] ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelOutcome {
    /// In force.
    Done,
    /// The element that had to be there was gone: nothing was changed.
    NotFound,
    /// `not_after` had passed: nothing was tried.
    TooLate,
    /// The kernel refused for another reason; nothing was changed.
    Failed(String),
}
