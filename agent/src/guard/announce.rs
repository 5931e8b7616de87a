//! Telling the neighbours where a VIP is now: gratuitous ARP (RFC 5227 §2.3), unsolicited neighbour advertisements
//! (RFC 4861 §7.2.6), as raw frames.
//!
//! They leave through the guard: a frame that is sent late, when the lease is over, is dropped by the egress hook
//! (host) or the bridge's output hook (guest), where the kernel has one.

use super::{Link, MacAddr, sys::Socket};
use kage_types::Vip;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

/// Pauses before each announcement: the first at once; the later ones for switches that were still learning.
pub const PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(200), Duration::from_millis(800)];

pub(super) const ETHERTYPE_ARP: u16 = 0x0806;
pub(super) const ETHERTYPE_IPV6: u16 = 0x86dd;
pub(super) const ND_SOLICIT: u8 = 135;
pub(super) const ND_ADVERT: u8 = 136;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ICMPV6: u8 = 58;
/// "Override", not "solicited", not "router" (RFC 4861 §4.4).
const ADVERT_FLAGS: [u8; 4] = [0x20, 0, 0, 0];

/// Announces three times. `link` is the interface the VIP is on; for a guest the *bridge* (the frame then reaches
/// the network and the other guests, and the bridge learns nothing from what it sends itself). `mac` is the
/// interface's own, or the guest's. `still` is asked before each: is the VIP still ours?
///
/// # Errors
/// The first failure to send.
pub async fn announce(link: &Link, mac: MacAddr, vip: Vip, still: impl Fn() -> bool) -> io::Result<()> {
    for pause in PAUSES {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        if !still() {
            return Ok(());
        }
        drop(announce_once(link, mac, vip)?);
    }
    Ok(())
}

/// What an announcement was sent with. Dropping it waits some 10 ms for the kernel (a packet socket ends with a grace
/// period): for those who have something to do first.
#[derive(Debug)]
pub struct Sent(#[allow(dead_code, reason = "for its drop")] Socket);

/// One announcement: for IPv4 both forms, as some stacks heed only requests and others only replies.
///
/// # Errors
/// The frame could not be sent; `ENETDOWN` when the interface is down.
pub fn announce_once(link: &Link, mac: MacAddr, vip: Vip) -> io::Result<Sent> {
    match vip.address() {
        IpAddr::V4(address) => {
            let socket = Socket::packet(link.index, ETHERTYPE_ARP)?;
            passed(socket.send(&arp(ARP_REQUEST, mac, address, MacAddr([0; 6]), address)))?;
            passed(socket.send(&arp(ARP_REPLY, mac, address, mac, address)))?;
            Ok(Sent(socket))
        }
        IpAddr::V6(address) => {
            let socket = Socket::packet(link.index, ETHERTYPE_IPV6)?;
            let mut body = [0; 28];
            body[..4].copy_from_slice(&ADVERT_FLAGS);
            body[4..20].copy_from_slice(&address.octets());
            // Target link-layer address.
            body[20..22].copy_from_slice(&[2, 1]);
            body[22..].copy_from_slice(&mac.0);
            passed(socket.send(&neighbour(ND_ADVERT, mac, address, ALL_NODES, &body)))?;
            Ok(Sent(socket))
        }
    }
}

/// The guard's drop shows as `ENOBUFS` or `EPERM`: the lease is over, and there is nothing to announce.
fn passed(sent: io::Result<()>) -> io::Result<()> {
    match sent {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EPERM)) => {
            tracing::debug!("announcement dropped by the guard: the VIP is no longer live");
            Ok(())
        }
        other => other,
    }
}

/// A probe for the VIP (RFC 5227 §2.1.1): from nobody.
pub(super) fn arp_probe(mac: MacAddr, vip: Ipv4Addr) -> [u8; 42] {
    arp(ARP_REQUEST, mac, Ipv4Addr::UNSPECIFIED, MacAddr([0; 6]), vip)
}

fn arp(operation: u16, mac: MacAddr, sender: Ipv4Addr, target_mac: MacAddr, target: Ipv4Addr) -> [u8; 42] {
    let mut frame = [0; 42];
    frame[..14].copy_from_slice(&ethernet(MacAddr::BROADCAST, mac, ETHERTYPE_ARP));
    // Ethernet, IPv4, lengths of their addresses.
    frame[14..20].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
    frame[20..22].copy_from_slice(&operation.to_be_bytes());
    frame[22..28].copy_from_slice(&mac.0);
    frame[28..32].copy_from_slice(&sender.octets());
    frame[32..38].copy_from_slice(&target_mac.0);
    frame[38..].copy_from_slice(&target.octets());
    frame
}

/// A neighbour solicitation for the VIP from nobody (RFC 4862 §5.4.2).
pub(super) fn nd_probe(mac: MacAddr, vip: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = vip.octets();
    let group = Ipv6Addr::from_bits(
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).to_bits() | u128::from(u32::from_be_bytes([0, a, b, c])),
    );
    let mut body = [0; 20];
    body[4..].copy_from_slice(&vip.octets());
    neighbour(ND_SOLICIT, mac, Ipv6Addr::UNSPECIFIED, group, &body)
}

/// An ICMPv6 frame to a multicast group. `body` follows the checksum.
fn neighbour(kind: u8, mac: MacAddr, source: Ipv6Addr, group: Ipv6Addr, body: &[u8]) -> Vec<u8> {
    let [.., a, b, c, d] = group.octets();
    let length = u16::try_from(4 + body.len()).unwrap_or(u16::MAX);
    let mut frame = Vec::with_capacity(14 + 40 + usize::from(length));
    frame.extend_from_slice(&ethernet(MacAddr([0x33, 0x33, a, b, c, d]), mac, ETHERTYPE_IPV6));
    frame.extend_from_slice(&[0x60, 0, 0, 0]);
    frame.extend_from_slice(&length.to_be_bytes());
    // Hop limit 255: receivers refuse what was routed.
    frame.extend_from_slice(&[ICMPV6, 255]);
    frame.extend_from_slice(&source.octets());
    frame.extend_from_slice(&group.octets());
    let mut message = vec![kind, 0, 0, 0];
    message.extend_from_slice(body);
    let sum = checksum(&[&source.octets(), &group.octets(), &length.to_be_bytes(), &[0, ICMPV6], &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    frame.extend_from_slice(&message);
    frame
}

/// RFC 1071, over parts of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks_exact(2));
    let mut sum: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

pub(super) fn ethernet(to: MacAddr, from: MacAddr, ethertype: u16) -> [u8; 14] {
    let mut header = [0; 14];
    header[..6].copy_from_slice(&to.0);
    header[6..12].copy_from_slice(&from.0);
    header[12..].copy_from_slice(&ethertype.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_a_message_that_carries_its_own_is_zero() {
        let mac = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
        let frame = nd_probe(mac, "fd78::1:2:3".parse().unwrap());
        let message = &frame[54..];
        let length = u16::try_from(message.len()).unwrap().to_be_bytes();
        assert_eq!(checksum(&[&frame[22..54], &length, &[0, ICMPV6], message]), 0);
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 2, 0, 3]);
    }
}
