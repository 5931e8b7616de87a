//! Network cards: addresses, speed, and Wake-on-LAN by the ethtool ioctl.

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use serde::{Deserialize, Serialize};
use std::{
    ffi::{CStr, c_char},
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    path::Path,
};

/// `linux/sockios.h`
const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// `linux/ethtool.h`
const ETHTOOL_GWOL: u32 = 5;
/// `linux/ethtool.h`
const ETHTOOL_SWOL: u32 = 6;

/// What wakes a host; the bits of `WAKE_*` in `linux/ethtool.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WakeFlags(pub u32);

impl WakeFlags {
    /// A magic packet, ethtool's `g`: the one we send.
    pub const MAGIC: WakeFlags = WakeFlags(1 << 5);

    /// Are all of `other` in it?
    #[must_use]
    pub fn contains(self, other: WakeFlags) -> bool {
        self.0 & other.0 == other.0
    }
}

/// As ethtool writes them: `pumbg`, `d` for none.
impl fmt::Display for WakeFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("d");
        }
        let letters = "pumbagsf".chars().enumerate().filter(|(bit, _)| self.0 & (1 << bit) != 0);
        letters.map(|(_, letter)| letter).try_for_each(|letter| write!(f, "{letter}"))
    }
}

/// A card's Wake-on-LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeOn {
    /// What it could be woken by.
    pub supported: WakeFlags,
    /// What it will be woken by.
    pub enabled: WakeFlags,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// `eth0`.
    pub name: String,
    /// Lower case, colons.
    pub mac: String,
    /// Of both families.
    pub addresses: Vec<IpAddr>,
    /// Megabits a second; None while the link is down and for virtual cards.
    pub speed_mbps: Option<u32>,
    /// None where the driver has no such thing, or we are not allowed to ask.
    pub wake_on: Option<WakeOn>,
    /// Set up, with a carrier.
    pub up: bool,
    /// Backed by a device; bridges, taps and VLANs are not.
    pub physical: bool,
}

/// Wake-on-LAN that can't be read or set.
#[derive(Debug, thiserror::Error)]
pub enum WakeError {
    /// The card, its driver, or our rights.
    #[error("cannot {action} Wake-on-LAN of {nic}; its driver may not support it, or kage-agent lacks CAP_NET_ADMIN")]
    Ioctl {
        /// The card.
        nic: String,
        /// "read", "set".
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The card can't be woken by what is asked for.
    #[error("{nic} cannot be woken by {wanted:?}; it supports {supported:?} (see `ethtool {nic}`)")]
    Unsupported {
        /// The card.
        nic: String,
        /// ethtool's letters.
        wanted: String,
        /// ethtool's letters.
        supported: String,
    },
    /// It was set, and is not there when read back.
    #[error(
        "{nic} did not keep Wake-on-LAN by magic packet (it has {enabled:?}); update its driver, or set [power] arm_wake"
    )]
    NotKept {
        /// The card.
        nic: String,
        /// ethtool's letters.
        enabled: String,
    },
}

/// All network cards but loopback, by name. What can't be read is left out.
#[must_use]
pub fn nics() -> Vec<Nic> {
    let addresses = addresses();
    let mut all = Vec::new();
    for entry in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = entry.path();
        let (true, Some(mac)) = (name != "lo", read(&path, "address")) else { continue };
        all.push(Nic {
            addresses: addresses.iter().filter(|(nic, _)| *nic == name).map(|(_, address)| *address).collect(),
            speed_mbps: read(&path, "speed").and_then(|speed| speed.parse().ok()).filter(|speed| *speed > 0),
            wake_on: wake_on(&name).ok(),
            up: read(&path, "carrier").is_some_and(|carrier| carrier == "1"),
            physical: path.join("device").exists(),
            mac,
            name,
        });
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn read(path: &Path, name: &str) -> Option<String> {
    fs::read_to_string(path.join(name)).ok().map(|text| text.trim().to_owned())
}

fn addresses() -> Vec<(String, IpAddr)> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: on success `list` is a linked list, freed below.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return Vec::new();
    }
    let mut all = Vec::new();
    let mut next = list;
    // SAFETY: every entry and its name are valid until freeifaddrs; an address, where there is one, is of the type its
    // family says.
    unsafe {
        while let Some(entry) = next.as_ref() {
            next = entry.ifa_next;
            let Some(address) = entry.ifa_addr.as_ref() else { continue };
            let address = match i32::from(address.sa_family) {
                libc::AF_INET => {
                    let v4 = std::ptr::read_unaligned(entry.ifa_addr.cast::<libc::sockaddr_in>());
                    IpAddr::V4(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)))
                }
                libc::AF_INET6 => {
                    let v6 = std::ptr::read_unaligned(entry.ifa_addr.cast::<libc::sockaddr_in6>());
                    IpAddr::V6(Ipv6Addr::from(v6.sin6_addr.s6_addr))
                }
                _ => continue,
            };
            all.push((CStr::from_ptr(entry.ifa_name).to_string_lossy().into_owned(), address));
        }
        libc::freeifaddrs(list);
    }
    all
}

