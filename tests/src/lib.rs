//! The lab and the simulator.

pub mod lab;
pub mod sim;
