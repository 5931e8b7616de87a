//! The shared tables of thesis ch. 4: each signal, the four problems of fig. 4.6, and what holds in any order.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

mod desk;
mod problems;

mod properties;
mod recovery;
mod transition;
mod whereabouts;
