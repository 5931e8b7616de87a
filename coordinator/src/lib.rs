//! What of the coordinator's shell is pure: kept apart from the process so that the simulator's power saving is given the
//! same things, made the same way.

pub mod saving;
