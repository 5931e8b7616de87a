//! The lab: network namespaces, QEMU guests and a real libvirt on one machine.
//!
//! ```text
//!            kage-sw: br-sw (captures, cuts, magic packets)
//!   p-mgmt │  p-v1 p-v2 p-v3 │ p-client │      p-mail (tap)
//!   ┌──────┴───────┐  voters      client   ┌───────┴──────┐
//!   │ kage-mgmt    │                       │ mail (QEMU,  │
//!   │ br0: mailb   │                       │ "a physical  │
//!   │ libvirtd SIF │                       │  machine")   │
//!   │ coordinator  │                       └──────────────┘
//!   └──────────────┘
//! ```
//!
//! Scenario code uses [`lifecycle`] (up, down), [`machine`] (power), [`network`] (cuts),
//! [`daemons`] (the product's processes), [`console`] (commands in guests),
//! [`hypervisor`] (domains), [`capture`] with [`speech`] (who spoke as an address),
//! [`drill`] (all of it in order).

pub mod balancer;
pub mod campaign;
pub mod capture;
pub mod cgroup;
pub mod client;
pub mod config;
pub mod console;
pub mod cpio;
pub mod daemons;
pub mod debian;
pub mod demo;
pub mod dirs;
pub mod drill;
pub mod fileserver;
pub mod hypervisor;
pub mod image;
mod killed;
pub mod lifecycle;
pub mod load;
mod losses;
pub mod machine;
pub mod mishaps;
pub mod msbs;
pub mod network;
pub mod nic;
pub mod nodes;
mod outside;
pub mod pcap;
pub mod power;
pub mod pss;
pub mod realserver;
pub mod report;
pub mod run;
pub mod signals;
pub mod spawn;

pub mod speech;
pub mod standard;
pub mod storage;
pub mod storms;
pub mod suite;
mod survey;
pub mod thesis_logs;
pub mod transition;
pub mod trouble;
mod wayhome;
