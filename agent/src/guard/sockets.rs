//! Closing the TCP connections of a VIP that was lost: the guard lets no frame of theirs out, and `send()` does not
//! fail; without this a service would wait for many minutes.

use super::{
    netlink::{self, ACK, DUMP, REQUEST, Writer},
    sys::Socket,
};
use kage_types::Vip;
use std::{
    io,
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
};

// linux/sock_diag.h, linux/inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `struct inet_diag_sockid`.
const ID: usize = 48;
/// TIME_WAIT, CLOSE and LISTEN stay: they have nobody to wait for, and a service whose listening socket is torn away
/// does not come back by itself.
const STATES: u32 = !((1 << 6) | (1 << 7) | (1 << 10));

static WARNED: AtomicBool = AtomicBool::new(false);

/// Closes every TCP connection whose local address is the VIP; returns how many. Where the kernel can't
/// (`CONFIG_INET_DIAG_DESTROY`), says so once in the log and returns 0.
///
/// # Errors
/// What the kernel answered.
pub fn close_connections(vip: Vip) -> io::Result<usize> {
    match try_close(vip) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOENT | libc::EPROTONOSUPPORT)) => {
            if !WARNED.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    %error,
                    "this kernel can't close connections (CONFIG_INET_DIAG_DESTROY): those of a lost VIP hang until \
                     they time out; let on_lease_lost stop the services"
                );
            }
            Ok(0)
        }
        other => other,
    }
}

fn try_close(vip: Vip) -> io::Result<usize> {
    let socket = Socket::netlink(libc::NETLINK_SOCK_DIAG, 0)?;
    // A service that listens on [::] has its IPv4 connections under IPv6, as ::ffff:a.b.c.d.
    let families: &[(libc::c_int, Vec<u8>)] = &match vip.address() {
        IpAddr::V4(address) => {
            [(libc::AF_INET, address.octets().to_vec()), (libc::AF_INET6, address.to_ipv6_mapped().octets().to_vec())]
        }
        IpAddr::V6(address) => [(libc::AF_INET6, address.octets().to_vec()), (libc::AF_UNSPEC, Vec::new())],
    };
    let mut closed = 0;
    for (family, local) in families.iter().filter(|(family, _)| *family != libc::AF_UNSPEC) {
        let family = u8::try_from(*family).unwrap_or(0);
        for id in connections(&socket, family, local)? {
            let (mut writer, message) = diagnose(SOCK_DESTROY, ACK, family, &id);
            writer.end(message);
            match netlink::request(&socket, &writer) {
                Ok(()) => closed += 1,
                // Closed by itself meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(closed)
}

fn connections(socket: &Socket, family: u8, local: &[u8]) -> io::Result<Vec<[u8; ID]>> {
    let (mut writer, message) = diagnose(SOCK_DIAG_BY_FAMILY, DUMP, family, &[0; ID]);
    writer.end(message);
    let mut found = Vec::new();
    netlink::exchange(socket, &writer, |message| {
        // struct inet_diag_msg: family, state, timer, retrans, then the id: two ports, source, destination …
        let id = message.payload.get(4..).and_then(|rest| rest.first_chunk::<ID>());
        found.extend(id.filter(|id| id[4..].starts_with(local)));
    })?;
    Ok(found)
}

/// `struct inet_diag_req_v2`.
fn diagnose(kind: u16, flags: u16, family: u8, id: &[u8; ID]) -> (Writer, netlink::Mark) {
    let mut body = [0; 8 + ID];
    body[0] = family;
    body[1] = u8::try_from(libc::IPPROTO_TCP).unwrap_or(0);
    body[4..8].copy_from_slice(&STATES.to_ne_bytes());
    body[8..].copy_from_slice(id);
    let mut writer = Writer::with_capacity(128);
    let message = writer.begin(kind, REQUEST | flags, &body);
    (writer, message)
}
