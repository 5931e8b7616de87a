//! Decisions of the agent, without I/O.

mod kernel;

pub use kernel::{KernelOp, KernelOutcome, OpId};
