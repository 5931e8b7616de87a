//! The ledger of SIF (thesis ch. 4) as a pure state machine: who may act (terms) and who may hold what (epochs).
//!
//! Architecture invariants:
//! - no clock, no I/O, no async, no randomness; ordered collections only, so that a journal replays exactly;
//! - nothing is answered and nothing published before it is durable: a change reaches [`Core::ledger`] at
//!   [`Event::Persisted`] and not earlier, so what is in memory is always what is on disk;
//! - terms, and the epochs of one VIP, never repeat and never go down.

mod core;
mod decide;
mod electorate;
mod ledger;
mod recovery;
mod request;
mod shared;
mod signal;
mod signals;
mod tidy;
mod transition;
mod whereabouts;

#[cfg(feature = "sabotage")]
pub use crate::core::Sabotage;
pub use crate::core::{Action, BATCH_LIMIT, CommitId, Core, Event, QUEUE_LIMIT, RequestId};
pub use decide::{DETAIL_LIMIT, PLAUSIBLE_LIMIT, ROW_LIMIT, UNSEEN_MARGIN};
pub use electorate::{Electorate, VOTERS_FOR_MAJORITY};
pub use ledger::{Cause, Change, Established, Ledger, Report, Stage, Stamped, TroubleRow, UnknownWord, VipRow};
pub use recovery::{CLAIM_LIMIT, HOME_VIP_LIMIT, PLACE_LIMIT, RECOVERY_LIMIT};
pub use request::{Alert, Refusal, Reply, Request};
pub use shared::{Edit, Ended, Recovery, Shared};
pub use signal::Signal;
pub use tidy::{held, holder};
pub use transition::{PLAN_LIMIT, STEP_LIMIT};
