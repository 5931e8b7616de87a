//! The kernel side of the lease protocol (docs/safety.md, rules 3, 4, 8, 9, 10).
//!
//! [`Guard`] sets up default deny for the listed VIPs (through the `nft` program), [`RenewalThread`] keeps the timed
//! elements that lift it (netlink directly), [`Monitor`] puts back what somebody flushed. The rest is what an owner
//! does besides: the address itself, announcements, the probe before a takeover, closing sockets, waking machines.
//!
//! Invariant: only a timed element opens a VIP. Nothing here decides; each function does what its caller (the core,
//! through the shell) asked, once.
//!
//! Everything acts in the network namespace of the thread that calls it. All but [`announce`]'s and [`wake`]'s
//! repeating functions block, for microseconds to a few milliseconds ([`conflict::probe`]: as long as it is told).

pub mod address;
pub mod announce;
pub mod conflict;
mod elements;
mod install;
mod link;
mod monitor;
mod netlink;
pub mod port;
mod realtime;
pub mod removals;
mod renewal;
mod ruleset;
pub mod sockets;
mod sys;
pub mod wake;

pub use elements::LiveElement;
pub use install::{Guard, GuardError, Health};
pub use link::{IfName, IfNameError, Link, MacAddr, MacAddrError};
pub use monitor::{GuardAlert, Monitor};
pub use realtime::{Protection, unprotect_child};
pub use renewal::{QueueFull, RenewalReport, RenewalThread};
pub use ruleset::GuardKind;
pub use sys::now;

/// Which of the guard's doors an operation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// This machine's own address.
    Host,
    /// A guest behind a port of the bridge.
    Tap {
        /// The port, by the name libvirt gave it (`vnet3`).
        ifname: IfName,
    },
}
