//! The network cards of machines that are off: they listen for the magic packet.

use std::io::Write;
use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Context, Result};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};

use super::lifecycle::this_program;
use super::machine::{self, Power};
use super::nodes::{Kind, Spec, find, of};
use super::realserver;
use super::spawn::run_in;

const ETH_P_ALL: u16 = 3;
const REPEATS: usize = 16;

/// Whether `frame` holds the magic packet for `mac`: six bytes of ones, then the address
/// sixteen times, at any offset (AMD, Magic Packet Technology, 1995).
#[must_use]
pub fn is_magic(frame: &[u8], mac: [u8; 6]) -> bool {
    let mut pattern = vec![0xff; 6];
    for _ in 0..REPEATS {
        pattern.extend(mac);
    }
    frame.windows(pattern.len()).any(|window| window == pattern)
}

fn called(frame: &[u8]) -> Option<&'static Spec> {
    of(Kind::Machine).chain(of(Kind::RealServer)).find(|node| is_magic(frame, node.mac()))
}

/// Listens on every port of the switch and wakes the machines that are called, for ever.
/// To be run inside the switch's namespace.
///
/// # Errors
/// The packet socket fails.
pub fn serve() -> Result<()> {
    let protocol = std::num::NonZeroU32::new(u32::from(ETH_P_ALL.to_be())).map(Protocol::from_raw);
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
        .context("cannot open a packet socket; this is `kage-lab up`'s own daemon and needs root")?;
    for node in of(Kind::RealServer) {
        std::thread::spawn(move || realserver::keep(node));
    }
    let mut buffer = vec![0; 2048];
    loop {
        let (_, length) = recv(&socket, &mut buffer[..], RecvFlags::empty()).context("cannot receive frames")?;
        let frame = &buffer[..length.min(buffer.len())];
        let Some(node) = called(frame).filter(|node| realserver::hears(node)) else { continue };
        let said = match machine::wake(node) {
            Ok(Power::Off) => "magic packet: booting",
            Ok(Power::Asleep) => "magic packet: waking",
            Ok(Power::On | Power::Hung) => continue,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "{}: cannot wake: {error:#}", node.name);
                continue;
            }
        };
        let _ = writeln!(std::io::stdout(), "{} {}: {said}", super::run::now_ns(), node.name);
    }
}

/// The magic packet for `mac`, as the payload of a UDP datagram.
#[must_use]
pub fn magic(mac: [u8; 6]) -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    for _ in 0..REPEATS {
        bytes.extend(mac);
    }
    bytes
}

/// Sends the real magic packet for `node`: UDP to the subnet's broadcast address, port 9.
/// To be run inside a namespace of the lab; [`call`] does that.
///
/// # Errors
/// No route: it was run outside.
pub fn send(node: &Spec) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot open a UDP socket")?;
    socket.set_broadcast(true).context("cannot allow broadcasts")?;
    socket.send_to(&magic(node.mac()), (Ipv4Addr::new(10, 77, 0, 255), 9)).context("cannot send the magic packet")?;
    Ok(())
}

/// Has the hypervisor send the real magic packet for `node`.
///
/// # Errors
/// The lab is down.
pub fn call(node: &Spec) -> Result<()> {
    run_in(find("mgmt")?, &[&this_program()?, "magic", node.name])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magic_is_found_anywhere_but_only_whole() {
        let mac = [0x52, 0x54, 0, 0x77, 0, 0x0b];
        let mut frame = vec![1, 2, 3];
        frame.extend(magic(mac));
        assert!(is_magic(&frame, mac));
        assert!(!is_magic(&frame, [0x52, 0x54, 0, 0x77, 0, 0x0c]));
        frame.pop();
        assert!(!is_magic(&frame, mac));
    }
}
