//! The lab and the simulator.

pub mod bench;
pub mod lab;
pub mod sim;
