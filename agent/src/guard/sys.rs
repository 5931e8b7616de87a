//! The system calls the guard needs and no safe crate offers. All `unsafe` of raw sockets is here.

use kage_types::Time;
use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::Duration,
};

/// This machine's CLOCK_BOOTTIME: the clock of every lease (safety rule 2).
#[must_use]
pub fn now() -> Time {
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(clock.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(clock.tv_nsec).unwrap_or(0);
    Time::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

pub(super) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_size(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Size of a C structure as the kernel wants it told.
fn length_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(mem::size_of::<T>()).unwrap_or(0)
}

/// `setsockopt`: `T` is the C type of the option.
pub(super) fn set_option<T: Copy>(fd: RawFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let pointer = std::ptr::from_ref(value).cast::<libc::c_void>();
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    check(unsafe { libc::setsockopt(fd, level, name, pointer, length_of::<T>()) }).map(drop)
}

/// A netlink, packet or datagram socket.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    fn open(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<Self> {
        // SAFETY: no pointers are passed.
        let fd = check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
        // SAFETY: the descriptor was just opened and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Netlink of `protocol`, listening to the multicast groups of the bit mask `groups`.
    pub(super) fn netlink(protocol: libc::c_int, groups: u32) -> io::Result<Self> {
        let socket = Self::open(libc::AF_NETLINK, libc::SOCK_RAW, protocol)?;
        // SAFETY: all-zero is a valid sockaddr_nl.
        let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
        address.nl_family = libc::AF_NETLINK.try_into().unwrap_or(0);
        address.nl_groups = groups;
        socket.bind(&address)?;
        // Errors come back without a copy of what was sent; older kernels send it, which is only longer.
        let _ = socket.set_option(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, &1i32);
        Ok(socket)
    }

    /// Whole Ethernet frames of `ethertype` on the interface `index`.
    pub(super) fn packet(index: u32, ethertype: u16) -> io::Result<Self> {
        // Protocol 0 until bound: otherwise frames of every interface would be queued in between.
        let socket = Self::open(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET.try_into().unwrap_or(0);
        address.sll_protocol = ethertype.to_be();
        address.sll_ifindex = index.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
        socket.bind(&address)?;
        // Our own frames are of no interest; without the option (before Linux 4.20) readers skip them by address.
        let _ = socket.set_option(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1i32);
        Ok(socket)
    }

    fn bind<T>(&self, address: &T) -> io::Result<()> {
        let pointer = std::ptr::from_ref(address).cast::<libc::sockaddr>();
        // SAFETY: the pointer and the length describe `address`, a C socket address that outlives the call.
        check(unsafe { libc::bind(self.0.as_raw_fd(), pointer, length_of::<T>()) }).map(drop)
    }

    pub(super) fn set_option<T: Copy>(&self, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
        set_option(self.0.as_raw_fd(), level, name, value)
    }

    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and the length describe `bytes`, which outlives the call.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if check_size(sent)? == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// One message; `WouldBlock` when there is none.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the pointer and the length describe `buffer`, which outlives the call.
        let got =
            unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
        check_size(got)
    }

    /// Is there a message within `limit`?
    pub(super) fn wait(&self, limit: Duration) -> io::Result<bool> {
        let mut poll = [rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        match rustix::event::poll(&mut poll, Some(&limit)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Index and hardware address of an interface.
pub(super) fn link(name: &[u8; libc::IFNAMSIZ]) -> io::Result<(u32, [u8; 6])> {
    let socket = Socket::open(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    // SAFETY: the request is an ifreq, as SIOCGIFINDEX wants, and outlives the call.
    check(unsafe { libc::ioctl(socket.0.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request) })?;
    // SAFETY: SIOCGIFINDEX filled this member.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    // SAFETY: as above, for SIOCGIFHWADDR.
    check(unsafe { libc::ioctl(socket.0.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) })?;
    // SAFETY: SIOCGIFHWADDR filled this member.
    let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(data) {
        *to = from.to_ne_bytes()[0];
    }
    Ok((u32::try_from(index).unwrap_or(0), mac))
}
