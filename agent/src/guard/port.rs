//! A guest's port of the bridge, shut while the guest sleeps.
//!
//! What reaches the port of a paused guest is kept in its queue and read when it goes on, weeks later. Among it is the
//! end of its idle connection to the file server, after which Linux waits 3 s before it connects again
//! (`XS_TCP_INIT_REEST_TO`, include/linux/sunrpc/xprtsock.h): a double would serve that much later. With its port shut
//! it hears nothing, finds its connection gone at its first word (RST), and connects at once.

use super::{
    IfName, Link,
    netlink::{self, ACK, REQUEST, Writer},
    sys::Socket,
};
use std::io;

// linux/rtnetlink.h, linux/if.h
const RTM_NEWLINK: u16 = 16;
const IFF_UP: u32 = 1;

/// Opens or shuts an interface. It is no error when it is so already.
///
/// # Errors
/// `ENODEV`, or what else the kernel answered.
pub fn set_open(name: IfName, open: bool) -> io::Result<()> {
    let link = Link::find(name)?;
    let mut writer = Writer::with_capacity(64);
    // struct ifinfomsg: family, type, index, flags, which of them are to change.
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&link.index.to_ne_bytes());
    header[8..12].copy_from_slice(&if open { IFF_UP } else { 0 }.to_ne_bytes());
    header[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    let message = writer.begin(RTM_NEWLINK, REQUEST | ACK, &header);
    writer.end(message);
    netlink::request(&Socket::netlink(libc::NETLINK_ROUTE, 0)?, &writer)
}

/// Is it open? False if there is no such interface.
#[must_use]
pub fn is_open(name: IfName) -> bool {
    let flags = std::fs::read_to_string(format!("/sys/class/net/{name}/flags")).unwrap_or_default();
    u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).is_ok_and(|flags| flags & IFF_UP != 0)
}

/// Which bridge it is a port of.
#[must_use]
pub fn bridge_of(name: IfName) -> Option<IfName> {
    let master = std::fs::read_link(format!("/sys/class/net/{name}/master")).ok()?;
    IfName::new(master.file_name()?.to_str()?).ok()
}

/// All ports of a bridge.
#[must_use]
pub fn ports_of(bridge: IfName) -> Vec<IfName> {
    let Ok(entries) = std::fs::read_dir(format!("/sys/class/net/{bridge}/brif")) else { return Vec::new() };
    entries.filter_map(|entry| IfName::new(entry.ok()?.file_name().to_str()?).ok()).collect()
}
