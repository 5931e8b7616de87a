//! Magic packets: six times 0xff, then the sleeper's hardware address sixteen times (AMD publication 20213).

use super::{Link, MacAddr, announce::ethernet, sys::Socket};
use std::{io, net::UdpSocket, os::fd::AsRawFd, time::Duration};

const ETHERTYPE_WAKE: u16 = 0x0842;
const PORT_DISCARD: u16 = 9;
const PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(400)];

/// Sends the packet three times, each as a raw frame and as a UDP broadcast: network cards and switches differ in
/// which they pass.
///
/// # Errors
/// Neither form could be sent.
pub async fn wake(link: &Link, sleeper: MacAddr) -> io::Result<()> {
    for pause in PAUSES {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let (raw, udp) = (raw(link, sleeper), udp(link, sleeper));
        // An interface without an IPv4 address has no UDP broadcast.
        raw.or(udp)?;
    }
    Ok(())
}

fn magic(sleeper: MacAddr) -> [u8; 102] {
    let mut packet = [0xff; 102];
    for copy in packet[6..].chunks_exact_mut(6) {
        copy.copy_from_slice(&sleeper.0);
    }
    packet
}

fn raw(link: &Link, sleeper: MacAddr) -> io::Result<()> {
    let mut frame = ethernet(MacAddr::BROADCAST, link.mac, ETHERTYPE_WAKE).to_vec();
    frame.extend_from_slice(&magic(sleeper));
    Socket::packet(link.index, ETHERTYPE_WAKE)?.send(&frame)
}

fn udp(link: &Link, sleeper: MacAddr) -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.set_broadcast(true)?;
    bind_to_device(&socket, link)?;
    socket.send_to(&magic(sleeper), ("255.255.255.255", PORT_DISCARD)).map(drop)
}

fn bind_to_device(socket: &UdpSocket, link: &Link) -> io::Result<()> {
    super::sys::set_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, link.name.key())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_packet_is_made_of_six_pairs_of_digits_only(text in r"([0-9a-fA-F+]{2}[:-]){5}[0-9a-fA-F+]{2}|(\PC|[0-9a-f:]){0,24}") {
            let Ok(sleeper) = text.parse::<MacAddr>() else { return Ok(()) };
            prop_assert_eq!(sleeper.to_string(), text.to_ascii_lowercase().replace('-', ":"));
            let packet = magic(sleeper);
            prop_assert!(packet[..6] == [0xff; 6] && packet[6..].chunks(6).all(|copy| copy == sleeper.0));
        }
    }
}
