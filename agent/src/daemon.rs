//! `kage-agent run`: puts the parts together, and takes them apart again at a signal.

#[cfg(feature = "dbus")]
mod sleep;
mod start;
mod stop;

pub use start::{Refused, run, uninstall};
