//! The lab and the simulator.

pub mod lab;
