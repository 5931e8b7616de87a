//! Ids, time, units and lease timing: the words every part of Kagemusha shares.
//!
//! Architecture invariant: this crate depends on serde and thiserror only, reads no clock and does no I/O.

mod arrangement;
mod grant;
mod id;
mod lease;
mod order;
pub mod pairs;
mod time;

pub use arrangement::{
    Claim, ClaimRow, Class, Condition, MigrationRow, OperationRow, RealServerRow, StateRow, Step, StepState, Tables,
    TransitionRow,
};
pub use grant::{AskVip, Grant, GrantItem, Verdict};
pub use id::{AgentId, DomainName, Epoch, GroupName, IdError, Nonce, Revision, ServiceName, TargetName, Term, Vip};
pub use lease::{LeaseTiming, LeaseTimingError, Profile};
pub use order::{Order, OrderScope, OrderScopeError, REASON_LIMIT};
pub use time::{Time, whole_millis};
