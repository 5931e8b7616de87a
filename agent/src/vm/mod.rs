//! The virtual machines of this host, through libvirt (feature `libvirt`).
//!
//! Architecture invariant: every libvirt call happens on a thread of [`lane`], never on an async one, and every
//! async caller has a deadline. Guarding a domain's addresses (safety rule 8) is the caller's business: close the
//! guard before `pause` and `save`, and when `migrate` switches over; start paused, verify the guard, then resume.

mod types;

#[cfg(feature = "libvirt")]
mod calls;
#[cfg(feature = "libvirt")]
mod events;
#[cfg(feature = "libvirt")]
mod handle;
#[cfg(feature = "libvirt")]
mod lane;
#[cfg(feature = "libvirt")]
mod link;
#[cfg(feature = "libvirt")]
mod migrate;
#[cfg(feature = "libvirt")]
mod sys;
#[cfg(feature = "libvirt")]
mod xml;

#[cfg(feature = "libvirt")]
pub use handle::{Vm, VmConfig};
#[cfg(feature = "libvirt")]
pub use migrate::Migration;
pub use types::{
    Attachment, ConnectionState, DomainEvent, DomainEventDetail, DomainEventKind, DomainInfo, DomainNic, DomainState,
    JobProgress, MigrateOptions, Outcome, VmError, VmEvent,
};