/// `struct ethtool_wolinfo`
#[repr(C)]
#[derive(Default)]
struct WolInfo {
    command: u32,
    supported: u32,
    enabled: u32,
    password: [u8; 6],
}

/// Reads a card's Wake-on-LAN.
///
/// # Errors
/// [`WakeError::Ioctl`].
pub fn wake_on(nic: &str) -> Result<WakeOn, WakeError> {
    let mut info = WolInfo { command: ETHTOOL_GWOL, ..WolInfo::default() };
    ethtool(nic, &mut info).map_err(|source| WakeError::Ioctl { nic: nic.to_owned(), action: "read", source })?;
    Ok(WakeOn { supported: WakeFlags(info.supported), enabled: WakeFlags(info.enabled) })
}

/// Sets what wakes the host, beside nothing else. Many cards forget it at reboot: to be done at every start.
///
/// # Errors
/// [`WakeError`].
pub fn set_wake_on(nic: &str, flags: WakeFlags) -> Result<(), WakeError> {
    let now = wake_on(nic)?;
    if !now.supported.contains(flags) {
        let (wanted, supported) = (flags.to_string(), now.supported.to_string());
        return Err(WakeError::Unsupported { nic: nic.to_owned(), wanted, supported });
    }
    let mut info = WolInfo { command: ETHTOOL_SWOL, enabled: flags.0, ..WolInfo::default() };
    ethtool(nic, &mut info).map_err(|source| WakeError::Ioctl { nic: nic.to_owned(), action: "set", source })
}

/// Makes sure that a magic packet wakes the host, beside what wakes it already: set if need be, and read back.
///
/// # Errors
/// [`WakeError`].
pub fn arm_magic(nic: &str) -> Result<(), WakeError> {
    let before = wake_on(nic)?.enabled;
    if before.contains(WakeFlags::MAGIC) {
        return Ok(());
    }
    set_wake_on(nic, WakeFlags(before.0 | WakeFlags::MAGIC.0))?;
    let enabled = wake_on(nic)?.enabled;
    if enabled.contains(WakeFlags::MAGIC) {
        return Ok(());
    }
    Err(WakeError::NotKept { nic: nic.to_owned(), enabled: enabled.to_string() })
}

fn ethtool(nic: &str, info: &mut WolInfo) -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: a structure of integers and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if nic.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(nic.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(info).cast();
    // SAFETY: SIOCETHTOOL takes an ifreq whose data points to the structure of the command in its first field; both
    // outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_of_this_host() {
        for nic in nics() {
            println!("{nic:?}");
            assert!(nic.name != "lo" && !nic.mac.is_empty());
        }
        assert!(addresses().iter().any(|(nic, address)| nic == "lo" && address.is_loopback()));
    }

    #[test]
    fn a_card_without_wake_on_lan_says_so() {
        let error = set_wake_on("lo", WakeFlags::MAGIC).expect_err("loopback");
        assert!(matches!(error, WakeError::Ioctl { action: "read", .. }), "{error}");
        assert!(arm_magic("lo").is_err());
        assert!(wake_on("a-name-too-long-for-a-card").is_err());
    }

    #[test]
    fn letters_are_ethtools() {
        assert_eq!(WakeFlags::MAGIC.to_string(), "g");
        assert_eq!(WakeFlags(0b10_1111).to_string(), "pumbg");
        assert_eq!(WakeFlags(0).to_string(), "d");
    }
}
