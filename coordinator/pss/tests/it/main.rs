//! Tests of the power saving core: one program, as linking takes longer than running.

mod again;
mod execute;
mod independence;
mod judge;
mod load;
mod planner;
mod policy;
mod power;
mod properties;
mod resume;
mod search;
mod support;
mod thesis;
mod trouble;
