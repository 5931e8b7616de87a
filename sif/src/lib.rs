//! SIF (thesis ch. 4): the owner of the shared tables. The rules are in `kage-sif-core`; here are the disk
//! ([`store`]) and copies of it ([`backup`]), the task that drives the core ([`driver`]) and the RPCs ([`service`]).

pub mod backup;
pub mod config;
pub mod driver;
pub mod service;
mod signals;
pub mod store;
mod wire;

pub use wire::{CURRENT_KEY, REASON_KEY};

#[cfg(test)]
mod fuzz_tests;
