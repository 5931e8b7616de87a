//! Power saving and supervision together (thesis ch. 4) over their production cores: three real servers with six virtual
//! ones, a management server with their doubles, SIF. The lease's own faults are the other simulator's business: here an
//! agent that is up asks in time, and what is looked for is what the two controllers do to each other.

mod agents;
mod beyond;
mod cluster;
mod day;
mod journal;
mod matrix;
mod moved;
mod msbs;
pub mod report;
mod saving;
mod sif;
mod world;

pub use day::{Day, day};
pub use matrix::{Case, Tried, cases, run_case, steps};
pub use world::Night;
