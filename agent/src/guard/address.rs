//! The VIP as an address of an interface: added and removed as such, with a life of its own (safety rule 4).

use super::{
    Link,
    netlink::{self, ACK, CREATE, DUMP, REPLACE, REQUEST, Writer},
    sys::Socket,
};
use kage_types::Vip;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

// linux/rtnetlink.h, linux/if_addr.h
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
/// The kernel's word for "for ever".
const FOREVER: u32 = u32::MAX;

/// Adds the VIP as /32 or /128, without duplicate address detection, or makes its life this long again. Whole
/// seconds, rounded up; the kernel may fire up to 1.25 s late, so nothing is ever concluded from it.
///
/// # Errors
/// `ENODEV`, or what else the kernel answered.
pub fn hold(link: &Link, vip: Vip, life: Duration) -> io::Result<()> {
    let seconds = life.as_secs() + u64::from(life.subsec_nanos() > 0);
    let seconds = u32::try_from(seconds).unwrap_or(FOREVER - 1).clamp(1, FOREVER - 1);
    // A preferred life of 0 keeps IPv6 from choosing the VIP as the source of the machine's own connections, which
    // would break when it moves. (IPv4 chooses by route; a /32 has none.)
    let preferred = if vip.address().is_ipv4() { seconds } else { 0 };
    let (mut writer, message) = address_message(RTM_NEWADDR, ACK | CREATE | REPLACE, link, vip);
    writer.attribute(IFA_FLAGS, &[&(IFA_F_NODAD | IFA_F_NOPREFIXROUTE).to_ne_bytes()]);
    writer.attribute(IFA_CACHEINFO, &[&preferred.to_ne_bytes(), &seconds.to_ne_bytes(), &[0; 8]]);
    writer.end(message);
    netlink::request(&route()?, &writer)
}

/// Removes the VIP. It is no error when it, or the interface, isn't there.
///
/// # Errors
/// What the kernel answered.
pub fn release(link: &Link, vip: Vip) -> io::Result<()> {
    let (mut writer, message) = address_message(RTM_DELADDR, ACK, link, vip);
    writer.end(message);
    match netlink::request(&route()?, &writer) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::ENODEV)) => Ok(()),
        other => other,
    }
}

/// Which of `vips` the interface has, as /32 or /128.
///
/// # Errors
/// What the kernel answered.
pub fn present(link: &Link, vips: impl IntoIterator<Item = Vip>) -> io::Result<Vec<Vip>> {
    let mut writer = Writer::with_capacity(64);
    let message = writer.begin(RTM_GETADDR, REQUEST | DUMP, &[0; 8]);
    writer.end(message);
    let mut there = Vec::new();
    netlink::exchange(&route()?, &writer, |message| there.extend(parse(message.payload, link.index)))?;
    Ok(vips.into_iter().filter(|vip| there.contains(&vip.address())).collect())
}

/// The address whose removal from the interface `message` tells.
pub(super) fn removed(message: &netlink::Message<'_>, link: &Link) -> Option<Vip> {
    if message.kind != RTM_DELADDR {
        return None;
    }
    parse(message.payload, link.index)?.to_string().parse().ok()
}

fn route() -> io::Result<Socket> {
    Socket::netlink(libc::NETLINK_ROUTE, 0)
}

fn address_message(kind: u16, flags: u16, link: &Link, vip: Vip) -> (Writer, netlink::Mark) {
    let mut writer = Writer::with_capacity(128);
    let (family, prefix) = match vip.address() {
        IpAddr::V4(_) => (libc::AF_INET, 32),
        IpAddr::V6(_) => (libc::AF_INET6, 128),
    };
    let mut header = [u8::try_from(family).unwrap_or(0), prefix, 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&link.index.to_ne_bytes());
    let message = writer.begin(kind, REQUEST | flags, &header);
    for attribute in [IFA_LOCAL, IFA_ADDRESS] {
        match vip.address() {
            IpAddr::V4(address) => writer.attribute(attribute, &[&address.octets()]),
            IpAddr::V6(address) => writer.attribute(attribute, &[&address.octets()]),
        }
    }
    (writer, message)
}

fn parse(payload: &[u8], index: u32) -> Option<IpAddr> {
    let (header, body) = payload.split_first_chunk::<8>()?;
    if netlink::u32_at(header, 4)? != index {
        return None;
    }
    let value = netlink::attribute(body, IFA_LOCAL).or_else(|| netlink::attribute(body, IFA_ADDRESS))?;
    match (header[1], value.len()) {
        (32, 4) => Some(IpAddr::V4(Ipv4Addr::from(*value.first_chunk::<4>()?))),
        (128, 16) => Some(IpAddr::V6(Ipv6Addr::from(*value.first_chunk::<16>()?))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(
            prefix in any::<u8>(), index in 0..3u32, attributes in prop::collection::vec((0..10u16, 0..24u16, prop::collection::vec(any::<u8>(), 0..20)), 0..4),
        ) {
            let mut payload = vec![2, prefix, 0, 0];
            payload.extend(index.to_ne_bytes());
            for (kind, length, value) in attributes {
                payload.extend(length.to_ne_bytes());
                payload.extend(kind.to_ne_bytes());
                payload.extend(value);
            }
            for end in 0..payload.len() {
                let _ = parse(&payload[..end], 1);
            }
        }
    }
}
