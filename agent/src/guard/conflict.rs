//! Does anybody answer for a VIP? Asked before it is opened (RFC 5227 §2.1.1, RFC 4862 §5.4). The answer can show
//! presence, never absence.

use super::{
    Link, MacAddr,
    announce::{ETHERTYPE_ARP, ETHERTYPE_IPV6, ND_ADVERT, arp_probe, nd_probe},
    sys::Socket,
};
use kage_types::Vip;
use std::{
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

/// How often a probe is sent in the time given.
pub const PROBES: u32 = 3;

/// Asks [`PROBES`] times within `wait` who has the VIP; returns the hardware address of the first that answers. For
/// the VIP of a guest, `link` is the bridge. Blocks for up to `wait`.
///
/// # Errors
/// The interface is down or gone.
pub fn probe(link: &Link, vip: Vip, wait: Duration) -> io::Result<Option<MacAddr>> {
    let (ethertype, frame) = match vip.address() {
        IpAddr::V4(address) => (ETHERTYPE_ARP, arp_probe(link.mac, address).to_vec()),
        IpAddr::V6(address) => (ETHERTYPE_IPV6, nd_probe(link.mac, address)),
    };
    let socket = Socket::packet(link.index, ethertype)?;
    let begun = Instant::now();
    let mut buffer = [0; 2048];
    for round in 0..PROBES {
        socket.send(&frame)?;
        let until = begun + wait * (round + 1) / PROBES;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            if !socket.wait(left)? {
                continue;
            }
            match socket.receive(&mut buffer) {
                Ok(length) => match answer(&buffer[..length], vip) {
                    Some(mac) if mac != link.mac => return Ok(Some(mac)),
                    Some(_) | None => {}
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(None)
}

/// Who claims the VIP in this frame?
fn answer(frame: &[u8], vip: Vip) -> Option<MacAddr> {
    match vip.address() {
        // The sender of any ARP packet, request or reply.
        IpAddr::V4(address) => {
            let claims = frame.get(12..14)? == ETHERTYPE_ARP.to_be_bytes() && frame.get(28..32)? == address.octets();
            claims.then(|| frame.get(22..28)?.first_chunk().map(|mac| MacAddr(*mac)))?
        }
        // The target of an advertisement; who sent the frame is who has it.
        IpAddr::V6(address) => {
            let claims = frame.get(12..14)? == ETHERTYPE_IPV6.to_be_bytes()
                && *frame.get(20)? == 58
                && *frame.get(54)? == ND_ADVERT
                && frame.get(62..78)? == address.octets();
            claims.then(|| frame.get(6..12)?.first_chunk().map(|mac| MacAddr(*mac)))?
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever is on the wire, of whatever length.
        #[test]
        fn no_frame_breaks_the_reader(mut frame in prop::collection::vec(any::<u8>(), 0..100), v6 in any::<bool>()) {
            let vip: Vip = if v6 { "fd00::1" } else { "10.0.0.1" }.parse().expect("vip");
            let (ethertype, at, address) = match vip.address() {
                IpAddr::V4(address) => (ETHERTYPE_ARP, 28, address.octets().to_vec()),
                IpAddr::V6(address) => (ETHERTYPE_IPV6, 62, address.octets().to_vec()),
            };
            let _ = answer(&frame, vip);
            let put = |frame: &mut Vec<u8>, at: usize, bytes: &[u8]| {
                if let Some(place) = frame.get_mut(at..at + bytes.len()) {
                    place.copy_from_slice(bytes);
                }
            };
            put(&mut frame, 12, &ethertype.to_be_bytes());
            put(&mut frame, 20, &[58]);
            put(&mut frame, 54, &[ND_ADVERT]);
            put(&mut frame, at, &address);
            let claims = answer(&frame, vip).is_some();
            prop_assert!(!claims || frame.len() >= at + address.len());
        }
    }
}
