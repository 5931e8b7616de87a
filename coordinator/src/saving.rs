//! Between the configuration, the shared tables, the agents and power saving's core, which knows none of them.

pub mod inventory;
pub mod journal;
pub mod policy;
#[cfg(test)]
mod tests;
