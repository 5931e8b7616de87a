//! Notices at once when somebody takes an address off the interface of the VIPs: a network manager that is restarted,
//! an administrator, or the kernel when its life ran out.

use super::{IfName, Link, address, elements, netlink, sys::Socket};
use kage_types::Vip;
use std::{io, thread, time::Duration};

/// `RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR`
const GROUPS: u32 = 0x10 | 0x100;
/// There is nothing else to do meanwhile.
const LONG: Duration = Duration::from_secs(3600);

/// Calls `removed` with each address that leaves `interface`, in the caller's network namespace, until it returns
/// false. Notices the kernel had to drop are not made up for: addresses are renewed each second anyway.
///
/// # Errors
/// No netlink socket, or no thread.
pub fn watch(interface: IfName, mut removed: impl FnMut(Vip) -> bool + Send + 'static) -> io::Result<()> {
    let socket = Socket::netlink(libc::NETLINK_ROUTE, GROUPS)?;
    let watch = move || {
        let mut buffer = vec![0; 32 << 10];
        loop {
            let _ = socket.wait(LONG);
            while let Ok(length) = socket.receive(&mut buffer) {
                // Not once and for all: an interface that was made anew has another index.
                let Ok(link) = Link::find(interface) else { continue };
                for message in netlink::messages(&buffer[..length]) {
                    if let Some(vip) = address::removed(&message, &link)
                        && !removed(vip)
                    {
                        return;
                    }
                }
            }
        }
    };
    thread::Builder::new().name("addresses".into()).stack_size(128 << 10).spawn(watch).map(drop)
}

/// Is the VIP's element of the host guard in force, by the kernel's own word?
///
/// # Errors
/// Netlink failed, or the guard is gone.
pub fn is_live(vip: Vip) -> io::Result<bool> {
    let set = if vip.address().is_ipv4() { "live4" } else { "live6" };
    let socket = Socket::netlink(libc::NETLINK_NETFILTER, 0)?;
    Ok(elements::list_live(&socket, elements::NFPROTO_INET, set)?.iter().any(|live| live.vip == vip))
}
