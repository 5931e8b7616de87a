//! Power saving (thesis: PSS, Power-saving Server System), without I/O: what a service group's load is and which class it
//! is in, how the arrangement changes with it, and how such a change is carried out step by step and undone.
//!
//! Architecture invariant: this crate knows of no other controller. What others need they claim ([`inventory::Claim`]),
//! and what they need to know the ledger is told ([`execute::Signal`]).
//!
//! Architecture invariant: no clock, no I/O, no async, no randomness; ordered collections only.

pub mod class;
mod core;
pub mod execute;
pub mod inventory;
pub mod judge;
pub mod load;
pub mod plan;
pub mod policy;
pub mod power;
mod trouble;
pub mod units;

pub use core::{Input, Judged, Pss};
