//! This host: what it is, how loaded it is, its services, its power, and what it can reach.
//!
//! Plain functions and small values; what follows from what they tell is decided elsewhere.

pub mod clock;
#[cfg(feature = "dbus")]
pub mod dbus;
pub mod energy;
pub mod facts;
pub mod load;
pub mod nic;
pub mod os;
pub mod ping;
pub mod power;
pub mod probe;
pub mod run;
pub mod service;
pub mod watch;
